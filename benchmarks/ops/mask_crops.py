"""What does it cost that masks travel as small crops, and what is gained by drawing these from polygons at once?

Mean IoU of the 28x28 training targets with those of the polygons themselves, drawn with 16 cells to a pixel, on boxes
as annotated and on jittered ones, as a table over the size of the crop, and beside it of the masks as the reference has
them, pixels of the stored image that are resized with it; and the processor's microseconds to make one:

    python -m benchmarks.ops.mask_crops --images FOLDER --annotations JSON --sizes 28 56 80 112 --limit 200

The targets are made by the plain NumPy RoIAlign below (aligned, adaptive sampling; average, then >= 0.5).
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import markdown
from jaxdet.data import CocoFolder, Data, Record, Source, open_source
from jaxdet.data.masks import crop_polygons, decode_mask, read_polygons
from jaxdet.data.pipeline.transforms import View, view_of

Drawn: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float32]]  #: a bitmap and the frame that it covers

TARGET = 28
FINE = 16  #: cells to a pixel of what the rest is compared with
FINE_SIZE = 1602  #: side of its bitmap; larger instances have larger cells


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


def overlaps(
    record: Record, data: Data, sizes: list[int], rng: np.random.Generator
) -> list[tuple[NDArray[np.float64], list[float]]]:
    """For each instance of polygons, of crops of the polygons, crops of bitmaps, and the whole bitmap:

    ``[2, 2 * len(sizes) + 1]`` IoU of the targets, for the annotated and a jittered box; and microseconds to make each.
    """
    view = view_of((record.image.shape[0], record.image.shape[1]), data)
    results = []
    for annotation in record.annotations:
        outlines = annotation.segmentation
        if annotation.crowd or not isinstance(outlines, list):
            continue
        fine = drawn_fine(outlines, view)
        if fine is None:
            continue
        ways = [partial(of_polygons, outlines, view, size) for size in sizes]
        ways += [partial(of_bitmap, outlines, view, size) for size in sizes]
        ways.append(partial(whole_bitmap, outlines, view))
        masks, times = zip(*(timed(way) for way in ways), strict=True)
        box = view.boxes(np.array([annotation.bbox]))[0]
        rows = []
        for chosen in (box, jittered(box, view, rng)):
            exact = target(*fine, chosen)
            rows.append([_iou(exact, target(bitmap, frame, chosen)) for bitmap, frame in masks])
        results.append((np.array(rows), list(times)))
    return results


def drawn_fine(outlines: list[list[float]], view: View) -> Drawn | None:
    """What the rest is compared with; None of outlines that are too long for it."""
    moved = [points * view.scale[::-1] for points in read_polygons(outlines)]
    return crop_polygons(moved, ((0, view.hw[0]), (0, view.hw[1])), (1 / FINE, 1 / FINE), FINE_SIZE)


def of_polygons(outlines: list[list[float]], view: View, size: int) -> Drawn:
    """As training makes them."""
    return view.cropped_polygons(read_polygons(outlines), size)


def of_bitmap(outlines: list[list[float]], view: View, size: int) -> Drawn:
    """As training makes them of run lengths."""
    return view.cropped_mask(decode_mask(outlines, view.original_hw), size)


def whole_bitmap(outlines: list[list[float]], view: View) -> Drawn:
    """As the reference has them, and training with ``data.whole_masks``."""
    mask = view.mask(decode_mask(outlines, view.original_hw))
    return mask, np.array([0, 0, view.canvas[1], view.canvas[0]], np.float32)


def timed(way: Callable[[], Drawn]) -> tuple[Drawn, float]:
    """What it makes, and the microseconds of the processor that it takes."""
    begin = time.thread_time()  # and not the time of the process, whose threads for products wait for the next one
    drawn = way()
    return drawn, 1e6 * (time.thread_time() - begin)


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


def measure(
    source: Source, data: Data, sizes: list[int], limit: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Over the first ``limit`` images mean IoU and median time as of `overlaps`, and the number of instances."""
    rng = np.random.default_rng(0)
    results = [row for index in range(min(limit, len(source))) for row in overlaps(source[index], data, sizes, rng)]
    ious, times = zip(*results, strict=True)
    return np.mean(ious, axis=0), np.median(times, axis=0), len(results)


def table(ious: NDArray[np.float64], times: NDArray[np.float64], sizes: list[int]) -> str:
    """A line for each size, and one for whole masks."""
    columns = zip(*ious, times.tolist(), strict=True)
    cells = [[f"{annotated:.4f}", f"{moved:.4f}", us] for annotated, moved, us in columns]
    lines = [[str(size), *cells[place], *cells[len(sizes) + place]] for place, size in enumerate(sizes)]
    lines.append(["whole", "", "", "", *cells[-1]])
    return markdown(["mask_size", "polygons", "moved boxes", "us", "bitmaps", "moved boxes", "us"], lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="IoU of mask targets with those of the polygons")
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 56, 80, 112, 160])
    parser.add_argument("--limit", type=int, default=10**9, help="number of images")
    parser.add_argument("--short_side", type=int, default=800)
    parser.add_argument("--long_side", type=int, default=1333)
    options = parser.parse_args()
    data = dataclasses.replace(Data(), short_side=options.short_side, long_side=options.long_side)
    source = open_source(CocoFolder(options.images, options.annotations))
    ious, times, count = measure(source, data, options.sizes, options.limit)
    print(f"{count} instances of polygons, images resized to {options.short_side} x {options.long_side}\n")
    print(table(ious, times, options.sizes))


if __name__ == "__main__":
    main()
