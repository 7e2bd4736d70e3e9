"""Masks: from COCO's three forms to bitmaps, and to the small bitmaps that travel in a batch.

pycocotools' C code decodes the masks, so that they are the pixels that evaluation sees.  It allocates and reads what
it is told, therefore everything is checked here before it gets there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.data.records import Segmentation
from jaxdet.data.validation.entries import MAX_COORDINATE, MAX_OUTLINE
from jaxdet.messages import short

_Bitmap: TypeAlias = NDArray[np.uint8]
_Points: TypeAlias = NDArray[np.float64]
_Size: TypeAlias = tuple[float, float]

_ROUNDING = 1e-6  #: cells that an outline may reach beyond its last one: what is scaled lies a little beside its pixel


def has_mask(segmentation: Any) -> bool:
    """Whether an annotation has a mask, readable or not; sets of boxes have null, [], {} or [[]] in its place."""
    if isinstance(segmentation, list):
        return any(polygon != [] for polygon in segmentation)
    return bool(segmentation)


def has_masks(annotations: Iterable[Any]) -> bool:
    """Whether a data set is one with masks: at least one instance has one.  Crowd regions may have them in any set."""
    entries = [entry for entry in annotations if isinstance(entry, Mapping)]
    instances = [entry for entry in entries if not entry.get("iscrowd")]
    return any(has_mask(entry.get("segmentation")) for entry in instances or entries)


def decode_mask(segmentation: Segmentation, hw: tuple[int, int]) -> _Bitmap:
    """Decode a COCO segmentation by pycocotools, whose rasteriser is the one that evaluation uses.

    Args:
        segmentation: polygons, uncompressed or compressed run lengths.  Polygons with fewer than three points
            enclose no area and are left out.
        hw: height and width of the stored image.

    Returns:
        ``[H, W]`` uint8, 0 or 1.

    Raises:
        ValueError: there is nothing to decode, it is malformed, or its run lengths are of another size than ``hw``.
    """
    encoded = encode_mask(segmentation, hw)
    decoded: _Bitmap = coco_mask.decode(encoded)
    return decoded


def encode_mask(segmentation: Segmentation, hw: tuple[int, int]) -> dict[str, Any]:
    """Encode a COCO segmentation as pycocotools' compressed run lengths; arguments and errors as `decode_mask`."""
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, hw)
    if isinstance(segmentation, list) and segmentation:
        return rasterised(read_polygons(segmentation), hw)
    raise ValueError(f"segmentation: expected polygons or run lengths, got {short(segmentation)}")


def read_polygons(polygons: Sequence[Any]) -> list[_Points]:
    """The points of a segmentation's polygons, ``[P, 2]`` x, y each, without those polygons that enclose no area.

    Raises:
        ValueError: there is none, one is malformed, or together they are longer than any outline.
    """
    points = [points for points in map(_points, polygons) if len(points) >= 3]
    if not points:
        raise ValueError(f"segmentation: expected a polygon of at least 3 points, got {short(polygons)}")
    outline = outline_length(points)
    if outline > MAX_OUTLINE:
        raise ValueError(
            f"segmentation: expected outlines of at most {MAX_OUTLINE} pixels together, got {outline:.0f}; "
            "run lengths may be as long as they like"
        )
    return points


def _points(polygon: Any) -> _Points:
    # In C's loops, as polygons are read for each image anew.  The exact types, because bool is a subclass of int.
    numbers = isinstance(polygon, list | tuple) and set(map(type, polygon)) <= {int, float}
    if numbers and len(polygon) % 2 == 0 and max(map(abs, polygon), default=0) <= MAX_COORDINATE:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if not np.isnan(points).any():  # which any comparison in `max` may have passed over
            return points
    raise ValueError(
        f"segmentation: expected a polygon x1, y1, x2, y2, ... of numbers up to {MAX_COORDINATE}, got {short(polygon)}"
    )


def outline_length(polygons: Iterable[_Points]) -> float:
    """Number of pixels that closed outlines run through, to which pycocotools' memory is proportional.

    It is summed over all of them: many short ones cost as much as a long one.
    """
    return sum(float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()) for points in polygons)


def rasterised(polygons: Sequence[_Points], hw: tuple[int, int]) -> dict[str, Any]:
    """Draw polygons together, as pycocotools' compressed run lengths."""
    pieces: list[dict[str, Any]] = coco_mask.frPyObjects([points.ravel() for points in polygons], *hw)
    # A merge walks through the whole result so far for each piece; merging few at a time keeps the intermediate
    # results short, where an instance has thousands of pieces.
    while len(pieces) > 1:
        pieces = [coco_mask.merge(pieces[first : first + 16]) for first in range(0, len(pieces), 16)]
    return pieces[0]


def _from_run_lengths(segmentation: dict[str, Any], hw: tuple[int, int]) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or tuple(size) != tuple(hw):
        raise ValueError(f"segmentation: expected run lengths of the image's size {tuple(hw)}, got {short(size)}")
    encoded = counts.encode() if isinstance(counts, str) else counts
    runs = read_counts(encoded) if isinstance(encoded, bytes) else _runs(counts)
    # pycocotools would leave pixels undefined where the runs sum to less than the image.
    if any(run < 0 for run in runs) or sum(runs) != hw[0] * hw[1]:
        raise ValueError(f"segmentation: expected runs >= 0 that sum to {hw[0] * hw[1]} pixels, got {short(counts)}")
    if isinstance(encoded, bytes):
        return {"size": list(hw), "counts": encoded}
    packed: dict[str, Any] = coco_mask.frPyObjects({"size": list(hw), "counts": runs}, *hw)
    return packed


def _runs(counts: Any) -> list[int]:
    """Uncompressed run lengths, as they are."""
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise ValueError(f"segmentation: expected counts as a list of integers or a string, got {short(counts)}")
    return counts


def read_counts(counts: bytes) -> list[int]:
    """Decode the run lengths in COCO's compressed string, so that their sum can be checked.

    A character carries five bits of a signed number, offset 48, lowest bits first, and its bit 32 says that more
    follow; from the fourth run on, the number is the difference to the run two before (cocoapi, common/maskApi.c).

    Raises:
        ValueError: a character that the code does not have, or an end in the middle of a number.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    broken = not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32
    # Six characters are 30 bits, which count more pixels than an image may have; pycocotools reads no more either.
    if broken or lengths.max() > 6:
        raise ValueError(f"segmentation: expected a compressed run-length string, got {short(counts)}")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    # Bit 16 of the last character is the sign.
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # Differences to the run two before: two running sums, of which the first run (zeros) is no part.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    runs: list[int] = numbers.tolist()
    return runs


def resize_mask(mask: _Bitmap, hw: tuple[int, int]) -> _Bitmap:
    """Nearest-neighbour resize of ``[H, W]`` to ``hw`` as ``cv2.INTER_NEAREST`` does it (the reference's choice)."""
    resized = cv2.resize(mask, (hw[1], hw[0]), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.uint8)


@lru_cache(maxsize=64)
def nearest_lines(before: int, after: int) -> NDArray[np.intp]:
    """Which of ``before`` rows (or columns) each of the ``after`` rows of `resize_mask` repeats, as ``[after]``."""
    # cv2 itself resizes a column of row numbers, so that its rounding need not be known.
    numbers = np.arange(before, dtype=np.float32)[:, None]
    return np.asarray(cv2.resize(numbers, (1, after), interpolation=cv2.INTER_NEAREST)[:, 0], np.intp)


def crop_mask(mask: _Bitmap, size: int) -> tuple[_Bitmap, NDArray[np.float32]]:
    """Cut a mask to the pixels of its instance: a small bitmap and the frame that it covers.

    The bitmap's outermost ring of pixels is always zero, because RoIAlign repeats the border pixel half a pixel
    beyond the border.  A side that fits is kept pixel for pixel, the rest of the bitmap stays zero, so a small
    instance loses nothing; a longer side is averaged down and rounded.

    Args:
        mask: ``[H, W]`` uint8, 0 or 1, in the resized image's pixels.
        size: side of the bitmap, at least 4.

    Returns:
        ``[size, size]`` uint8, 0 or 1, and ``[4]`` float32 frame (x1, y1, x2, y2), which may reach beyond the image.
        An empty mask gives zeros and the frame of the first pixels.
    """
    bitmap = np.zeros((size, size), np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return bitmap, np.array([0, 0, size, size], np.float32)
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    room = size - 2  # without the ring of zeros
    height, width = min(bottom - top, room), min(right - left, room)
    inside = mask[top:bottom, left:right]
    if inside.shape != (height, width):
        averaged = cv2.resize(inside * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
        inside = (np.asarray(averaged) >= 128).astype(np.uint8)
    bitmap[1 : 1 + height, 1 : 1 + width] = inside
    # The frame counts in cells of the bitmap: one before the instance (the ring), and ``size`` in all.
    cell_x, cell_y = (right - left) / width, (bottom - top) / height
    x, y = left - cell_x, top - cell_y
    return bitmap, np.array([x, y, x + size * cell_x, y + size * cell_y], np.float32)


def crop_polygons(
    polygons: Sequence[_Points], shown: tuple[tuple[int, int], tuple[int, int]], least_cell: _Size, size: int
) -> tuple[_Bitmap, NDArray[np.float32]] | None:
    """Draw polygons into a small bitmap, as `crop_mask` cuts a mask to one, without a bitmap of the image between.

    Args:
        polygons: ``[P, 2]`` x, y each, in any pixels.
        shown: what is seen, in the same pixels: where it begins and ends along y, and along x.
        least_cell: height and width of a cell where the instance fits; where it does not, cells are larger.
        size: side of the bitmap, at least 4.

    Returns:
        Bitmap and frame as those of `crop_mask`, the frame in pixels of the polygons; None: the outlines run through
        more cells than pycocotools is to draw, and a bitmap of the image is cheaper.
    """
    points = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    ends = zip(points.min(axis=0).tolist(), points.max(axis=0).tolist(), strict=True)
    x, y = (_cells(*each, size - 2) for each in zip(ends, reversed(shown), reversed(least_cell), strict=True))
    origin, cell = np.array([x.origin, y.origin]), np.array([x.cell, y.cell])
    inside = [(points - origin) / cell for points in polygons]
    # No outline is longer than as many times the whole extent as it has points, which is quickly known.
    extent = float(np.ptp(points, axis=0).max()) / min(x.cell, y.cell)
    if len(points) * extent > MAX_OUTLINE and outline_length(inside) > MAX_OUTLINE:
        return None
    bitmap: _Bitmap = coco_mask.decode(rasterised(inside, (size, size)))
    # What is drawn beyond the instance is beyond what is seen of it, and not in the frame that it is to have.
    bitmap[0], bitmap[:, 0], bitmap[y.number + 1 :], bitmap[:, x.number + 1 :] = 0, 0, 0, 0
    frame = np.array([x.origin, y.origin, x.origin + size * x.cell, y.origin + size * y.cell], np.float32)
    return bitmap, frame


class _Cells(NamedTuple):
    """An axis of a bitmap: where it begins, how wide a cell is, and how many, after the first, the instance has."""

    origin: float
    cell: float
    number: int


def _cells(ends: tuple[float, float], shown: tuple[int, int], least_cell: float, room: int) -> _Cells:
    """The cells for an instance that has these ends, as far as they are seen; the first one is the ring's."""
    first, last = (min(max(end, shown[0]), shown[1]) for end in ends)
    begin = math.floor(first / least_cell) * least_cell  # whole cells, as pixels are
    number = max(math.ceil((last - begin) / least_cell - _ROUNDING), 1)
    cell = least_cell * max(number / room, 1)
    return _Cells(begin - cell, cell, min(number, room))
