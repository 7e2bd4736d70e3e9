"""COCO's twelve numbers, computed by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.data.masks import encode_mask
from jaxdet.data.validation.entries import annotation_of, check_categories, each, whole
from jaxdet.evaluation.results import Result, Truth, check_ids, image_sizes

STATISTICS = ("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", "AR1", "AR10", "AR100", "AR_s", "AR_m", "AR_l")
"""Names of COCO's numbers in pycocotools' order."""

Kind: TypeAlias = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Scores:
    """What COCO's evaluation says.  -1, as in pycocotools, where the ground truth has nothing of that kind."""

    metrics: dict[str, float]  #: ``bbox/AP``, ``bbox/AP50``, ... ``segm/AR_l``
    per_class: dict[str, dict[str, float]]  #: category name -> ``bbox/AP``, ``bbox/AP50``, ``bbox/AR100``, ``segm/...``


def score(truth: Truth, results: Sequence[Result], *, masks: bool = True, fast: bool = False) -> Scores:
    """Score detections against the whole ground truth: every image counts, those without a detection too.

    Args:
        truth: an instances json as a dict; left as it is.
        results: COCO results; left as they are.  Without any, AP is 0.
        masks: compare masks too, if the results (or, where these are empty, the ground truth) have them; False:
            boxes alone, and nobody looks at masks.  Boxes of results that hold masks only are the masks' boxes.
        fast: score by faster-coco-eval instead (extra ``fast-eval``): the same numbers sooner.

    Raises:
        ValueError: results of unknown images or categories, some with a mask and some without, or a ground truth
            that is not COCO's.
    """
    kinds = _kinds(truth, results) if masks else ("bbox",)
    prepared = _complete(truth, masks="segm" in kinds)
    check_ids(results, truth)
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in _names(truth).values()}
    for kind in kinds:
        scored = _evaluated(prepared, [_only(kind, result) for result in results], kind, fast)
        metrics |= {f"{kind}/{name}": float(value) for name, value in zip(STATISTICS, scored.stats[:12], strict=True)}
        for name, row in _rows(scored, truth):
            per_class[name] |= {f"{kind}/{key}": value for key, value in row.items()}
    return Scores(metrics, per_class)


def _kinds(truth: Truth, results: Sequence[Result]) -> tuple[Kind, ...]:
    # Without results the ground truth decides: a model that found nothing has a mask AP of 0 too.
    holders = results or truth.get("annotations", [])
    return (
        ("bbox", "segm")
        if any(isinstance(entry, Mapping) and entry.get("segmentation") for entry in holders)
        else ("bbox",)
    )


def _only(kind: Kind, result: Result) -> Result:
    """What counts for one kind.

    A mask is scored without its box, else pycocotools would sort it by the box's area into small, medium and large.
    """
    kept = {key: result[key] for key in ("image_id", "category_id", "score")}
    if kind == "bbox" and "bbox" in result:
        return kept | {"bbox": result["bbox"]}
    if "segmentation" not in result:
        raise ValueError(f"results: expected masks to score, a detection of image {result['image_id']} has none")
    if kind == "segm":
        kept["score"] = result.get("mask_score", result["score"])
    return kept | {"segmentation": result["segmentation"]}


def _complete(truth: Truth, masks: bool) -> dict[str, Any]:
    """The ground truth with what pycocotools takes for granted, every value looked at: its C code does not do that."""
    try:
        sizes = image_sizes(truth)
        check_categories(len(truth["categories"]))
        categories = each("categories", truth["categories"], lambda entry: {**entry, "id": whole(entry, "id")})
        annotations = each("annotations", truth.get("annotations", []), lambda entry: _completed(entry, sizes, masks))
        if len({annotation["id"] for annotation in annotations}) < len(annotations):
            raise ValueError("expected annotation ids that differ, got an id twice")
    except ValueError as error:
        raise ValueError(f"ground truth: {error}") from error
    images = [{**image, "id": image_id} for image, image_id in zip(truth["images"], sizes, strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _completed(annotation: Any, sizes: Mapping[int, tuple[int, int]], masks: bool) -> dict[str, Any]:
    owner, checked = whole(annotation, "image_id"), annotation_of(annotation, 0)
    if owner not in sizes:
        raise ValueError(f"expected an image for every annotation, got the image_id {owner}, which no image has")
    height, width = sizes[owner]
    nothing = {"size": [height, width], "counts": [height * width]}  # what no mask can match
    mask = annotation.get("segmentation")
    if mask and (masks or annotation.get("area") is None):
        mask = encode_mask(mask, (height, width))
    area = float(coco_mask.area(mask)) if mask and annotation.get("area") is None else checked.area
    return {
        **annotation,
        "id": checked.id,
        "image_id": owner,
        "category_id": whole(annotation, "category_id"),
        "bbox": list(checked.bbox),
        "area": area,
        "iscrowd": int(checked.crowd),
        "segmentation": mask if mask and masks else nothing,
    }


def _evaluated(truth: dict[str, Any], results: list[Result], kind: Kind, fast: bool) -> Any:
    index, evaluate = _fast_classes() if fast else (COCO, COCOeval)
    # pycocotools prints its progress, and the statistics only come with a table on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        expected = _indexed(index, truth)
        # pycocotools reads the first result without asking whether there is one.
        found = expected.loadRes(results) if results else _indexed(index, truth | {"annotations": []})
        scored = evaluate(expected, found, kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored


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


def _names(truth: Truth) -> dict[int, str]:
    """Category id -> a name of its own, by id."""
    names: dict[int, str] = {}
    for category in sorted(truth["categories"], key=lambda category: int(category["id"])):
        name = str(category.get("name", category["id"]))
        names[category["id"]] = f"{name} ({category['id']})" if name in names.values() else name
    return names


def _rows(scored: Any, truth: Truth) -> list[tuple[str, dict[str, float]]]:
    names = _names(truth)
    precision, recall = np.asarray(scored.eval["precision"]), np.asarray(scored.eval["recall"])
    rows = []
    # precision [IoU, recall, class, area, detections], recall [IoU, class, area, detections]: area 0 is all sizes, the
    # last number of detections 100, IoU 0 is 0.5.
    for k, category_id in enumerate(scored.params.catIds):
        row = {
            "AP": _mean(precision[:, :, k, 0, -1]),
            "AP50": _mean(precision[0, :, k, 0, -1]),
            "AR100": _mean(recall[:, k, 0, -1]),
        }
        rows.append((names[category_id], row))
    return rows


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what there is ground truth for, -1 without any."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
