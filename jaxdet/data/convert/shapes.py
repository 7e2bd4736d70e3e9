"""From the shapes that tools draw to COCO's segmentations.

Coordinates are continuous: pixel (row r, column c) covers x from c to c + 1 and y from r to r + 1.  Outlines are cut at
the image's border.  Boxes and areas are those of the pixels that pycocotools makes of a mask, because training and
evaluation see these.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.data.convert.found import Found, Unusable
from jaxdet.data.masks import encode_mask
from jaxdet.data.validation.entries import MAX_COORDINATE

Ring: TypeAlias = NDArray[np.float64]
"""``[P, 2]`` x, y of the points of a closed outline."""

_ELLIPSE_POINTS = 72  #: at a radius of 500 pixels the chords stay within half a pixel of the arc


def ring_of(points: Any) -> Ring:
    """Read ``[[x, y], ...]``.

    Raises:
        Unusable: it is no such list, or has a number that is none or far outside of any image.
    """
    try:
        ring = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable("points that are no pairs of numbers") from error
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise Unusable("points that are no pairs of numbers")
    if not (np.abs(ring) <= MAX_COORDINATE).all():  # NaN fails too
        raise Unusable(f"coordinates beyond {MAX_COORDINATE} pixels, or no numbers")
    return ring


def polygon(name: str, rings: Sequence[Ring], hw: tuple[int, int], holes: Sequence[Ring] = ()) -> Found:
    """An object of outlines, which are its parts; with holes it becomes run lengths, since COCO's polygons have none.

    Raises:
        Unusable: no part encloses a pixel of the image.
    """
    if any(len(ring) < 3 for ring in rings) or not rings:
        raise Unusable("polygon of fewer than 3 points")
    parts = [ring for ring in (cut(ring, hw) for ring in rings) if len(ring) >= 3]
    if not parts:
        raise Unusable("shape outside the image")
    # Hundredths of a pixel: rasterisation counts fifths.
    outlines = [[round(float(value), 2) for value in ring.ravel()] for ring in parts]
    encoded = _encoded(outlines, hw)
    gaps = [ring for ring in (cut(hole, hw) for hole in holes if len(hole) >= 3) if len(ring) >= 3]
    if gaps:
        without = coco_mask.decode(encoded)
        for gap in gaps:
            without[coco_mask.decode(_encoded([gap.ravel().tolist()], hw)) > 0] = 0
        return bitmap(name, without, hw)
    return _found(name, outlines, encoded)


def box(name: str, corners: tuple[float, float, float, float], hw: tuple[int, int], as_mask: bool) -> Found:
    """An object of which x1, y1, x2, y2 is known; ``as_mask``: its rectangle counts as its mask.

    Raises:
        Unusable: it has no area inside the image.
    """
    (left, top), (right, bottom) = ring_of([corners[:2], corners[2:]])
    left, right = (min(max(value, 0), hw[1]) for value in sorted((left, right)))
    top, bottom = (min(max(value, 0), hw[0]) for value in sorted((top, bottom)))
    width, height = float(right - left), float(bottom - top)
    if width <= 0 or height <= 0:
        raise Unusable("box without an area inside the image")
    if as_mask:
        return polygon(name, [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])], hw)
    return Found(name, None, (float(left), float(top), width, height), width * height)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Ring:
    """The outline of an ellipse, turned clockwise as one sees it; points lie outside so far that the area is exact."""
    # A polygon on the arc would have the share sin(a) / a of the area, with the angle a between two points.
    step = 2 * math.pi / _ELLIPSE_POINTS
    angles = np.arange(_ELLIPSE_POINTS) * step
    points = np.stack([np.cos(angles) * radii[0], np.sin(angles) * radii[1]], axis=1) * math.sqrt(step / math.sin(step))
    return turned(points, degrees) + centre


def turned(points: Ring, degrees: float) -> Ring:
    """Points turned around the origin, clockwise as one sees it, since y points down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]), np.float64)


def bitmap(name: str, pixels: NDArray[Any], hw: tuple[int, int], left: int = 0, top: int = 0) -> Found:
    """An object of pixels.

    Args:
        name: its class.
        pixels: ``[h, w]``, true inside; what lies outside of the image is cut off.
        hw: size of the image.
        left: column of the image at which ``pixels`` begin.
        top: row of the image.

    Raises:
        Unusable: no pixel inside the image is true.
    """
    whole = np.zeros(hw, np.uint8, order="F")
    rows = slice(max(top, 0), max(min(top + pixels.shape[0], hw[0]), 0))
    columns = slice(max(left, 0), max(min(left + pixels.shape[1], hw[1]), 0))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        whole[rows, columns] = inside.astype(np.bool_)
    encoded = coco_mask.encode(whole)
    return _found(name, {"size": list(hw), "counts": encoded["counts"].decode()}, encoded)


def joined(objects: Sequence[Found], hw: tuple[int, int]) -> Found:
    """Several parts of one instance as one object: their outlines if all have some, else their pixels together."""
    if len(objects) == 1:
        return objects[0]
    segmentations = [part.segmentation for part in objects]
    if all(isinstance(segmentation, list) for segmentation in segmentations):
        outlines = [outline for part in segmentations if isinstance(part, list) for outline in part]
        return _found(objects[0].name, outlines, _encoded(outlines, hw))
    encoded = coco_mask.merge([encode_mask(segmentation, hw) for segmentation in segmentations])
    return _found(objects[0].name, {"size": list(hw), "counts": encoded["counts"].decode()}, encoded)


def cut(ring: Ring, hw: tuple[int, int]) -> Ring:
    """Cut an outline at the image's border (Sutherland and Hodgman, 1974); what is left may have no points."""
    for axis, limit, sign in ((0, 0, 1), (1, 0, 1), (0, hw[1], -1), (1, hw[0], -1)):
        if not len(ring):
            break
        depth = sign * (ring[:, axis] - limit)  # at least 0 inside
        if (depth >= 0).all():
            continue
        points = []
        for here, there, inside, beyond in zip(ring, np.roll(ring, -1, axis=0), depth, np.roll(depth, -1), strict=True):
            if inside >= 0:
                points.append(here)
            if (inside >= 0) != (beyond >= 0):
                crossing = here + (there - here) * (inside / (inside - beyond))
                crossing[axis] = limit
                points.append(crossing)
        ring = np.array(points, np.float64).reshape(-1, 2)
    return ring


def _encoded(outlines: list[list[float]], hw: tuple[int, int]) -> dict[str, Any]:
    try:
        return encode_mask(outlines, hw)
    except ValueError as error:  # all else was looked at before
        raise Unusable("polygon whose outline is longer than any object's") from error


def _found(name: str, segmentation: Any, encoded: dict[str, Any]) -> Found:
    area = int(coco_mask.area(encoded))
    if not area:
        raise Unusable("shape without a pixel inside the image")
    x, y, width, height = (float(value) for value in coco_mask.toBbox(encoded))
    return Found(name, segmentation, (x, y, width, height), area)
