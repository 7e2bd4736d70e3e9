"""Bilinear sampling: which pixels a point between them reads, and with which weights.

The one home of it on the device: RoIAlign, mask targets and masks on a grid sample by it, whether points form a lattice
(taps of rows and of columns, combined by broadcasting) or lie anywhere.  Positions count pixel centres: 0 is the centre
of the first pixel, ``extent - 1`` that of the last.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Grid: TypeAlias = Literal["cells", "corners", "strided"]
"""How the pixels of two sizes of a map lie on each other (`positions`)."""

OUTSIDE = 1.0 + 2.0**-14
"""How many pixels outside of a map a sample may lie to count: there it has the value of the nearest pixel, farther out
it is 0.  The pixel is the reference's rule (mmcv's and torchvision's RoIAlign).  Samples that are 2^-14 further outside
still count: their place is known no better, and what lies exactly at the limit must not depend on a rounding."""


@struct.dataclass
class Taps:
    """Along one axis, for each position: the two pixels that it lies between, and where."""

    low: jax.Array  #: int32
    high: jax.Array  #: int32, the next one; at the border the same
    fraction: jax.Array  #: float32, 0..1, the weight of the higher one
    inside: jax.Array  #: bool, False: too far outside, the sample is 0


def taps(position: jax.Array, extent: jax.Array) -> Taps:
    """Taps of positions in a map of ``extent`` pixels along this axis; shapes are broadcast."""
    # Asked before clipping, which hides how far outside a position was.
    inside = (position >= -OUTSIDE) & (position <= extent - 1 + OUTSIDE)
    # Slots that fill up a group of boxes have a map of extent 0: index 0 is as good as any, nothing of them counts.
    last = jnp.maximum(extent - 1, 0)
    position = jnp.clip(position, 0.0, last.astype(jnp.float32))
    low = jnp.floor(position).astype(jnp.int32)
    return Taps(low, jnp.minimum(low + 1, last), position - low, inside)


def corners(y: Taps, x: Taps, width: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """The four pixels around each point as rows of a flattened map ``width`` pixels wide, and their weights.

    ``y`` and ``x`` are broadcast against each other: ``[..., h, 1]`` and ``[..., 1, w]`` for a lattice.
    """
    inside = y.inside & x.inside
    found = []
    for row, row_weight in ((y.low, 1.0 - y.fraction), (y.high, y.fraction)):
        for column, column_weight in ((x.low, 1.0 - x.fraction), (x.high, x.fraction)):
            # A weight of 0, not another index: gathers stay inside the map whatever the point is.
            found.append((row * width + column, row_weight * column_weight * inside))
    return found


def as_matrix(position: jax.Array, pixels: int) -> jax.Array:
    """Weights ``[..., pixels]`` of the pixels along an axis for each position ``[...]``; outside the nearest counts.

    The same interpolation as a product with a matrix: for maps that are small, or read at every position.
    """
    position = jnp.clip(position, 0.0, pixels - 1.0)
    return jnp.maximum(1.0 - jnp.abs(position[..., None] - jnp.arange(pixels)), 0.0)


def positions(before: int, after: int, grid: Grid) -> np.ndarray:
    """Where ``after`` pixels along an axis lie among ``before`` pixels: float64 ``[after]``.

    ``"cells"``: both divide the same extent into cells (torch's ``align_corners=False``).  ``"corners"``: the centres
    of the first and of the last pixel are the same (``align_corners=True``).  ``"strided"``: pixel i of a map stands
    for place ``(i + 0.5) * stride`` rounded down to a whole pixel, as CondInst's ``aligned_bilinear`` has it; ``after``
    is a multiple of ``before``.
    """
    if grid == "cells":
        return (np.arange(after) + 0.5) * (before / after) - 0.5
    if grid == "corners":
        return np.linspace(0, before - 1, after)
    if after % before:
        raise ValueError(f'resizing on a "strided" grid needs a whole factor, got {before} -> {after} pixels')
    factor = after // before
    return (np.arange(after) - factor // 2) / factor


def resize(x: jax.Array, hw: tuple[int, int], grid: Grid) -> jax.Array:
    """``[..., H, W, C]`` to ``[..., *hw, C]``, bilinear and without smoothing; outside the nearest pixel counts.

    Maps are small: a product with a matrix along each axis is cheaper than gathers.
    """
    for axis, after in zip((x.ndim - 3, x.ndim - 2), hw, strict=True):
        before = x.shape[axis]
        if before != after:
            places = positions(before, after, grid)
            x = _enlarged(x, axis, places[: after // before]) if grid == "strided" else _product(x, axis, places)
    return x


def _product(x: jax.Array, axis: int, places: np.ndarray) -> jax.Array:
    pixels = x.shape[axis]
    # The hat function: 1 at a pixel, 0 from its neighbours on.
    weights = np.maximum(1 - np.abs(np.clip(places, 0, pixels - 1)[:, None] - np.arange(pixels)), 0)
    # "highest", because an accelerator would otherwise round the weights to bfloat16 or TF32.
    matrix = jnp.asarray(weights, x.dtype)
    return jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision="highest"), 0, axis)


def _enlarged(x: jax.Array, axis: int, places: np.ndarray) -> jax.Array:
    """Several pixels in place of each one, which lie ``places`` from it, less than a pixel away.

    They read the same neighbours around every pixel, so there is nothing to look up, and no matrix: for the gradient of
    a product with maps of one channel XLA:GPU finds no tiles where the width is not a multiple of 16 (jax 0.10.2).
    """
    first, rest = jnp.split(x, [1], axis)
    most, last = jnp.split(x, [x.shape[axis] - 1], axis)
    below, above = jnp.concatenate([first, most], axis), jnp.concatenate([rest, last], axis)
    # Interpolation would be rounded twice in bfloat16.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    between = [
        x if place == 0 else (1 - abs(place)) * x.astype(wide) + abs(place) * (below if place < 0 else above)
        for place in places.tolist()
    ]
    stacked = jnp.stack([each.astype(x.dtype) for each in between], axis + 1)
    return stacked.reshape(*x.shape[:axis], x.shape[axis] * len(between), *x.shape[axis + 1 :])
