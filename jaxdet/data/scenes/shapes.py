"""Shapes and textures of the built-in scenes.

A shape is a level function of ``(u, v)``, coordinates in units of the shape's radius around its centre: its value is
negative inside, and near the border it is about the distance to it.  A texture is a function of the same coordinates
with values 0..1.  Numbers are chosen by eye: all shapes look about equally large, and no two textures alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
_Plane: TypeAlias = Callable[[Values, Values], Values]  #: of u and v, all ``[H, W]``


@dataclass(frozen=True)
class Kind:
    """A class of objects."""

    id: int  #: its category id
    name: str
    shape: _Plane
    texture: _Plane
    hue: float  #: 0..1; each object's own is near it


def _square_distance(u: Values, v: Values) -> Values:
    return np.maximum(np.abs(u), np.abs(v))


def _disc(u: Values, v: Values) -> Values:
    """A circle."""
    return np.asarray(np.hypot(u, v) - 1, np.float64)


def _ring(u: Values, v: Values) -> Values:
    """A circle with a hole."""
    return np.asarray(np.abs(np.hypot(u, v) - 0.73) - 0.27, np.float64)


def _square(u: Values, v: Values) -> Values:
    """A square."""
    return np.asarray(_square_distance(u, v) - 0.84, np.float64)


def _triangle(u: Values, v: Values) -> Values:
    """An equilateral triangle."""
    return np.asarray(np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.5, np.float64)


def _star(u: Values, v: Values) -> Values:
    """Five soft points."""
    return np.asarray(np.hypot(u, v) - 0.68 - 0.32 * np.cos(5 * np.arctan2(v, u)), np.float64)


def _cross(u: Values, v: Values) -> Values:
    """Two bars at a right angle."""
    a, b = np.abs(u), np.abs(v)
    return np.asarray(np.minimum(np.maximum(a - 1, b - 0.34), np.maximum(a - 0.34, b - 1)), np.float64)


def _crescent(u: Values, v: Values) -> Values:
    """A moon."""
    return np.asarray(np.maximum(np.hypot(u, v) - 1, 0.78 - np.hypot(u - 0.55, v)), np.float64)


def _bar(u: Values, v: Values) -> Values:
    """A long rectangle; lying over another object it leaves that one in two pieces."""
    return np.asarray(np.maximum(np.abs(u) - 1.25, np.abs(v) - 0.26), np.float64)


def _rings(u: Values, v: Values) -> Values:
    """Concentric waves."""
    return np.asarray(0.5 + 0.5 * np.sin(16 * np.hypot(u, v)), np.float64)


def _spokes(u: Values, v: Values) -> Values:
    """Rays from the centre."""
    return np.asarray(np.sin(9 * np.arctan2(v, u)) > 0, np.float64)


def _checks(u: Values, v: Values) -> Values:
    """A chessboard."""
    return np.asarray((np.floor(u * 3) + np.floor(v * 3)) % 2, np.float64)


def _stripes(u: Values, v: Values) -> Values:
    """Bands along u."""
    return (np.sin(15 * v) > 0).astype(np.float64)


def _dots(u: Values, v: Values) -> Values:
    """Spots on a grid."""
    return (np.hypot((u * 3) % 1 - 0.5, (v * 3) % 1 - 0.5) < 0.3).astype(np.float64)


def _slope(u: Values, v: Values) -> Values:
    """One side light, the other dark."""
    return np.asarray(np.clip(0.5 + 0.5 * v, 0, 1), np.float64)


def _weave(u: Values, v: Values) -> Values:
    """Two waves across each other."""
    return np.asarray(0.5 + 0.25 * (np.sin(14 * u) + np.sin(14 * v)), np.float64)


def _diagonals(u: Values, v: Values) -> Values:
    """Bands at 45 degrees."""
    return (np.sin(12 * (u + v)) > 0).astype(np.float64)


# Ids have gaps, as COCO's have: a mistake between ids and labels shows on scenes too.
KINDS = (
    Kind(1, "disc", _disc, _rings, 0.0),
    Kind(2, "ring", _ring, _spokes, 0.08),
    Kind(4, "square", _square, _checks, 0.16),
    Kind(7, "triangle", _triangle, _stripes, 0.32),
    Kind(8, "star", _star, _dots, 0.48),
    Kind(13, "cross", _cross, _slope, 0.6),
    Kind(21, "crescent", _crescent, _weave, 0.74),
    Kind(34, "bar", _bar, _diagonals, 0.88),
)
