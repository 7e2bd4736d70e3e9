"""From a mask's bitmap to the pixels of an image, on the host.

The rule is the reference's: a pixel asks the bitmap at its centre, bilinearly, where the cells of the bitmap divide its
frame evenly and values sit at the cells' centres.  Without a crop everything outside the frame is 0 (``grid_sample``
with ``align_corners=False``): the frame is where the mask ends.  With a crop the mask ends there, and beyond the
outermost centres of the frame, which is the whole canvas, the nearest value counts (``interpolate`` of torch).

Bilinear weights separate into rows and columns, and pixels that the mask cannot reach are left alone, so an instance
costs what its frame or crop covers; it goes straight to run lengths, never to a stack of image-sized masks.

Letters in shapes: D detections, m n rows and columns of a bitmap, h w those of the image, p pixels along an axis.
"""

from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

if TYPE_CHECKING:  # `structures` imports jax, which scoring a file of results does without
    from jaxdet.structures import Masks

LOGIT_RANGE = 8.0
"""Logits that travel in 8 bits are cut to this range on both sides of 0; its ends are probabilities of 0.0003."""

_Floats: TypeAlias = NDArray[np.float32]


class Rle(TypedDict):
    """A mask as COCO's results have it: run lengths down the columns, compressed to text."""

    size: list[int]  #: height, width
    counts: str


def paste_mask(
    values: NDArray[Any],
    frame: NDArray[np.floating],
    hw: tuple[int, int],
    threshold: float = 0.5,
    crop: NDArray[np.floating] | None = None,
    logits: bool = False,
) -> NDArray[np.bool_]:
    """Paint one instance.

    Args:
        values: ``[m, n]`` probabilities, 0..1, or uint8, as `inference.for_host` makes them.
        frame: ``[4]`` x1, y1, x2, y2 of what the values cover, in pixels of the image to paint; may reach outside.
        hw: height and width of the image.
        threshold: the least probability that counts as inside.
        crop: ``[4]`` box; a pixel whose centre is not inside stays empty.  None: nothing is cut.
        logits: values are logits; the threshold stays a probability.

    Returns:
        ``[h, w]``; all False for a frame or crop without extent or with a coordinate that is not finite.

    Raises:
        ValueError: shapes other than these, a size below 1, or a threshold that is no probability of a logit.
    """
    top, left, inside = _window(values, frame, hw, threshold, crop, logits)
    mask = np.zeros(hw, bool)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def paste_rle(
    values: NDArray[Any],
    frame: NDArray[np.floating],
    hw: tuple[int, int],
    threshold: float = 0.5,
    crop: NDArray[np.floating] | None = None,
    logits: bool = False,
) -> Rle:
    """``paste_mask`` as run lengths, at a cost (time and memory) that goes with the mask and not with the image."""
    top, left, inside = _window(values, frame, hw, threshold, crop, logits)
    return encode_window(inside, top, left, hw)


def paste_masks(masks: "Masks", hw: tuple[int, int]) -> list[Rle]:
    """``paste_rle`` of each of ``masks [D, m, n]``, in order; frames and crops are in pixels of the image to paint."""
    if len(masks.values) != len(masks.frames):
        given = f"{len(masks.values)} masks, {len(masks.frames)} frames"
        raise ValueError(f"paste_masks: expected a frame for each mask, got {given}")
    crops = [None] * len(masks.values) if masks.crop is None else masks.crop
    frames = snapped(masks.frames, masks.values.shape[1:]) if masks.snapped else masks.frames
    return [
        paste_rle(values, frame, hw, masks.threshold, crop, masks.logits)
        for values, frame, crop in zip(masks.values, frames, crops, strict=True)
    ]


def snapped(frames: NDArray[np.floating], cells: tuple[int, ...]) -> _Floats:
    """Frames ``[..., 4]`` of bitmaps of ``cells`` (rows, columns) as torchvision has them when it paints.

    It puts a ring of empty cells around the bitmap and cuts the corners of the box of both to whole pixels, of which
    the last one belongs to it; the bitmap keeps its share of that box.  [torchvision's roi_heads.py,
    expand_boxes and paste_mask_in_image](https://github.com/pytorch/vision/tree/main/torchvision/models/detection).
    """
    number = np.asarray([cells[1], cells[0]], np.float32)
    low, high = frames[..., :2].astype(np.float32), frames[..., 2:].astype(np.float32)
    half = (high - low) * np.float32(0.5) * ((number + 2) / number)
    centre = (low + high) * np.float32(0.5)
    first = np.trunc(centre - half)
    size = np.maximum(np.trunc(centre + half) - first + 1, 1)
    ring = size / (number + 2)
    return np.concatenate([first + ring, first + size - ring], -1)


def _window(
    values: NDArray[Any],
    frame: NDArray[np.floating],
    hw: tuple[int, int],
    threshold: float,
    crop: NDArray[np.floating] | None,
    logits: bool,
) -> tuple[int, int, NDArray[np.bool_]]:
    """The part of the image that the mask can reach: its top, its left, and which of its pixels are inside."""
    if logits and not 0 < threshold < 1:
        raise ValueError(f"paste: threshold of logits: expected more than 0 and less than 1, got {threshold}")
    top, left, sampled = _sampled(values, frame, hw, crop, logits)
    if logits:
        # The sigmoid is monotone: the logit of the threshold says the same.
        threshold = float(np.log(threshold / (1 - threshold)))
    return top, left, sampled >= threshold


def soft_mask(
    values: NDArray[Any],
    frame: NDArray[np.floating],
    hw: tuple[int, int],
    crop: NDArray[np.floating] | None = None,
    logits: bool = False,
) -> tuple[int, int, _Floats]:
    """What ``paste_mask`` compares with its threshold: probabilities of the part of the image that a mask can reach.

    Returns:
        Its top and left, and ``[p, q]`` float32; beyond it the probability is 0.
    """
    top, left, sampled = _sampled(values, frame, hw, crop, logits)
    return top, left, (1 / (1 + np.exp(-sampled))).astype(np.float32) if logits else sampled


def _sampled(
    values: NDArray[Any],
    frame: NDArray[np.floating],
    hw: tuple[int, int],
    crop: NDArray[np.floating] | None,
    logits: bool,
) -> tuple[int, int, _Floats]:
    """The part of the image that the mask can reach: its top, its left, and the values at its pixels."""
    if values.ndim != 2 or min(values.shape) < 1:
        raise ValueError(f"paste: expected a map [m, n] for one instance, got shape {values.shape}")
    if frame.shape != (4,) or (crop is not None and crop.shape != (4,)):
        given = frame.shape if crop is None else (frame.shape, crop.shape)
        raise ValueError(f"paste: expected a box [4] for one instance, got shape {given}")
    if min(hw) < 1:
        raise ValueError(f"paste: expected an image of at least 1 x 1 pixels, got height, width = {hw}")
    if not _has_extent(frame) or (crop is not None and not _has_extent(crop)):
        return 0, 0, np.zeros((0, 0), np.float32)
    low, high = frame.astype(np.float32).reshape(2, 2)
    cut = [None, None] if crop is None else [(crop[axis], crop[axis + 2]) for axis in (0, 1)]
    left, column_taps, column_weights = _taps(values.shape[1], low[0], high[0], hw[1], cut[0])
    top, row_taps, row_weights = _taps(values.shape[0], low[1], high[1], hw[0], cut[1])
    if values.dtype == np.uint8:
        values = values / np.float32(255)
        values = (values * 2 - 1) * np.float32(LOGIT_RANGE) if logits else values
    # The ring of one cell is what lies outside the frame: zeros, or with a crop the nearest value.
    framed = np.pad(values.astype(np.float32), 1, mode="constant" if crop is None else "edge")
    # Rows first: [p, n + 2], then its transpose for columns, so that both blends copy whole rows.
    lines = _blend(framed, row_taps, row_weights)
    values = _blend(lines.T.copy(), column_taps, column_weights)  # columns first, as run lengths want them
    return top, left, values.T


def _blend(rows: _Floats, taps: NDArray[np.intp], weights: _Floats) -> _Floats:
    """Two rows ``rows[taps[:, p]]`` mixed by ``weights[:, p]``, for each p."""
    mixed: _Floats = rows[taps[0]] * weights[0][:, None]
    mixed += rows[taps[1]] * weights[1][:, None]
    return mixed


def _has_extent(box: NDArray[np.floating]) -> bool:
    # A difference of large numbers may overflow to infinity, which the test below refuses.
    with np.errstate(over="ignore"):
        low, high = box.astype(np.float32).reshape(2, 2)
        extent = high - low
    return bool(np.isfinite(box).all() and np.isfinite(extent).all() and (extent > 0).all())


def _taps(
    cells: int, low: np.float32, high: np.float32, limit: int, cut: tuple[float, float] | None = None
) -> tuple[int, NDArray[np.intp], _Floats]:
    """Linear interpolation along one axis, for the pixels whose centres lie in ``cut`` if there is one.

    Returns:
        The first pixel ``start`` that the map can reach; for each of the p pixels from there on the two cells
        ``[2, p]`` (of the map with its ring) that it looks at; and their weights ``[2, p]``.
    """
    # Half a cell beyond the frame would do; a whole one leaves room for rounding.
    reach = (np.float64(high) - low) / cells
    start = int(np.clip(np.floor(low - reach), 0, limit))
    stop = int(np.clip(np.ceil(high + reach), start, limit))
    if cut is not None:
        start = int(np.clip(np.ceil(cut[0] - 0.5), start, stop))
        stop = int(np.clip(np.ceil(cut[1] - 0.5), start, stop))
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    # In float32 and in this order, as the reference: a probability of exactly one half must fall to the same side
    position = ((centres - low) / (high - low) * 2 - 1 + 1) * np.float32(cells / 2) - np.float32(0.5)
    # Cell -1 and cell ``cells`` are the ring.
    first = np.clip(np.floor(position), -1, cells - 1)
    share = np.clip(position - first, 0, 1).astype(np.float32)
    taps = np.stack([first, first + 1]).astype(np.intp) + 1
    return start, taps, np.stack([1 - share, share])


def encode_window(inside: NDArray[np.bool_], top: int, left: int, hw: tuple[int, int]) -> Rle:
    """Run lengths of a window's pixels in an image that is False elsewhere."""
    height, width = hw
    # COCO counts down the columns.  A False above and below ends every run.
    columns = np.zeros((inside.shape[1], inside.shape[0] + 2), np.int8)
    columns[:, 1:-1] = inside.T
    change = np.diff(columns, axis=1)
    x, y = np.nonzero(change == 1)
    starts = (x + left) * height + y + top
    x, y = np.nonzero(change == -1)
    ends = (x + left) * height + y + top
    # A run that reaches the bottom goes on at the top of the next column.
    joined = starts[1:] == ends[:-1]
    bounds = np.setdiff1d(np.concatenate([starts, ends]), ends[:-1][joined])
    edges = np.concatenate([[0], bounds, [height * width]])
    counts = np.diff(edges)
    # A run up to the last pixel leaves nothing behind it, and COCO writes no such count.
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
