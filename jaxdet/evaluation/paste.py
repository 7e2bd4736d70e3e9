"""From a mask head's small map to the pixels of an image, on the host.

The rule is the reference's: a pixel asks the map at its centre, bilinearly, where the cells of the map divide the
box evenly, values sit at the cells' centres, and everything outside the map is 0 (``grid_sample`` with
``align_corners=False``).  Bilinear weights separate into rows and columns, and a pixel without overlap with the
box is 0 anyway, so an instance costs what its box covers; it goes straight to run lengths, never to a stack of
image-sized masks.
"""

from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Floats: TypeAlias = NDArray[np.float32]


class Rle(TypedDict):
    """A mask as COCO's results have it: run lengths down the columns, compressed to text."""

    size: list[int]  #: height, width
    counts: str


def paste_mask(
    probabilities: NDArray[np.floating], box: NDArray[np.floating], hw: tuple[int, int], threshold: float = 0.5
) -> NDArray[np.bool_]:
    """Paint one instance.

    Args:
        probabilities: ``[m, n]`` inside the box, 0..1.
        box: ``[4]`` x1, y1, x2, y2 in pixels of the image to paint; may reach outside of it.
        hw: height and width of the image.
        threshold: the least probability that counts as inside.

    Returns:
        ``[h, w]``; all False for a box without extent or with a coordinate that is not finite.

    Raises:
        ValueError: shapes other than these, or a size below 1.
    """
    top, left, inside = _window(probabilities, box, hw, threshold)
    mask = np.zeros(hw, bool)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def paste_rle(
    probabilities: NDArray[np.floating], box: NDArray[np.floating], hw: tuple[int, int], threshold: float = 0.5
) -> Rle:
    """``paste_mask`` as run lengths, at a cost (time and memory) that goes with the box and not with the image."""
    top, left, inside = _window(probabilities, box, hw, threshold)
    return _encode(inside, top, left, hw)


def paste_masks(
    probabilities: NDArray[np.floating], boxes: NDArray[np.floating], hw: tuple[int, int], threshold: float = 0.5
) -> list[Rle]:
    """``paste_rle`` of each ``probabilities [D, m, n]`` in its box of ``boxes [D, 4]``, in order."""
    if len(probabilities) != len(boxes):
        given = f"{len(probabilities)} masks, {len(boxes)} boxes"
        raise ValueError(f"paste_masks: expected a box for each mask, got {given}")
    return [paste_rle(each, box, hw, threshold) for each, box in zip(probabilities, boxes, strict=True)]


def _window(
    probabilities: NDArray[np.floating], box: NDArray[np.floating], hw: tuple[int, int], threshold: float
) -> tuple[int, int, NDArray[np.bool_]]:
    """The part of the image that the box can reach: its top, its left, and which of its pixels are inside."""
    if probabilities.ndim != 2 or min(probabilities.shape) < 1:
        raise ValueError(f"paste: expected a map [m, n] for one instance, got shape {probabilities.shape}")
    if box.shape != (4,):
        raise ValueError(f"paste: expected a box [4] for one instance, got shape {box.shape}")
    if min(hw) < 1:
        raise ValueError(f"paste: expected an image of at least 1 x 1 pixels, got height, width = {hw}")
    with np.errstate(over="ignore"):
        low, high = box.astype(np.float32).reshape(2, 2)
        extent = high - low
    if not (np.isfinite(box).all() and np.isfinite(extent).all() and (extent > 0).all()):
        return 0, 0, np.zeros((0, 0), bool)
    left, column_taps, column_weights = _taps(probabilities.shape[1], low[0], high[0], hw[1])
    top, row_taps, row_weights = _taps(probabilities.shape[0], low[1], high[1], hw[0])
    framed = np.pad(probabilities.astype(np.float32), 1)  # the ring of zeros is what lies outside the map
    lines = _blend(framed, row_taps, row_weights)
    values = _blend(lines.T.copy(), column_taps, column_weights)  # columns first, as run lengths want them
    return top, left, (values >= threshold).T


def _blend(rows: Floats, taps: NDArray[np.intp], weights: Floats) -> Floats:
    """Two rows ``rows[taps[:, p]]`` mixed by ``weights[:, p]``, for each p."""
    mixed: Floats = rows[taps[0]] * weights[0][:, None]
    mixed += rows[taps[1]] * weights[1][:, None]
    return mixed


def _taps(cells: int, low: np.float32, high: np.float32, limit: int) -> tuple[int, NDArray[np.intp], Floats]:
    """Linear interpolation along one axis.

    Returns:
        The first pixel ``start`` that the map can reach; for each of the p pixels from there on the two cells
        ``[2, p]`` (of the map with its ring) that it looks at; and their weights ``[2, p]``.
    """
    reach = (np.float64(high) - low) / cells  # a whole cell: half would do, rounding has room
    start = int(np.clip(np.floor(low - reach), 0, limit))
    stop = int(np.clip(np.ceil(high + reach), start, limit))
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    # in float32 and in this order as the reference: a probability of exactly one half must fall to the same side
    position = ((centres - low) / (high - low) * 2 - 1 + 1) * np.float32(cells / 2) - np.float32(0.5)
    first = np.clip(np.floor(position), -1, cells - 1)
    share = np.clip(position - first, 0, 1).astype(np.float32)
    taps = np.stack([first, first + 1]).astype(np.intp) + 1
    return start, taps, np.stack([1 - share, share])


def _encode(inside: NDArray[np.bool_], top: int, left: int, hw: tuple[int, int]) -> Rle:
    """Run lengths of a window's pixels in an image that is False elsewhere."""
    height, width = hw
    columns = np.zeros((inside.shape[1], inside.shape[0] + 2), np.int8)  # a False above and below ends every run
    columns[:, 1:-1] = inside.T
    change = np.diff(columns, axis=1)
    x, y = np.nonzero(change == 1)
    starts = (x + left) * height + y + top
    x, y = np.nonzero(change == -1)
    ends = (x + left) * height + y + top
    joined = starts[1:] == ends[:-1]  # from the bottom of one column to the top of the next
    bounds = np.setdiff1d(np.concatenate([starts, ends]), ends[:-1][joined])
    edges = np.concatenate([[0], bounds, [height * width]])
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
