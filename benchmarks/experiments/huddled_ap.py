"""AP over objects that huddle, beside that over all.

    python -m benchmarks.experiments.huddled_ap instances_val.json results.json

An instance is huddled if its box has an IoU of 0.2 or more with that of another one in the image, of whatever category.
The others do not count then: they are missed without a price, and a detection that finds one is no false positive.
"""

import argparse
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.measure import markdown
from jaxdet.evaluation import check_truth, read_results, score
from jaxdet.evaluation.results import Result, Truth
from jaxdet.runtime.files import read_json_file

LEAST_IOU = 0.2
_NO_SIZE = 2e10
"""An area beyond all of COCO's ranges, which end at 1e10.  What is outside a range is ignored in it, as an object that
one detection may find; ``iscrowd`` would let many find it, and pycocotools overwrites ``ignore`` with that."""

_OF_IMAGES = ("images", "id"), ("annotations", "image_id")


def huddled(annotations: Sequence[Mapping[str, Any]], least_iou: float = LEAST_IOU) -> NDArray[np.bool_]:
    """Which annotations ``[A]`` are instances whose box overlaps another instance's so much; crowd regions are none."""
    of_image: dict[Any, list[int]] = defaultdict(list)
    for place, annotation in enumerate(annotations):
        if not annotation.get("iscrowd"):
            of_image[annotation["image_id"]].append(place)
    found = np.zeros(len(annotations), bool)
    for places in of_image.values():
        boxes = np.array([annotations[place]["bbox"] for place in places], np.float64)
        overlaps = np.array(coco_mask.iou(boxes, boxes, [0] * len(boxes)))
        np.fill_diagonal(overlaps, 0)
        found[places] = (overlaps >= least_iou).any(1)
    return found


def only_huddled(truth: Truth, least_iou: float = LEAST_IOU) -> dict[str, Any]:
    """The ground truth of which only huddled instances count; ``truth`` is left as it is."""
    annotations = truth["annotations"]
    counted = [
        annotation if huddles or annotation.get("iscrowd") else {**annotation, "area": _NO_SIZE}
        for annotation, huddles in zip(annotations, huddled(annotations, least_iou), strict=True)
    ]
    return {**truth, "annotations": counted}


def of_images(truth: Truth, results: Sequence[Result], ids: Collection[int]) -> tuple[dict[str, Any], list[Result]]:
    """Ground truth and results of these images alone."""
    kept = {name: [item for item in truth[name] if item[key] in ids] for name, key in _OF_IMAGES}
    return {**truth, **kept}, [result for result in results if result["image_id"] in ids]


def scores(
    truth: Truth, results: Sequence[Result], *, masks: bool = True, least_iou: float = LEAST_IOU
) -> dict[str, dict[str, float]]:
    """COCO's numbers (``bbox/AP``, ``segm/AP50``, ...) over ``all`` instances and over ``huddled`` ones.

    Raises:
        ValueError: as `jaxdet.evaluation.score`.
    """
    check_truth(truth, masks=masks)
    chosen = {"all": truth, "huddled": only_huddled(truth, least_iou)}
    return {name: score(part, results, masks=masks).metrics for name, part in chosen.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", help="an instances json")
    parser.add_argument("results", nargs="*", help="COCO results, a row each")
    parser.add_argument("--iou", type=float, default=LEAST_IOU, help="least overlap of huddled boxes (default 0.2)")
    args = parser.parse_args(arguments)
    truth = read_json_file(args.truth, "ground truth")
    check_truth(truth)
    instances = [annotation for annotation in truth["annotations"] if not annotation.get("iscrowd")]
    print(f"{huddled(instances, args.iou).sum()} of {len(instances)} instances are huddled")
    lines, head = [], [""]
    for path in args.results:
        found = scores(truth, read_results(path, truth), least_iou=args.iou)
        kinds = [kind for kind in ("bbox", "segm") if f"{kind}/AP" in found["all"]]
        head = ["", *(f"{kind} AP, {name}" for kind in kinds for name in found)]
        lines.append([path, *(found[name][f"{kind}/AP"] for kind in kinds for name in found)])
    if lines:
        print(f"\n{markdown(head, lines)}")


if __name__ == "__main__":
    main()
