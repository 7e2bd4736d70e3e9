"""Time and size of a report on made detections of made objects.

    python -m benchmarks.experiments.report_speed --images 5000 --per-image 7.2 --detections 100

A detection is near an object, with another class or another box now and then, or lies anywhere.  Without pictures:
these cost what it takes to read and to write a JPEG, for each image.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from jaxdet.report import report
from jaxdet.runtime.files import write_json

HW = (480, 640)


def made(
    images: int, per_image: float, detections: int, *, classes: int = 80, masks: bool = True, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth and results in COCO's format.

    Args:
        images: number of images, of 480 x 640 pixels.
        per_image: mean number of objects, one in fifty of them a crowd region.
        detections: of each image.
        classes: K.
        masks: ellipses in the boxes.
        seed: of all draws.
    """
    draw = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        number = int(draw.poisson(per_image))
        boxes, labels = _boxes(draw, number), draw.integers(classes, size=number)
        for box, label in zip(boxes, labels, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1}
            crowd = int(draw.random() < 0.02)
            annotations.append(annotation | _shape(box, masks) | {"area": float(box[2] * box[3]), "iscrowd": crowd})
        for box, label, score in zip(*_found(draw, boxes, labels, detections, classes), strict=True):
            result = {"image_id": image, "category_id": int(label) + 1, "score": float(score)}
            results.append(result | _shape(box, masks))
    truth = {
        "images": [
            {"id": i, "file_name": f"{i:06}.jpg", "height": HW[0], "width": HW[1]} for i in range(1, images + 1)
        ],
        "categories": [{"id": label + 1, "name": f"class {label}"} for label in range(classes)],
        "annotations": annotations,
    }
    return truth, results


def _boxes(draw: np.random.Generator, number: int) -> Any:
    """``[number, 4]`` x, y, width, height."""
    size = np.exp(draw.uniform(np.log(12), np.log(280), (number, 2)))
    return np.concatenate([draw.uniform(0, 1, (number, 2)) * (np.array(HW[::-1]) - size), size], 1).round(1)


def _found(draw: np.random.Generator, boxes: Any, labels: Any, number: int, classes: int) -> tuple[Any, Any, Any]:
    found, scores = _boxes(draw, number), draw.beta(0.5, 3, number)
    kinds = draw.integers(classes, size=number)
    if len(boxes):
        near = draw.random(number) < 0.4
        which = draw.integers(len(boxes), size=number)
        moved = boxes[which] + draw.normal(0, 0.12, (number, 4)) * np.tile(boxes[which, 2:], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], 2)
        found = np.where(near[:, None], moved, found)
        kinds = np.where(near & (draw.random(number) < 0.8), labels[which], kinds)
        scores = np.where(near, draw.beta(2, 2, number), scores)
    return found.round(1), kinds, scores.round(3)


def _shape(box: Any, masks: bool) -> dict[str, Any]:
    x, y, width, height = (float(value) for value in box)
    shape: dict[str, Any] = {"bbox": [x, y, width, height]}
    if masks:
        turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        points = np.stack([x + width * (1 + np.cos(turn)) / 2, y + height * (1 + np.sin(turn)) / 2], 1)
        mask = coco_mask.frPyObjects([points.ravel().tolist()], *HW)[0]
        shape["segmentation"] = mask | {"counts": mask["counts"].decode()}
    return shape


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-image", type=float, default=7.2, help="mean number of objects")
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--boxes", action="store_true", help="without masks")
    parser.add_argument("--fast", action="store_true", help="score by faster-coco-eval")
    parser.add_argument("--out", help="keep the report here")
    args = parser.parse_args(arguments)
    truth, results = made(args.images, args.per_image, args.detections, masks=not args.boxes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out = Path(args.out) if args.out else folder / "report"
        write_json(folder / "truth.json", truth, indent=None)
        write_json(folder / "results.json", results, indent=None)
        start = time.perf_counter()
        report(results=folder / "results.json", truth=folder / "truth.json", out=out, fast=args.fast)
        seconds = time.perf_counter() - start
        page = (out / "index.html").stat().st_size
        rest = sum(path.stat().st_size for path in (out / "images").glob("*.js"))
    print(f"{args.images} images, {len(truth['annotations'])} objects, {len(results)} detections: {seconds:.1f} s, "
          f"index.html {page / 1e6:.1f} MB, images/*.js {rest / 1e6:.1f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
