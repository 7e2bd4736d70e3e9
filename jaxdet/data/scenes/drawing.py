"""Drawing of a scene: ground, then objects from far to near, each hiding part of what lies behind it.

All randomness comes from one generator in a fixed order, so any change of a draw changes every scene: raise
``write._VERSION`` then.
"""

import colorsys
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.scenes.shapes import KINDS, Kind, Values

# How the scenes are mixed.  Chosen so that a small model learns them in minutes and still has to cope with
# occlusion, all of COCO's size ranges (areas below 32^2, below 96^2, above) and touching objects of one class.
_EMPTY = 0.03  #: share of images without objects
_CROWDED = 0.08  #: share of images with a crowd region
_MIN_VISIBLE = 0.5  #: share of an object's own pixels that later objects must leave visible
_MIN_PIXELS = 60  #: visible pixels that an object must have
_SMALLEST = 28.0  #: diameter in pixels
_LARGEST = 1.0  #: diameter as a share of the short side
_DOMINANT = 0.4  #: share of images whose first object is drawn large, whatever the others are
_TRIES = 12  #: attempts to find a place for an object, which is left out after them
_HUDDLED = 0.2  #: IoU with the box of another object from which an object counts as huddled
_NEAR_SIZE = (0.75, 1.25)  #: diameters of a huddled object, in sides of the box beside it: much smaller, IoU is too
_NEAR_PLACE = 0.6  #: distances of centres along x and y at most, in sides of that box; beyond 2/3 IoU is below 0.2

_Window: TypeAlias = tuple[slice, slice]  #: rows and columns of an image

GROUNDS = ("plain ground", "banded ground")  #: the stuff classes of semantic maps
_STRONG_BANDS = 7.0  #: strength (0..14 grey levels) from which bands stand out from the noise of 4 levels


@dataclass(frozen=True)
class Instance:
    """An object of a scene, or a crowd region."""

    kind: int  #: position in ``KINDS``
    mask: NDArray[np.bool_]  #: ``[H, W]`` visible pixels
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """An image and its objects, from far to near."""

    image: NDArray[np.uint8]  #: ``[H, W, 3]``
    instances: tuple[Instance, ...]
    semantic: NDArray[np.uint8]  #: ``[H, W]`` position in ``(*KINDS, *GROUNDS)``


@dataclass(frozen=True)
class _Drawn:
    kind: int
    pixels: int  #: visible pixels when it was drawn, before later objects hid some
    crowd: bool


@dataclass(frozen=True)
class _Spot:
    """Where an object may stand."""

    centre: tuple[float, float]  #: x, y
    diameter: float
    beside: int | None = None  #: the object, by its position in `drawn`, whose box it has to overlap


def draw_scene(rng: np.random.Generator, hw: tuple[int, int], huddled: float = 0.0) -> Scene:
    """Draw a scene of ``hw`` (height, width) pixels; it is a function of the state of ``rng``.

    ``huddled`` is the share of objects that are placed so that their box has an IoU of 0.2 or more with another's.
    """
    image, bands = _ground(rng, hw)
    layer = np.full(hw, -1, np.int32)  # position in `drawn` of the object that a pixel shows; -1: the ground
    drawn: list[_Drawn] = []
    if rng.random() >= _EMPTY:
        if rng.random() < _CROWDED:
            _draw_crowd(rng, image, layer, drawn)
        _draw_objects(rng, image, layer, drawn, huddled)
    noise = rng.normal(0, 4, image.shape)
    instances = tuple(Instance(item.kind, layer == number, item.crowd) for number, item in enumerate(drawn))
    ground = len(KINDS) + (bands > _STRONG_BANDS)
    semantic = np.array([*(item.kind for item in drawn), ground], np.uint8)[layer]  # -1 takes the last
    return Scene(np.clip(image + noise, 0, 255).astype(np.uint8), instances, semantic)


def _ground(rng: np.random.Generator, hw: tuple[int, int]) -> tuple[Values, float]:
    """Draw pale colours, smooth patches of two sizes and faint bands.

    Returns:
        The ground ``[H, W, 3]`` in grey levels, and how strong its bands are.
    """
    height, width = hw
    colours = [_colour(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.25, 0.9)) for _ in range(2)]
    mix = 0.6 * _patches(rng, hw, 4) + 0.4 * _patches(rng, hw, 17)
    y, x = np.mgrid[:height, :width]
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.15, 0.8)
    bands = np.sin(pitch * (x * np.cos(angle) + y * np.sin(angle)))[:, :, None]
    strength = rng.uniform(0, 14)
    ground: Values = colours[0] + (colours[1] - colours[0]) * mix[:, :, None] + strength * bands
    return ground, strength


def _patches(rng: np.random.Generator, hw: tuple[int, int], cells: int) -> Values:
    """Smooth noise ``[H, W]``, 0..1: random numbers on a grid of ``cells`` x ``cells``, interpolated."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((hw[1], hw[0]), Image.Resampling.BICUBIC), np.float64) / 255


def _colour(hue: float, saturation: float, value: float) -> Values:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _draw_objects(
    rng: np.random.Generator, image: Values, layer: NDArray[np.int32], drawn: list[_Drawn], huddled: float
) -> None:
    """Draw huddles of objects around a few centres; the larger ones mostly lie behind, or they would hide the rest."""
    height, width = layer.shape
    short, middle = min(height, width), np.array([width, height]) / 2
    centres = rng.uniform(0.2, 0.8, (rng.integers(1, 4), 2)) * (width, height)
    count = int(rng.integers(2, 8))
    largest = max(_LARGEST * short, 1.5 * _SMALLEST)
    diameters = np.exp(rng.uniform(np.log(_SMALLEST), np.log(largest), count))
    if rng.random() < _DOMINANT:
        diameters[0] = rng.uniform(0.9, 1.2) * largest
    order = np.argsort(-diameters * np.exp(rng.normal(0, 0.25, count)), kind="stable")
    for diameter in diameters[order]:
        kind = int(rng.integers(len(KINDS)))
        others = [number for number, item in enumerate(drawn) if not item.crowd]
        # Nothing is drawn where no object is to huddle: such scenes stay what they are.
        huddles = bool(huddled and others and rng.random() < huddled)
        for _ in range(_TRIES):
            if huddles:
                spot = _spot_beside(rng, layer, int(rng.choice(others)))
            else:
                centre = centres[rng.integers(len(centres))] + rng.normal(0, 0.2 * short, 2)
                # Large objects are moved towards the middle; elsewhere the border would cut them off.
                centre += min(diameter / short, 1.0) ** 2 * (middle - centre)
                spot = _Spot((float(centre[0]), float(centre[1])), float(diameter))
            if _place(rng, image, layer, drawn, kind, spot):
                break


def _spot_beside(rng: np.random.Generator, layer: NDArray[np.int32], number: int) -> _Spot:
    """A spot on object ``number``, for one about as large."""
    left, top, right, bottom = tight_box(layer == number)
    sides = np.array([right - left, bottom - top])
    centre = np.array([left + right, top + bottom]) / 2 + rng.uniform(-_NEAR_PLACE, _NEAR_PLACE, 2) * sides
    diameter = max(float(np.sqrt(sides.prod()) * rng.uniform(*_NEAR_SIZE)), _SMALLEST)
    return _Spot((float(centre[0]), float(centre[1])), diameter, number)


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The tight box of a mask: left, top, right, bottom; the last two are the first pixels behind it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def _draw_crowd(rng: np.random.Generator, image: Values, layer: NDArray[np.int32], drawn: list[_Drawn]) -> None:
    """Draw a swarm of objects that are too small to tell apart, with one annotation for all of them."""
    height, width = layer.shape
    kind = int(rng.integers(len(KINDS)))
    centre = rng.uniform(0.2, 0.8, 2) * (width, height)
    for x, y in centre + rng.normal(0, 0.1 * min(height, width), (int(rng.integers(12, 25)), 2)):
        window, level, u, v = _level(rng, KINDS[kind], layer.shape, (x, y), rng.uniform(3.5, 5.5))
        inside = level < 0
        image[window][inside] = _paint(rng, KINDS[kind], level, u, v)[inside]
        layer[window][inside] = len(drawn)
    pixels = int((layer == len(drawn)).sum())
    if pixels:
        drawn.append(_Drawn(kind, pixels, crowd=True))


def _place(
    rng: np.random.Generator,
    image: Values,
    layer: NDArray[np.int32],
    drawn: list[_Drawn],
    kind: int,
    spot: _Spot,
) -> bool:
    """Draw an object, unless the border cuts off too much of it or it would hide too much of another; tell if so.

    It is not drawn either if it has to overlap the box of an object and does not.
    """
    radius = spot.diameter / 2
    window, level, u, v = _level(rng, KINDS[kind], layer.shape, spot.centre, radius)
    inside = level < 0
    seen = int(inside.sum())
    whole = _whole_area(KINDS[kind], radius)
    if seen < max(_MIN_PIXELS, 0.6 * whole) or _hides_too_much(inside, layer[window], layer, drawn):
        return False
    if spot.beside is not None and not _huddle(inside, window, layer == spot.beside):
        return False
    image[window][inside] = _paint(rng, KINDS[kind], level, u, v)[inside]
    layer[window][inside] = len(drawn)
    drawn.append(_Drawn(kind, seen, crowd=False))
    return True


def _huddle(inside: NDArray[np.bool_], window: _Window, other: NDArray[np.bool_]) -> bool:
    """Whether the boxes of an object in a window and of one behind it overlap by enough, as both will be seen."""
    mask = np.zeros_like(other)
    mask[window] = inside
    return _iou(tight_box(mask), tight_box(other & ~mask)) >= _HUDDLED


def _hides_too_much(
    inside: NDArray[np.bool_], behind: NDArray[np.int32], layer: NDArray[np.int32], drawn: list[_Drawn]
) -> bool:
    """Whether an object would leave too little of one behind it.

    Args:
        inside: the object's pixels in its window.
        behind: ``layer`` in that window.
        layer: which object each pixel of the image shows.
        drawn: the objects so far.
    """
    hidden = np.bincount(behind[inside & (behind >= 0)], minlength=len(drawn))
    left = np.bincount(layer[layer >= 0], minlength=len(drawn)) - hidden
    return any(rest < max(_MIN_VISIBLE * item.pixels, _MIN_PIXELS) for rest, item in zip(left, drawn, strict=True))


def _whole_area(kind: Kind, radius: float) -> float:
    """Area of a whole shape in pixels."""
    return _unit_area(kind) * radius**2


@cache
def _unit_area(kind: Kind) -> float:
    """Area of a shape of radius 1, counted on a grid."""
    v, u = np.mgrid[-1.4:1.4:141j, -1.4:1.4:141j]
    return float((kind.shape(u, v) < 0).mean()) * 2.8**2


def _level(
    rng: np.random.Generator, kind: Kind, hw: tuple[int, ...], centre: tuple[float, float], radius: float
) -> tuple[_Window, Values, Values, Values]:
    """Evaluate a turned and slightly stretched shape at the pixel centres of a window around it.

    Returns:
        The window, and over it the shape's level, u and v, ``[h, w]`` each.
    """
    # The farthest point of any shape, stretched, is less than 1.9 radii from the centre.
    top, left = (max(int(middle - 1.9 * radius), 0) for middle in (centre[1], centre[0]))
    bottom, right = int(centre[1] + 1.9 * radius) + 2, int(centre[0] + 1.9 * radius) + 2
    window = slice(top, max(min(bottom, hw[0]), top)), slice(left, max(min(right, hw[1]), left))
    y, x = np.mgrid[window] + 0.5
    angle = rng.uniform(0, 2 * np.pi)
    stretch = np.exp(rng.normal(0, 0.1))
    x, y = (x - centre[0]) / radius, (y - centre[1]) / radius
    u = (x * np.cos(angle) + y * np.sin(angle)) * stretch
    v = (y * np.cos(angle) - x * np.sin(angle)) / stretch
    return window, kind.shape(u, v), u, v


def _paint(rng: np.random.Generator, kind: Kind, level: Values, u: Values, v: Values) -> Values:
    """Colour an object ``[h, w, 3]``: hue and texture of its class, a brightness of its own, and a dark rim."""
    hue = kind.hue + rng.normal(0, 0.015)
    light = _colour(hue, rng.uniform(0.55, 0.85), rng.uniform(0.8, 1.0))
    dark = _colour(hue + rng.normal(0, 0.02), rng.uniform(0.7, 1.0), rng.uniform(0.35, 0.55))
    colour = dark + (light - dark) * kind.texture(u, v)[:, :, None]
    shade = (1 + 0.15 * np.clip(u, -1, 1)) * np.where(level > -0.07, 0.6, 1.0)
    painted: Values = colour * shade[:, :, None]
    return painted
