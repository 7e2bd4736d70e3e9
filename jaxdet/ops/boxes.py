"""Geometry of boxes ``(x1, y1, x2, y2)`` and the delta coding that heads predict.

All functions work in float32 and broadcast over leading axes.  An invalid slot (NaN, negative size) gives a
meaningless number for itself and leaves every other slot alone.

Letters in shapes: N boxes, A and B the two sets of boxes that are compared.  Coordinates are pixels, width = x2 - x1.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxdet.ops.rounding import product, quotient
from jaxdet.ranges import Range, check_ranges, positive


def area(boxes: jax.Array) -> jax.Array:
    """Area ``[...]`` of boxes ``[..., 4]``; a box turned inside out has area 0."""
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return product(size[..., 0], size[..., 1])


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Area ``[A, B]`` shared by each of ``a [A, 4]`` with each of ``b [B, 4]``."""
    # Axis by axis: XLA:CPU takes three times as long for an array of pairs that has an axis of two.
    low = (jnp.maximum(a[:, None, axis], b[None, :, axis]) for axis in (0, 1))
    high = (jnp.minimum(a[:, None, axis], b[None, :, axis]) for axis in (2, 3))
    width, height = (jnp.maximum(end - begin, 0.0) for begin, end in zip(low, high, strict=True))
    return product(width, height)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union ``[A, B]``; 0 where the union is empty.

    It is the reference's float32 to the last bit, on every backend: thresholds and ties hang on that.
    """
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - shared
    # The reference's bound (mmdetection's bbox_overlaps, eps = 1e-6): boxes without area get 0 and not NaN.
    return quotient(shared, jnp.maximum(union, 1e-6))


def coverage(a: jax.Array, b: jax.Array) -> jax.Array:
    """Share ``[A, B]`` of each box of ``a`` that lies inside each box of ``b`` (intersection over area of a)."""
    shared = intersection(a, b)
    # What is shared is no larger than a; it makes of the areas of a a full matrix, as `quotient` needs it.
    return quotient(shared, jnp.maximum(jnp.maximum(area(a)[:, None], shared), 1e-6))


def clip(boxes: jax.Array, hw: jax.Array, least: float = 0.0) -> jax.Array:
    """Boxes ``[..., 4]`` cut to the image ``[0, w] x [0, h]``; ``hw`` is ``[2]``.

    A box keeps ``least`` pixels along each axis, also where all of it lies outside, if it had that many.
    """
    limit = jnp.stack([hw[1], hw[0], hw[1], hw[0]]).astype(boxes.dtype)
    room = jnp.asarray([-least, -least, 0.0, 0.0], boxes.dtype)
    return jnp.clip(boxes, room + least, limit + room)


class BoxCoder(Protocol):
    """Boxes as numbers that a head predicts, relative to reference boxes; both ``[..., 4]``, in float32."""

    def encode(self, references: jax.Array, boxes: jax.Array) -> jax.Array: ...

    def decode(self, references: jax.Array, deltas: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class DeltaCoder:
    """Boxes as offsets from reference boxes (R-CNN, eq. 1-8 of Girshick et al. 2014, with scaling).

    ``stds`` divides ``(dx, dy, dw, dh)`` so that the targets of a head have about unit variance.  ``max_ratio``
    bounds what one decoding may do to a side, so that a wild prediction cannot overflow ``exp``: the reference's 1000 /
    16 lets a box of 16 pixels grow to 1000;
    ``clip_shrink`` bounds shrinking too (the reference does, torchvision bounds growth only).
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    max_ratio: float = 1000 / 16
    clip_shrink: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, stds=positive(1e3), max_ratio=Range(1, 1e12, without=(1,)))

    def encode(self, references: jax.Array, boxes: jax.Array) -> jax.Array:
        """Deltas ``[..., 4]`` that turn ``references [..., 4]`` into ``boxes``.

        Both need positive sides: callers replace invalid slots before, or the logarithm's gradient is NaN.
        """
        # (x, y) pairs throughout: shift in units of the reference's side, logarithm of the ratio of the sides.
        size, target_size = references[..., 2:] - references[..., :2], boxes[..., 2:] - boxes[..., :2]
        centre = (references[..., :2] + references[..., 2:]) * 0.5
        shift = ((boxes[..., :2] + boxes[..., 2:]) * 0.5 - centre) / size
        return jnp.concatenate([shift, jnp.log(target_size / size)], -1) / jnp.asarray(self.stds, jnp.float32)

    def decode(self, references: jax.Array, deltas: jax.Array) -> jax.Array:
        """Boxes ``[..., 4]`` from ``references [..., 4]`` and ``deltas [..., 4]``; not cut to an image."""
        # float32, because bfloat16 has no fractions of a pixel from 128 pixels on.
        deltas = deltas.astype(jnp.float32) * jnp.asarray(self.stds, jnp.float32)
        bound = math.log(self.max_ratio)
        growth = jnp.clip(deltas[..., 2:], -bound if self.clip_shrink else None, bound)
        size = references[..., 2:] - references[..., :2]
        centre = (references[..., :2] + references[..., 2:]) * 0.5 + size * deltas[..., :2]
        half = size * jnp.exp(growth) * 0.5
        return jnp.concatenate([centre - half, centre + half], -1)


@dataclasses.dataclass(frozen=True)
class DistanceCoder:
    """Boxes as distances (left, top, right, bottom) from the centre of the reference, in units of its side.

    FCOS (Tian et al. 2019, eq. 1), whose references are the cells of a level (`anchors.Points`): their side is the
    stride, so that heads see numbers of the same size on all levels.
    """

    def encode(self, references: jax.Array, boxes: jax.Array) -> jax.Array:
        """Distances ``[..., 4]``; negative where the centre is outside of the box."""
        centre, size = (references[..., :2] + references[..., 2:]) * 0.5, references[..., 2:] - references[..., :2]
        return jnp.concatenate([(centre - boxes[..., :2]) / size, (boxes[..., 2:] - centre) / size], -1)

    def decode(self, references: jax.Array, deltas: jax.Array) -> jax.Array:
        """Boxes ``[..., 4]``; not cut to an image."""
        deltas = deltas.astype(jnp.float32)
        centre, size = (references[..., :2] + references[..., 2:]) * 0.5, references[..., 2:] - references[..., :2]
        return jnp.concatenate([centre - deltas[..., :2] * size, centre + deltas[..., 2:] * size], -1)


_UNIT_BOX = (0.0, 0.0, 1.0, 1.0)
"""A harmless box: what invalid slots are replaced with before a logarithm or a division."""


def safe(boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """``boxes [..., 4]`` with invalid slots replaced by the unit box."""
    return jnp.where(valid[..., None], boxes, jnp.asarray(_UNIT_BOX, boxes.dtype))
