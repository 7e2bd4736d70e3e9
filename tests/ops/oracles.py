"""What the ops compute, written a second time as slow loops over single boxes, bins and pixels."""

import math

import numpy as np

Array = np.ndarray
GARBAGE = (0.0, 7.0, np.nan)
"""What padded slots are filled with in tests of padding."""


def random_boxes(rng: np.random.Generator, number: int, extent: float = 40.0) -> Array:
    """Boxes with positive sides inside ``[0, extent]``, float32."""
    corners = np.sort(rng.uniform(0, extent, (number, 2, 2)), axis=1)
    corners[:, 1] += 0.5
    return corners.reshape(number, 4).astype(np.float32)


def padded(array: Array, number: int, value: float) -> Array:
    """``number`` more rows, filled with ``value`` (with 7 where the dtype has no NaN)."""
    if array.dtype == bool:
        value = False
    elif not np.issubdtype(array.dtype, np.floating):
        value = 7 if math.isnan(value) else int(value)
    return np.concatenate([array, np.full((number, *array.shape[1:]), value, array.dtype)])


def iou(a: Array, b: Array) -> float:
    """Of two boxes, in float32 like the ops."""
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


def nms(boxes: Array, scores: Array, threshold: float, limit: int) -> list[int]:
    """The sequential rule: walk down the scores, keep what no kept box covers."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[j], boxes[i]) <= threshold for j in kept):
            kept.append(i)
    return kept[:limit]


def match(
    boxes: Array, truths: Array, positive: float, negative: float, minimum: float, low_quality: bool
) -> list[int | None]:
    """For each box its ground truth, -1 where negative, None where neither."""
    found: list[int | None] = []
    table = [[iou(truth, box) for truth in truths] for box in boxes]
    for row in table:
        best = max(range(len(truths)), key=lambda g: row[g], default=None)
        value = -1.0 if best is None else row[best]
        found.append(best if best is not None and value >= positive else -1 if value < negative else None)
    for g in range(len(truths)) if low_quality else ():
        highest = max(row[g] for row in table)
        for i, row in enumerate(table):
            if row[g] == highest and highest >= minimum:
                found[i] = g
    return found


def bilinear(image: Array, y: float, x: float) -> Array:
    """``image [h, w, C]`` at a point in pixel indices: 0 beyond a pixel outside, the edge's value on the way there."""
    height, width = image.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
    below = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
    return above * (1 - (y - top)) + below * (y - top)


def roi_align(image: Array, box: Array, scale: float, size: tuple[int, int], ratio: int, aligned: bool) -> Array:
    """Crop ``[*size, C]`` of one box, one sample at a time, float64."""
    image = image.astype(np.float64)
    x1, y1, x2, y2 = (float(np.float32(side) * np.float32(scale)) - (0.5 if aligned else 0.0) for side in box)
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1.0), max(width, 1.0)
    bin_h, bin_w = height / size[0], width / size[1]
    rows, columns = (ratio, ratio) if ratio else (math.ceil(bin_h), math.ceil(bin_w))
    out = np.zeros((*size, image.shape[2]))
    for i in range(size[0]):
        for j in range(size[1]):
            for k in range(rows):
                for m in range(columns):
                    y = y1 + i * bin_h + (k + 0.5) * bin_h / rows
                    x = x1 + j * bin_w + (m + 0.5) * bin_w / columns
                    out[i, j] += bilinear(image, y, x) / (rows * columns)
    return out


def sa_roi_align(
    image: Array, prob: Array, box: Array, scale: float, size: tuple[int, int], ratio: int, aligned: bool
) -> Array:
    """Crop ``[*size, C]`` of one box with its own map ``prob [Hp, Wp]``, one sample at a time, float64."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(np.float32(side) * np.float32(scale)) for side in box)
    height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    rows = ratio or max(math.ceil(height / size[0]), 0)
    columns = ratio or max(math.ceil(width / size[1]), 0)
    out = np.zeros((*size, image.shape[2]))
    for i, j, k, m in np.ndindex(*size, rows, columns):
        v, u = (i + (k + 0.5) / rows) / size[0], (j + (m + 0.5) / columns) / size[1]
        there = bilinear(image.astype(np.float64), y1 - shift + v * height, x1 - shift + u * width)
        shown = bilinear(prob.astype(np.float64)[..., None], v * len(prob) - shift, u * len(prob[0]) - shift)
        out[i, j] += there * shown / (rows * columns)
    return out


def _place_of_pixel(i: int, before: int, after: int, grid: str) -> float:
    """Where pixel ``i`` of ``after`` lies among ``before`` pixels."""
    if grid == "cells":
        return (i + 0.5) * before / after - 0.5
    if grid == "corners":
        return i * (before - 1) / (after - 1) if after > 1 else 0.0
    factor = after // before
    return (i - factor // 2) / factor


def resize(x: np.ndarray, hw: tuple[int, int], grid: str) -> np.ndarray:
    """Bilinear resizing of ``[B, H, W, C]`` on one of the grids of `jaxdet.ops.bilinear`, pixel by pixel."""
    before = x.shape[1:3]
    out = np.zeros((x.shape[0], *hw, x.shape[3]))
    for i in range(hw[0]):
        for j in range(hw[1]):
            y, u = (
                min(max(_place_of_pixel(k, b, a, grid), 0), b - 1) for k, b, a in zip((i, j), before, hw, strict=True)
            )
            y0, u0 = int(y), int(u)
            y1, u1 = min(y0 + 1, before[0] - 1), min(u0 + 1, before[1] - 1)
            upper = x[:, y0, u0] * (1 - (u - u0)) + x[:, y0, u1] * (u - u0)
            lower = x[:, y1, u0] * (1 - (u - u0)) + x[:, y1, u1] * (u - u0)
            out[:, i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out
