"""COCO's twelve numbers, from the precision and recall that pycocotools computes."""

import base64
import contextlib
import dataclasses
import io
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.data.masks import encode_mask, has_mask, has_masks
from jaxdet.data.settings import COCO_DETECTIONS
from jaxdet.data.sources.coco import read_categories
from jaxdet.data.validation.entries import annotation_of, check_ids_differ, each, known, whole
from jaxdet.evaluation.results import Result, Truth, check_ids, image_sizes

_log = logging.getLogger(__name__)

STATISTICS = ("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", "AR1", "AR10", "AR100", "AR_s", "AR_m", "AR_l")
"""Names of COCO's numbers in pycocotools' order."""

_SIZES = ("", "_s", "_m", "_l")  #: ends of the names by size of the objects: all, small, medium, large

Kind: TypeAlias = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Scores:
    """What COCO's evaluation says.  -1, as in pycocotools, where the ground truth has nothing of that kind.

    With a limit of n detections above 100 there are ``AP@n``, ``AP50@n``, ``AP75@n`` and ``ARn`` too, after the
    numbers of 100.
    """

    metrics: dict[str, float]  #: ``bbox/AP``, ``bbox/AP50``, ... ``segm/AR_l``
    per_class: dict[str, dict[str, float]]  #: category name -> ``bbox/AP``, ``bbox/AP50``, ``bbox/AR100``, ``segm/...``
    by_size: dict[str, dict[str, float]]  #: category name -> ``bbox/AP_s``, ``bbox/AP_m``, ``bbox/AP_l``, ``segm/...``


@dataclass(frozen=True)
class Judges:
    """Processes that judge together: each compares every ``count``-th image with its ground truth, from ``index`` on.

    ``gather`` calls a function on each of them and gives all of them what it returned, JSON data, in their order.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Callable[[], Any]], list[Any]] = lambda work: [work()]


ALONE = Judges()


def score(
    truth: Truth,
    results: Sequence[Result],
    *,
    masks: bool = True,
    fast: bool = False,
    max_detections: int = COCO_DETECTIONS,
    judges: Judges = ALONE,
) -> Scores:
    """Score detections against the whole ground truth: every image counts, those without a detection too.

    Args:
        truth: an instances json as a dict; left as it is.
        results: COCO results; left as they are.  Without any, AP is 0.
        masks: compare masks too, if the results (or, where these are empty, the ground truth) have them; False:
            boxes alone, and nobody looks at masks.  Boxes of results that hold masks only are the masks' boxes.  A
            ground truth of boxes is scored by boxes in any case.
        fast: score by faster-coco-eval instead (extra ``fast-eval``): the same numbers sooner.
        max_detections: detections of a class in an image that count, from 100 on; above it there are the numbers
            under both limits.
        judges: of several processes, which have the same ground truth and results, this one's place among them; each
            returns the same numbers, bit for bit those of one process.  With ``fast`` the first one judges for all.

    Raises:
        ValueError: results of unknown images or categories, some with a mask and some without, a ground truth that
            is not COCO's, or another limit.
    """
    if max_detections < COCO_DETECTIONS:
        raise ValueError(
            f"max_detections: expected at least {COCO_DETECTIONS}, under which COCO's numbers are, got {max_detections}"
        )
    if fast and judges.count > 1:
        # faster-coco-eval keeps what it has matched in its own memory.
        settings: dict[str, Any] = {"masks": masks, "fast": True, "max_detections": max_detections}
        first = judges.gather(lambda: None if judges.index else dataclasses.asdict(score(truth, results, **settings)))[
            0
        ]
        return Scores(**first)
    kinds = kinds_of(truth, results) if masks else ("bbox",)
    prepared = prepare(truth, masks="segm" in kinds)
    check_ids(results, truth)
    _warn_of_limits(prepared.json["annotations"], max_detections)
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in prepared.names}
    by_size: dict[str, dict[str, float]] = {name: {} for name in prepared.names}
    for kind in kinds:
        found = of_kind(kind, results, prepared)
        precision, recall = _evaluated(prepared.json, found, kind, fast, max_detections, judges)
        metrics |= {f"{kind}/{name}": value for name, value in _summary(precision, recall, max_detections).items()}
        for place, (name, row) in enumerate(per_class.items()):
            one = _summary(precision[:, :, place : place + 1], recall[:, place : place + 1], max_detections)
            row |= {f"{kind}/{key}": one[key] for key in ("AP", "AP50", "AR100")}
            row |= {f"{kind}/{key}": value for key, value in one.items() if key not in STATISTICS}
            by_size[name] |= {f"{kind}/AP{end}": one[f"AP{end}"] for end in _SIZES if end}
    return Scores(metrics, per_class, by_size)


def check_truth(truth: Truth, *, masks: bool = True) -> None:
    """Look at every value of a ground truth, as `score` would, before there is anything to score.

    Raises:
        ValueError: as `score`.
    """
    prepare(truth, masks=masks and has_masks(truth.get("annotations", [])))


def kinds_of(truth: Truth, results: Sequence[Result]) -> tuple[Kind, ...]:
    """What can be scored: boxes, and masks where there are some."""
    annotations = truth.get("annotations", [])
    found = any(has_mask(result.get("segmentation")) for result in results)
    if annotations and not has_masks(annotations):
        if found:
            _log.warning("the ground truth has no masks: boxes alone are scored")
        return ("bbox",)
    # Without results the ground truth decides: a model that found nothing has a mask AP of 0 too.
    return ("bbox", "segm") if found or (annotations and not results) else ("bbox",)


def _warn_of_limits(annotations: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Say what keeps a perfect detector from an AP of 1."""
    if not annotations:
        _log.warning("the ground truth has no annotations: there is nothing to score by, every number is -1")
    instances = [annotation for annotation in annotations if not annotation["iscrowd"]]
    pairs = Counter((instance["image_id"], instance["category_id"]) for instance in instances)
    most = max(pairs.values(), default=0)
    if most > limit:
        _log.warning(
            "%d times an image has more than %d instances of a class (up to %d), and %d detections count: set "
            "run.eval_detections=%d, or jaxdet eval --results --max-detections %d, for numbers that count more",
            *(sum(count > limit for count in pairs.values()), limit, most, limit, most, most),
        )


@dataclass(frozen=True)
class Prepared:
    """A ground truth for pycocotools: all that it reads, and nothing that nobody has looked at.

    Ids are names, and 0 or -1 are good ones; pycocotools writes 0 for a detection without a match, and
    faster-coco-eval takes none below 0.  So it gets numbers from 1 on, in the order of the ids.
    """

    json: dict[str, Any]
    names: list[str]  #: one of its own for each category, in order
    images: Mapping[int, int]  #: id -> number
    categories: Mapping[int, int]  #: id -> number


def of_kind(kind: Kind, results: Sequence[Result], truth: Prepared) -> list[Result]:
    """Detections as they count for one kind, in their order, with the numbers of images and categories for the ids."""
    chosen = [_only(kind, result, truth) for result in results]
    # pycocotools goes by the first result alone: where some have boxes, all need them.
    if any("bbox" in result for result in chosen):
        for result in chosen:
            if "bbox" not in result:
                result["bbox"] = coco_mask.toBbox(result.pop("segmentation")).tolist()
    return chosen


def _only(kind: Kind, result: Result, truth: Prepared) -> Result:
    """What counts for one kind.

    A mask is scored without its box, else pycocotools would sort it by the box's area into small, medium and large.
    """
    numbers = {"image_id": truth.images[result["image_id"]], "category_id": truth.categories[result["category_id"]]}
    kept = {**numbers, "score": result["score"]}
    if kind == "bbox" and "bbox" in result:
        return kept | {"bbox": result["bbox"]}
    if "segmentation" not in result:
        raise ValueError(f"results: expected masks to score, a detection of image {result['image_id']} has none")
    if kind == "segm":
        kept["score"] = result.get("mask_score", result["score"])
    return kept | {"segmentation": result["segmentation"]}


def prepare(truth: Truth, masks: bool) -> Prepared:
    """The ground truth with what pycocotools takes for granted, every value looked at: its C code does not do that.

    It is held to the rules of training data (``data.sources.coco``).
    """
    try:
        sizes = image_sizes(truth)
        categories = {category.id: category.name for category in read_categories(truth["categories"])}
        read = each(
            "annotations", truth.get("annotations", []), lambda entry: _completed(entry, sizes, categories, masks)
        )
        check_ids_differ("annotation", [annotation["id"] for annotation in read])
    except ValueError as error:
        raise ValueError(f"ground truth: {error}") from error
    images = {image_id: number for number, image_id in enumerate(sorted(sizes), 1)}
    labels = {category_id: number for number, category_id in enumerate(categories, 1)}
    annotations = [
        {
            **annotation,
            "id": number,
            "image_id": images[annotation["image_id"]],
            "category_id": labels[annotation["category_id"]],
        }
        for number, annotation in enumerate(read, 1)
    ]
    json = {
        "images": [{"id": images[key], "height": height, "width": width} for key, (height, width) in sizes.items()],
        "categories": [{"id": number} for number in labels.values()],
        "annotations": annotations,
    }
    return Prepared(json, _names(categories), images, labels)


def _completed(
    annotation: Any, sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, str], masks: bool
) -> dict[str, Any]:
    checked = annotation_of(annotation, 0)
    height, width = known(sizes, annotation, "image_id")
    known(categories, annotation, "category_id")
    area, mask = checked.area, None
    if masks and has_mask(checked.segmentation):
        mask = encode_mask(checked.segmentation, (height, width))
        if annotation.get("area") is None:
            area = float(coco_mask.area(mask))
    return {
        "id": checked.id,
        "image_id": whole(annotation, "image_id"),
        "category_id": whole(annotation, "category_id"),
        "bbox": list(checked.bbox),
        "area": area,
        "iscrowd": int(checked.crowd),
        "segmentation": mask or {"size": [height, width], "counts": [height * width]},  # what no mask can match
    }


def _evaluated(
    truth: dict[str, Any], results: list[Result], kind: Kind, fast: bool, limit: int, judges: Judges
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision ``[IoU, recall, class, size, limit]`` and recall ``[IoU, class, size, limit]``; -1 without truth.

    IoUs are 0.5, 0.55, ... 0.95, classes are by id, sizes as in ``_SIZES``; limits are 1, 10, 100 and, if it is
    another, ``limit``.
    """
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        if judges.count == 1:
            scored = _matched(truth, results, kind, fast, limit)
        else:
            scored = _matched_together(truth, results, kind, limit, judges)
        scored.accumulate()
    return np.asarray(scored.eval["precision"]), np.asarray(scored.eval["recall"])


def _matched(truth: dict[str, Any], results: list[Result], kind: Kind, fast: bool, limit: int) -> Any:
    """pycocotools' evaluation, or the faster one, with each image's detections matched to its objects."""
    index, evaluate = _fast_classes() if fast else (COCO, COCOeval)
    expected = _indexed(index, truth)
    # pycocotools reads the first result without asking whether there is one.
    found = expected.loadRes(results) if results else _indexed(index, truth | {"annotations": []})
    scored = evaluate(expected, found, kind)
    scored.params.maxDets = sorted({1, 10, COCO_DETECTIONS, limit})
    scored.evaluate()
    return scored


def _matched_together(truth: dict[str, Any], results: list[Result], kind: Kind, limit: int, judges: Judges) -> Any:
    """`_matched`, each process some of the images; what all have matched is put together as one would have it."""
    images = sorted(image["id"] for image in truth["images"])
    own = set(images[judges.index :: judges.count])
    part = truth | {
        "images": [image for image in truth["images"] if image["id"] in own],
        "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in own],
    }
    mine: list[Any] = []  # stays here; only what is matched goes to the others

    def match() -> str:
        mine.append(_matched(part, [result for result in results if result["image_id"] in own], kind, False, limit))
        return _as_text(mine[0].evalImgs)

    texts = judges.gather(match)
    scored = mine[0]
    # A row for each class and size, in which every process has filled every ``count``-th column.
    rows = len(scored.params.catIds) * len(scored.params.areaRng)
    whole = np.empty((rows, len(images)), object)
    for place, text in enumerate(texts):
        columns = whole[:, place :: judges.count]
        columns[:] = _of_text(text).reshape(columns.shape)
    scored.params.imgIds = images
    scored._paramsEval = scored.params  # what `accumulate` takes for the settings of `evaluate`
    scored.evalImgs = whole.ravel().tolist()
    return scored


_MATCHED = ("dtMatches", "dtIgnore")  #: of pycocotools' result for an image: ``[IoU, detections]``, 0 or not


def _as_text(matched: Sequence[Any]) -> str:
    """What pycocotools has matched, in so far as its `accumulate` reads it; None where an image has nothing."""
    present = [each for each in matched if each is not None]
    columns = {
        "present": np.array([each is not None for each in matched], np.bool_),
        "detections": np.array([len(each["dtScores"]) for each in present], np.int64),
        "objects": np.array([len(each["gtIgnore"]) for each in present], np.int64),
        "scores": np.concatenate([np.zeros(0), *(each["dtScores"] for each in present)]),
        "gtIgnore": np.concatenate([np.zeros(0), *(each["gtIgnore"] for each in present)]) != 0,
    }
    for name in _MATCHED:
        # Images first, so that they can be told apart by the numbers of their detections.
        columns[name] = np.concatenate([np.zeros((0, 10)), *(each[name].T for each in present)]) != 0
    file = io.BytesIO()
    np.savez_compressed(file, **columns)
    return base64.b64encode(file.getvalue()).decode()


def _of_text(text: str) -> NDArray[Any]:
    """The inverse of `_as_text`, as an array of dictionaries and None."""
    with np.load(io.BytesIO(base64.b64decode(text))) as file:
        columns = dict(file)
    after = np.cumsum(columns["detections"])[:-1]
    parts = {"dtScores": np.split(columns["scores"], after)}
    parts |= {name: [each.T for each in np.split(columns[name], after)] for name in _MATCHED}
    parts["gtIgnore"] = np.split(columns["gtIgnore"], np.cumsum(columns["objects"])[:-1])
    matched = np.empty(len(columns["present"]), object)
    for number, place in enumerate(np.flatnonzero(columns["present"])):
        matched[place] = {name: arrays[number] for name, arrays in parts.items()}
    return matched


def _indexed(index: Any, dataset: dict[str, Any]) -> Any:
    indexed = index()
    # Copied, because pycocotools writes into the annotations.
    indexed.dataset = dataset | {"annotations": [dict(annotation) for annotation in dataset["annotations"]]}
    indexed.createIndex()
    return indexed


def _fast_classes() -> tuple[Any, Any]:
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ValueError("fast evaluation needs faster-coco-eval: pip install 'jaxdet[fast-eval]'") from error
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _names(categories: Mapping[int, str]) -> list[str]:
    """A name of its own for each category."""
    names: list[str] = []
    for category_id, name in categories.items():
        names.append(f"{name} ({category_id})" if name in names else name)
    return names


def _summary(precision: NDArray[np.float64], recall: NDArray[np.float64], limit: int) -> dict[str, float]:
    """COCO's numbers of what `_evaluated` returns, or of some of its classes."""
    precisions, recalls = precision[..., 2], recall[..., 2]  # of 100 detections
    numbers = {"AP": precisions[..., 0], "AP50": precisions[0, ..., 0], "AP75": precisions[5, ..., 0]}
    numbers |= {f"AP{end}": precisions[..., size] for size, end in enumerate(_SIZES) if size}
    numbers |= {"AR1": recall[..., 0, 0], "AR10": recall[..., 0, 1], "AR100": recalls[..., 0]}
    numbers |= {f"AR{end}": recalls[..., size] for size, end in enumerate(_SIZES) if size}
    if limit != COCO_DETECTIONS:
        more = precision[..., 0, -1]
        numbers |= {f"AP@{limit}": more, f"AP50@{limit}": more[0], f"AP75@{limit}": more[5]}
        numbers[f"AR{limit}"] = recall[..., 0, -1]
    return {name: _mean(values) for name, values in numbers.items()}


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what there is ground truth for, -1 without any."""
    known_values = values[values > -1]
    return float(known_values.mean()) if known_values.size else -1.0
