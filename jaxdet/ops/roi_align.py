"""RoIAlign (He et al. 2017, section 3): averages of bilinear samples on a grid inside each box.

All maps that boxes may look at (the levels of a pyramid, the bitmaps of a mask target) lie as rows in one table, so
that a box on any level is one gather.  A sample's four neighbours are gathered from NHWC rows: contiguous, C long.

The adaptive rule (``sampling_ratio = 0``) takes ``ceil(bin height) x ceil(bin width)`` samples in every bin, a number
that varies from box to box.  Boxes are therefore sorted by it and worked on in groups: a group costs what its most
demanding member costs, so the total follows the sum over boxes, not the largest one.

Unlike other ops these see the whole batch, because the number of rounds of a group is shared by all images.

Letters in shapes: B images, N boxes, g boxes of a group, T rows of the table, C channels; ``size`` is rows x columns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdet.ops.bilinear import Taps, corners, taps
from jaxdet.ops.rounding import whole_parts

GROUP = 64
"""Boxes worked on together.  Small keeps the accumulator in cache and members alike; large feeds an accelerator."""

MAX_COUNT = 128
"""At most so many adaptive samples along an axis of a bin: exact for crops of 7 bins from 896 pixels of a map.
Without a bound one wild box, a million pixels wide, would hold up the whole batch."""


@struct.dataclass
class Lattice:
    """Where boxes sample: bins of size ``bin`` from ``start``, with ``count`` samples a bin along each axis."""

    base: jax.Array  #: ``[B, N]`` int32, first row of the box's map in the table
    extent: jax.Array  #: ``[B, N, 2]`` int32, height and width of that map
    start: jax.Array  #: ``[B, N, 2]`` float32 (y, x), in pixel indices of the map
    bin: jax.Array  #: ``[B, N, 2]`` float32 (y, x)
    count: jax.Array  #: ``[B, N, 2]`` int32; 0: the box is empty or invalid, its result is 0

    @property
    def rounds(self) -> jax.Array:
        """Samples ``[B, N]`` in each bin."""
        return self.count[..., 0] * self.count[..., 1]


def roi_align(
    maps: Sequence[jax.Array],
    scales: Sequence[float],
    boxes: jax.Array,
    level: jax.Array,
    valid: jax.Array,
    *,
    size: tuple[int, int],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> jax.Array:
    """Features ``[B, N, *size, C]`` of ``boxes [B, N, 4]`` (image coordinates).

    ``maps`` are ``[B, h_l, w_l, C]``, ``scales`` their pixels per image pixel, ``level [B, N]`` the map each box is
    cut from.  ``sampling_ratio`` samples are taken along each axis of a bin, 0 the adaptive number.  ``aligned`` puts
    pixel centres at half integers; without it (the first RoIAlign, torchvision's default) boxes are shifted by half a
    pixel and at least one pixel large.  Samples more than a pixel outside a map count as 0.  Invalid boxes, and those
    with a NaN, give 0.  Gradients flow to the maps only, as in the reference.
    """
    # [B, T, C]: map after map, each row by row.
    table = jnp.concatenate([m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps], 1)
    extents = jnp.asarray([m.shape[1:3] for m in maps], jnp.int32)
    bases = jnp.cumsum(jnp.prod(extents, 1)) - jnp.prod(extents, 1)
    valid = valid & jnp.isfinite(boxes).all(-1)
    # Positions need float32 whatever the maps are: bfloat16 has no half pixels from 128 pixels on.
    boxes = jax.lax.stop_gradient(jnp.where(valid[..., None], boxes, 0.0)).astype(jnp.float32)
    scaled = boxes * jnp.asarray(scales, jnp.float32)[level][..., None] - (0.5 if aligned else 0.0)
    # [B, N, 2] as (y, x): 1::-1 is (y1, x1), :1:-1 is (y2, x2).
    start, roi_size = scaled[..., 1::-1], scaled[..., :1:-1] - scaled[..., 1::-1]
    lattice = make_lattice(start, roi_size if aligned else jnp.maximum(roi_size, 1.0), valid, size, sampling_ratio)
    return sample_average(table, dataclasses.replace(lattice, base=bases[level], extent=extents[level]), size)


def make_lattice(
    start: jax.Array, roi_size: jax.Array, valid: jax.Array, size: tuple[int, int], sampling_ratio: int
) -> Lattice:
    """Lattice of boxes from ``start [B, N, 2]`` on, ``roi_size [B, N, 2]`` large; the map is filled in later."""
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio is a number of samples, or 0 for the adaptive number; got {sampling_ratio}")
    parts = np.asarray(size, np.float32)
    bins = roi_size * (1 / parts)  # XLA would do so under jit, and divide without
    count = jnp.full_like(bins, sampling_ratio)
    if sampling_ratio == 0:
        count = jnp.clip(whole_parts(roi_size, jnp.asarray(parts)), 0, MAX_COUNT)
    # No sample, no gradient and no work: an invalid box is one with a count of 0.
    count = jnp.where(valid[..., None], count, 0).astype(jnp.int32)
    nothing = jnp.zeros_like(count)
    return Lattice(nothing[..., 0], nothing, start, bins, count)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sample_average(table: jax.Array, lattice: Lattice, size: tuple[int, int]) -> jax.Array:
    """Mean over the samples of each bin: ``[B, N, *size, C]`` from ``table [B, T, C]``; differentiable in the table."""
    shape = (*lattice.base.shape, *size, table.shape[-1])

    def pool(order: jax.Array, members: Lattice, rounds: jax.Array, out: jax.Array) -> jax.Array:
        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            for index, weight in _corners(members, k, size):
                total += jax.vmap(lambda rows, i: rows[i])(table, index) * weight[..., None]
            return total

        # Many samples are added up: in float32, and rounded to the dtype of the maps once.
        group = jnp.zeros((*order.shape, *shape[2:]), jnp.float32)
        group = jax.lax.fori_loop(0, rounds, add, group).astype(table.dtype)
        return jax.vmap(lambda o, i, g: o.at[i].set(g, mode="drop", unique_indices=True))(out, order, group)

    return _for_each_group(lattice, pool, jnp.zeros(shape, table.dtype))


def _forward(table: jax.Array, lattice: Lattice, size: tuple[int, int]) -> tuple[jax.Array, tuple[jax.Array, Lattice]]:
    return sample_average(table, lattice, size), (table, lattice)


def _backward(size: tuple[int, int], saved: tuple[jax.Array, Lattice], grad: jax.Array) -> tuple[jax.Array, None]:
    """The same groups and samples as forward, with each gather turned into a scatter-add."""
    table, lattice = saved

    def spread(order: jax.Array, members: Lattice, rounds: jax.Array, out: jax.Array) -> jax.Array:
        group = jax.vmap(lambda g, i: g.at[i].get(mode="fill", fill_value=0))(grad, order).astype(jnp.float32)

        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            for index, weight in _corners(members, k, size):
                total = jax.vmap(lambda t, i, v: t.at[i].add(v))(total, index, group * weight[..., None])
            return total

        return jax.lax.fori_loop(0, rounds, add, out)

    return _for_each_group(lattice, spread, jnp.zeros(table.shape, jnp.float32)).astype(table.dtype), None


sample_average.defvjp(_forward, _backward)


def _for_each_group(
    lattice: Lattice, work: Callable[[jax.Array, Lattice, jax.Array, jax.Array], jax.Array], carry: jax.Array
) -> jax.Array:
    """Fold ``work(order [B, g], members, rounds, carry)`` over groups of boxes that need about equally many samples."""
    batch, n = lattice.base.shape
    group = min(GROUP, n)
    groups = -(-n // group) if n else 0
    # The most demanding first, so that neighbours in this order need about equally many rounds.
    order = jnp.argsort(lattice.rounds, axis=1, descending=True)
    order = jnp.pad(order, ((0, 0), (0, groups * group - n)), constant_values=n)  # n: out of range, dropped

    def step(g: jax.Array, carry: jax.Array) -> jax.Array:
        here = jax.lax.dynamic_slice_in_dim(order, g * group, group, axis=1)
        # Slots beyond N are filled with zeros: no samples.
        members = jax.tree.map(
            lambda a: jax.vmap(lambda v, i: v.at[i].get(mode="fill", fill_value=0))(a, here), lattice
        )
        return work(here, members, members.rounds.max(), carry)

    return jax.lax.fori_loop(0, groups, step, carry) if n and batch else carry


def _corners(lattice: Lattice, k: jax.Array, size: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
    """The four table rows and weights ``[B, g, *size]`` of every bin's k-th sample, 1 / count included."""
    columns = jnp.maximum(lattice.count[..., 1], 1)
    which = jnp.stack([k // columns, k % columns], -1)  # row and column of the sample inside the bin
    # Members with fewer samples than the group has rounds wait with weight 0.
    share = jnp.where(k < lattice.rounds, 1.0 / jnp.maximum(lattice.rounds, 1), 0.0)[..., None, None]
    base, width = lattice.base[..., None, None], lattice.extent[..., 1, None, None]
    # [B, g, rows, 1] and [B, g, 1, columns]: samples of a box form a lattice, so taps are few.
    y = jax.tree.map(lambda a: a[..., :, None], _taps(lattice, which, 0, size[0]))
    x = jax.tree.map(lambda a: a[..., None, :], _taps(lattice, which, 1, size[1]))
    return [(base + row, weight * share) for row, weight in corners(y, x, width)]


def _taps(lattice: Lattice, which: jax.Array, axis: int, bins: int) -> Taps:
    """Taps ``[B, g, bins]`` of the sample ``which`` in each bin along one axis."""
    start, step = lattice.start[..., axis, None], lattice.bin[..., axis, None]
    # Samples lie at the middles of equal parts of a bin.
    part = (which[..., axis, None] + 0.5) * step / jnp.maximum(lattice.count[..., axis, None], 1)
    position = start + jnp.arange(bins) * step + part
    return taps(position, lattice.extent[..., axis, None])
