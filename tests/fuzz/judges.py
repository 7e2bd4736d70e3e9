"""What must hold of any input: it is taken, or refused by a documented error that names the file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet.data.check import check, main
from jaxdet.data.masks import has_masks
from jaxdet.data.pipeline.ready import check_files
from jaxdet.data.pipeline.transforms import image_arrays, target_arrays, view_of
from jaxdet.data.settings import COCO_DETECTIONS, Data
from jaxdet.data.sources.coco import open_coco, read_json

LONGEST = 5000
"""Characters of a message."""
LIKE = {
    "weights": {
        "params": {
            "backbone": {"conv1": {"kernel": np.zeros((7, 7, 3, 2), np.float32)}},
            "rpn": {"head": {"objectness": {"bias": np.zeros(3, np.float32)}}},
        }
    },
    "run": {"params": {"w": np.zeros((2, 3), np.float32)}},
}
"""Variables that the good files of ``checkpoints`` fill."""
_SMALL = Data(short_side=64, long_side=96, batch_size=4, max_boxes=8, mask_size=28, workers=0)


class Unclear(Exception):
    """A message that does not say enough."""


def _told(read: Callable[[], Any], names: tuple[str, ...]) -> str:
    """The message with which ``read`` refuses, or nothing.  It must hold one of ``names``."""
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        if len(text) > LONGEST or not any(name in text for name in names):
            raise Unclear(f"{len(text)} characters, expected one of {names} in {text[:500]!r}") from error
        return text
    return ""


def judge_data_set(folder: Path) -> str:
    """Check, open, read and transform everything, and score detections by it."""
    images, annotations = str(folder / "images"), str(folder / "instances.json")
    report = check(annotations, images)
    main([str(folder)])
    told = _told(lambda: open_coco(images, annotations), (annotations,))
    if not told:
        told = _read_all(open_coco(images, annotations), folder)
    if told:
        assert any(each.severity == "error" for each in report.findings), f"the check found nothing, but: {told}"
    return told


def _read_all(source: Any, folder: Path) -> str:
    from jaxdet.evaluation.score import check_truth

    truth = source.ground_truth()
    data = replace(_SMALL, masks=has_masks(truth["annotations"]))
    told = [
        _told(partial(_arrays, source, index, data), (str(folder), "image ")) for index in range(min(len(source), 20))
    ]
    told.append(_told(lambda: check_files(source, "data.val"), ("data.val: expected a file for every image",)))
    told.append(_told(lambda: check_truth(truth, masks=data.masks), ("ground truth",)))
    if len(source) and not told[0]:
        told.append(_told(lambda: _score_perfect(truth), ("ground truth",)))
    return next(filter(None, told), "")


def _score_perfect(truth: dict[str, Any]) -> None:
    """Detections of all instances get an AP of 1, whatever their ids and areas are, from either judge."""
    from jaxdet.evaluation.score import score

    instances = [entry for entry in truth["annotations"] if not entry.get("iscrowd")]
    found = [{key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for entry in instances]
    judges = (False, True) if len(truth["categories"]) < 100 else (False,)  # the fast one takes memory for each
    precisions = [score(truth, found, masks=False, fast=fast).metrics["bbox/AP"] for fast in judges]
    boxes = np.array([entry["bbox"] for entry in instances], np.float64).reshape(-1, 4)
    pairs = Counter((entry["image_id"], entry["category_id"]) for entry in instances)
    # Of boxes without an extent, or of such an extent that it drowns the other numbers, no IoU is 1.
    if (boxes[:, 2:] > 0.1).all() and (np.abs(boxes) < 1e4).all() and max(pairs.values(), default=0) <= COCO_DETECTIONS:
        areas = [entry["bbox"][2] * entry["bbox"][3] if (a := entry.get("area")) is None else a for entry in instances]
        # COCO ignores what has another area than these.
        expected = 1.0 if any(0 <= area <= 1e10 for area in areas) else -1.0
        assert np.allclose(precisions, expected), f"AP {precisions} of perfect detections"


def _arrays(source: Any, index: int, data: Data) -> None:
    record = source[index]
    view = view_of(record.image.shape[:2], data)
    image_arrays(record.image, view, record.index)
    target_arrays(record, view, data)


def judge_results(folder: Path) -> str:
    """Score a results json."""
    from jaxdet.evaluation.results import read_results
    from jaxdet.evaluation.score import score

    truth = read_json(str(folder / "instances.json"))
    path = str(folder / "results.json")
    return _told(lambda: score(truth, read_results(path, truth)), (path, "results"))


def judge_checkpoint(folder: Path) -> str:
    """Import weights and merge them into a model; of a run, load the config too."""
    from jaxdet.checkpoints.importing import import_weights
    from jaxdet.checkpoints.merge import merge
    from jaxdet.trained import load

    (name,) = {path.relative_to(folder).parts[0] for path in folder.iterdir()}
    path, like = folder / name, LIKE[name]
    imported: list[Any] = []
    told = [_told(lambda: imported.append(import_weights(path, like)), (str(path),))]
    told += [_told(partial(merge, like, each.variables, within=each.within), ("do not fit",)) for each in imported]
    if name == "run":
        told.append(_told(lambda: load(path), (str(path),)))
    return next(filter(None, told), "")
