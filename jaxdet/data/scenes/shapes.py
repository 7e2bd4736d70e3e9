"""Shapes and textures of the built-in scenes.

A shape is a level function of ``(u, v)``, coordinates with the shape's radius as unit: negative inside, about the
distance to the border.  A texture is a function of the same coordinates with values 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float64]
Plane: TypeAlias = Callable[[Field, Field], Field]


@dataclass(frozen=True)
class Kind:
    """A class of objects: its name, shape, texture, and hue (0..1, jittered when drawn)."""

    id: int
    name: str
    shape: Plane
    texture: Plane
    hue: float


def _square_distance(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v))


def disc(u: Field, v: Field) -> Field:
    """A circle."""
    return np.asarray(np.hypot(u, v) - 1, np.float64)


def ring(u: Field, v: Field) -> Field:
    """A circle with a hole."""
    return np.asarray(np.abs(np.hypot(u, v) - 0.73) - 0.27, np.float64)


def square(u: Field, v: Field) -> Field:
    """A square."""
    return np.asarray(_square_distance(u, v) - 0.84, np.float64)


def triangle(u: Field, v: Field) -> Field:
    """An equilateral triangle."""
    return np.asarray(np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.5, np.float64)


def star(u: Field, v: Field) -> Field:
    """Five soft points."""
    return np.asarray(np.hypot(u, v) - 0.68 - 0.32 * np.cos(5 * np.arctan2(v, u)), np.float64)


def cross(u: Field, v: Field) -> Field:
    """Two bars at a right angle."""
    a, b = np.abs(u), np.abs(v)
    return np.asarray(np.minimum(np.maximum(a - 1, b - 0.34), np.maximum(a - 0.34, b - 1)), np.float64)


def crescent(u: Field, v: Field) -> Field:
    """A moon."""
    return np.asarray(np.maximum(np.hypot(u, v) - 1, 0.78 - np.hypot(u - 0.55, v)), np.float64)


def bar(u: Field, v: Field) -> Field:
    """A long rectangle; lying over another object it leaves that one in two pieces."""
    return np.asarray(np.maximum(np.abs(u) - 1.25, np.abs(v) - 0.26), np.float64)


def rings(u: Field, v: Field) -> Field:
    """Concentric waves."""
    return np.asarray(0.5 + 0.5 * np.sin(16 * np.hypot(u, v)), np.float64)


def spokes(u: Field, v: Field) -> Field:
    """Rays from the centre."""
    return np.asarray(np.sin(9 * np.arctan2(v, u)) > 0, np.float64)


def checks(u: Field, v: Field) -> Field:
    """A chessboard."""
    return np.asarray((np.floor(u * 3) + np.floor(v * 3)) % 2, np.float64)


def stripes(u: Field, v: Field) -> Field:
    """Bands along u."""
    return (np.sin(15 * v) > 0).astype(np.float64)


def dots(u: Field, v: Field) -> Field:
    """Spots on a grid."""
    return (np.hypot((u * 3) % 1 - 0.5, (v * 3) % 1 - 0.5) < 0.3).astype(np.float64)


def slope(u: Field, v: Field) -> Field:
    """One side light, the other dark."""
    return np.asarray(np.clip(0.5 + 0.5 * v, 0, 1), np.float64)


def weave(u: Field, v: Field) -> Field:
    """Two waves across each other."""
    return np.asarray(0.5 + 0.25 * (np.sin(14 * u) + np.sin(14 * v)), np.float64)


def diagonals(u: Field, v: Field) -> Field:
    """Bands at 45 degrees."""
    return (np.sin(12 * (u + v)) > 0).astype(np.float64)


# Ids with gaps, as COCO's are, so that everything that runs on scenes maps ids to labels and back.
KINDS = (
    Kind(1, "disc", disc, rings, 0.0),
    Kind(2, "ring", ring, spokes, 0.08),
    Kind(4, "square", square, checks, 0.16),
    Kind(7, "triangle", triangle, stripes, 0.32),
    Kind(8, "star", star, dots, 0.48),
    Kind(13, "cross", cross, slope, 0.6),
    Kind(21, "crescent", crescent, weave, 0.74),
    Kind(34, "bar", bar, diagonals, 0.88),
)
