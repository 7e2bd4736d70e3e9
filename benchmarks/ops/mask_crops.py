"""What does it cost that masks travel as small crops?

Mean IoU of the 28x28 training targets made from crops with those made from full-resolution masks, on boxes as
annotated and on jittered ones, as a table over the size of the crop:

    python -m benchmarks.ops.mask_crops --images FOLDER --annotations JSON --sizes 28 56 80 112 --limit 200

The targets are made by the plain NumPy RoIAlign below (aligned, adaptive sampling; average, then >= 0.5).
"""

import argparse
import dataclasses

import numpy as np
from numpy.typing import NDArray

from jaxdet.data import CocoFolder, Data, Record, Source, open_source
from jaxdet.data.masks import decode_mask
from jaxdet.data.pipeline.transforms import View, view_of

TARGET = 28


def sampling_matrix(start: float, end: float, cells: int, pixels: int) -> NDArray[np.float64]:
    """``[cells, pixels]``: each cell's mean of its bilinear samples along one axis, as a weighting of the pixels.

    ``start`` and ``end`` are in pixels of the bitmap, the first pixel covering 0..1.  Samples beyond one pixel outside
    count as zero; those between the border and the outermost pixel's centre take that pixel (RoIAlign's rules).
    """
    size = (end - start) / cells
    count = int(np.ceil(size))
    cell, sample = np.indices((cells, count)).reshape(2, -1)
    at = start - 0.5 + (cell + (sample + 0.5) / max(count, 1)) * size
    cell, at = cell[(at >= -1) & (at <= pixels)], at[(at >= -1) & (at <= pixels)]
    at = np.clip(at, 0, pixels - 1)
    low = at.astype(int)
    matrix = np.zeros((cells, pixels))
    np.add.at(matrix, (cell, low), 1 - (at - low))
    np.add.at(matrix, (cell, np.minimum(low + 1, pixels - 1)), at - low)
    return matrix / max(count, 1)


def target(
    bitmap: NDArray[np.uint8], frame: NDArray[np.float32], box: NDArray[np.float32], size: int = TARGET
) -> NDArray[np.bool_]:
    """``[size, size]``: the part of a mask inside ``box``, from a bitmap that covers ``frame``."""
    height, width = bitmap.shape
    x1, y1, x2, y2 = (float(value) for value in frame)
    scale_x, scale_y = width / (x2 - x1), height / (y2 - y1)
    rows = sampling_matrix((float(box[1]) - y1) * scale_y, (float(box[3]) - y1) * scale_y, size, height)
    columns = sampling_matrix((float(box[0]) - x1) * scale_x, (float(box[2]) - x1) * scale_x, size, width)
    near_y, near_x = np.flatnonzero(rows.any(axis=0)), np.flatnonzero(columns.any(axis=0))
    average: NDArray[np.float64] = rows[:, near_y] @ bitmap[np.ix_(near_y, near_x)].astype(np.float64)
    return np.asarray(average @ columns[:, near_x].T >= 0.5)


def jittered(box: NDArray[np.float32], view: View, rng: np.random.Generator) -> NDArray[np.float32]:
    """A box as a proposal might be: each side moved by up to a fifth of the width or height, inside the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    moved = box + rng.uniform(-0.2, 0.2, 4) * np.array([width, height, width, height])
    limits = np.array([view.hw[1], view.hw[0]] * 2)
    return np.asarray(np.clip(moved, 0, limits), np.float32)


def overlaps(record: Record, data: Data, sizes: list[int], rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """For each instance of a record ``[2, len(sizes)]``: IoU of its targets, for the annotated and a jittered box."""
    view = view_of((record.image.shape[0], record.image.shape[1]), data)
    results = []
    for annotation in record.annotations:
        if annotation.crowd:
            continue
        box = view.boxes(np.array([annotation.bbox]))[0]
        mask = decode_mask(annotation.segmentation, view.original_hw)
        crops = [view.cropped_mask(mask, size) for size in sizes]
        whole, frame = view.mask(mask), np.array([0, 0, view.canvas[1], view.canvas[0]], np.float32)
        rows = []
        for chosen in (box, jittered(box, view, rng)):
            exact = target(whole, frame, chosen)
            rows.append([_iou(exact, target(bitmap, crop_frame, chosen)) for bitmap, crop_frame in crops])
        results.append(np.array(rows))
    return results


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


def measure(source: Source, data: Data, sizes: list[int], limit: int) -> tuple[NDArray[np.float64], int]:
    """Mean IoU ``[2, len(sizes)]`` (annotated, jittered boxes) over the first ``limit`` images, and the instances."""
    rng = np.random.default_rng(0)
    results = [row for index in range(min(limit, len(source))) for row in overlaps(source[index], data, sizes, rng)]
    return np.mean(results, axis=0), len(results)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="IoU of mask targets from crops with full-resolution ones")
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 56, 80, 112, 160])
    parser.add_argument("--limit", type=int, default=10**9, help="number of images")
    parser.add_argument("--short_side", type=int, default=800)
    parser.add_argument("--long_side", type=int, default=1333)
    options = parser.parse_args()
    data = dataclasses.replace(Data(), short_side=options.short_side, long_side=options.long_side)
    source = open_source(CocoFolder(options.images, options.annotations))
    table, count = measure(source, data, options.sizes, options.limit)
    print(f"{count} instances, images resized to {options.short_side} x {options.long_side}")
    print("mask_size  annotated  jittered")
    for size, (annotated, moved) in zip(options.sizes, table.T, strict=True):
        print(f"{size:9d}  {annotated:9.4f}  {moved:8.4f}")


if __name__ == "__main__":
    main()
