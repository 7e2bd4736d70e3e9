"""RoIAlign (He et al. 2017, section 3): averages of bilinear samples on a grid inside each box.

Shape-aware RoIAlign (Ding et al. 2019, section 3.1) multiplies each sample by that of a map which the box has of its
own: what a mask says of the object there.

All levels of a pyramid lie as rows in one table, so that a box on any of them is one gather.  A sample's four
neighbours are gathered from NHWC rows: contiguous, C long.

The adaptive rule (``sampling_ratio = 0``) takes ``ceil(bin height) x ceil(bin width)`` samples in every bin, a number
that varies from box to box.  Boxes are therefore sorted by it and worked on in groups: a group costs what its most
demanding member costs, so the total follows the sum over boxes, not the largest one.

Unlike other ops these see the whole batch, or a device's part of it, because the number of rounds of a group is shared
by all images.

`jaxdet.ops.roi_kernels` computes the same on a GPU or TPU without a table, a sort and groups; ``method`` chooses.

Letters in shapes: B images, N boxes, g boxes of a group, T rows of the table, C channels, R pixels of the boxes' own
maps; ``size`` is rows x columns.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from jaxdet.ops.bilinear import Taps, corners, taps
from jaxdet.ops.devices import backend, on_own_images, runs_kernels
from jaxdet.ops.lattice import Lattice, make_lattice, on_own_maps, sample_position

GROUP = 64
"""Boxes of an image worked on together.  Small keeps the accumulator in cache and members alike."""

GROUP_ON_ACCELERATORS = 128
"""Large takes fewer rounds, of more work: members are less alike.  4 x 128 crops of 14 x 14 x 256 are 103 MB."""

AT_ONCE_ON_A_GPU = 4
"""Samples of a bin in each round there: before a round the host waits for the device, to hear whether there is one."""

Method: TypeAlias = Literal["gather", "kernel"]

_Carry = TypeVar("_Carry")


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
    method: Method | None = None,
) -> jax.Array:
    """Features ``[B, N, *size, C]`` of ``boxes [B, N, 4]`` (image coordinates).

    ``maps`` are ``[B, h_l, w_l, C]``, ``scales`` their pixels per image pixel, ``level [B, N]`` the map each box is
    cut from.  ``sampling_ratio`` samples are taken along each axis of a bin, 0 the adaptive number.  ``aligned`` puts
    pixel centres at half integers; without it (the first RoIAlign, torchvision's default) boxes are shifted by half a
    pixel and at least one pixel large.  Samples more than a pixel outside a map count as 0.  Invalid boxes, and those
    with a NaN, give 0.  Gradients flow to the maps only, as in the reference.  ``method`` is that of `sample_average`.
    """
    lattice = _lattice(maps, scales, boxes, level, valid, size, sampling_ratio, aligned)
    return sample_average(maps, lattice, size, method=method)


def sa_roi_align(
    maps: Sequence[jax.Array],
    scales: Sequence[float],
    boxes: jax.Array,
    level: jax.Array,
    valid: jax.Array,
    prob: jax.Array,
    *,
    size: tuple[int, int],
    sampling_ratio: int = 0,
    aligned: bool = True,
    method: Method | None = None,
) -> jax.Array:
    """Features ``[B, N, *size, C]`` of what ``prob [B, N, Hp, Wp]`` shows of each box: Shape-aware RoIAlign.

    All is as in `roi_align`, but each sample is multiplied by the bilinear value of the box's own map at the same place
    inside the box (Ding et al. 2019, eq. 3 to 5).  The map covers the box as it is given.  Its values may be any
    numbers, and are mostly 0..1: ones give `roi_align`, zeros 0.  Between the outer pixel centres and the sides of the
    box the nearest pixel counts.  ``aligned`` puts pixel centres at half integers on both maps, else they lie at whole
    numbers, as in the paper.

    The height and width in eq. 5 are those of the box, by which a map is aligned with it, and not the numbers of bins
    for which the letters stand in eq. 2.

    ``prob`` is float32 in the computation, whatever the maps are.  Gradients flow to the maps and to ``prob``, none to
    boxes.  The map of a box that is invalid or has no sample may hold anything, NaN included, and gets no gradient.
    """
    if prob.ndim != 4 or prob.shape[:2] != boxes.shape[:2] or 0 in prob.shape[2:]:
        expected = ", ".join(map(str, boxes.shape[:2]))
        raise ValueError(f"prob: expected a map for each box, [{expected}, Hp, Wp], got {list(prob.shape)}")
    lattice = _lattice(maps, scales, boxes, level, valid, size, sampling_ratio, aligned)
    lattice = dataclasses.replace(lattice, own=on_own_maps(lattice.count, prob.shape[2:], size, aligned))
    return sample_average(maps, lattice, size, prob.astype(jnp.float32), method)


def _lattice(
    maps: Sequence[jax.Array],
    scales: Sequence[float],
    boxes: jax.Array,
    level: jax.Array,
    valid: jax.Array,
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Lattice:
    """Where boxes sample the maps."""
    valid = valid & jnp.isfinite(boxes).all(-1)
    # Positions need float32 whatever the maps are: bfloat16 has no half pixels from 128 pixels on.
    boxes = jax.lax.stop_gradient(jnp.where(valid[..., None], boxes, 0.0)).astype(jnp.float32)
    scaled = boxes * jnp.asarray(scales, jnp.float32)[level][..., None] - (0.5 if aligned else 0.0)
    # [B, N, 2] as (y, x): 1::-1 is (y1, x1), :1:-1 is (y2, x2).
    start, roi_size = scaled[..., 1::-1], scaled[..., :1:-1] - scaled[..., 1::-1]
    lattice = make_lattice(start, roi_size if aligned else jnp.maximum(roi_size, 1.0), valid, size, sampling_ratio)
    extents = jnp.asarray([m.shape[1:3] for m in maps], jnp.int32)
    return dataclasses.replace(lattice, level=level, extent=extents[level])


def sample_average(
    maps: Sequence[jax.Array],
    lattice: Lattice,
    size: tuple[int, int],
    own: jax.Array | None = None,
    method: Method | None = None,
) -> jax.Array:
    """Mean over the samples of each bin: ``[B, N, *size, C]`` from ``maps``, each ``[B, h, w, C]``.

    ``own [B, N, Hp, Wp]``, float32, are the boxes' own maps, by whose samples at ``lattice.own`` those of the maps are
    multiplied.  Differentiable in ``maps`` and ``own``.  ``method`` "kernel" is that of
    `jaxdet.ops.roi_kernels` where it can be had (`devices.runs_kernels`; on a TPU without ``own``, and of crops that
    `roi_kernels.tpu.fits` takes); "gather", and None, is that of this module.
    """
    return on_own_images(partial(_sample_average, size=size, method=method), maps, lattice, own)


def _sample_average(
    maps: tuple[jax.Array, ...],
    lattice: Lattice,
    own: jax.Array | None,
    *,
    size: tuple[int, int],
    method: Method | None,
) -> jax.Array:
    """As `sample_average`, of the images of one device."""
    if method == "kernel" and runs_kernels() and lattice.level.size:
        # Pallas takes a while to import, and has nothing to do on a CPU.
        if backend() != "tpu":
            from jaxdet.ops.roi_kernels import gpu

            return gpu.kernel_average(tuple(maps), lattice, size, own)
        from jaxdet.ops.roi_kernels import tpu

        if own is None and tpu.fits(maps, lattice, size):
            return tpu.kernel_average(maps, lattice, size)
    # Map after map, each row by row.
    table = jnp.concatenate([m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps], 1)
    pixels = jnp.asarray([m.shape[1] * m.shape[2] for m in maps], jnp.int32)
    first = jnp.cumsum(pixels) - pixels
    lattice = dataclasses.replace(lattice, base=first[lattice.level])
    own = own if own is None else own.reshape(len(own), math.prod(own.shape[1:]))
    return _gathered_average(table, lattice, size, own)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gathered_average(
    table: jax.Array, lattice: Lattice, size: tuple[int, int], own: jax.Array | None = None
) -> jax.Array:
    """As `sample_average`, from a table ``[B, T, C]`` of all maps' pixels.

    ``own [B, R]``, float32, are the boxes' own maps, by whose samples at ``lattice.own`` those of the table are
    multiplied.  Differentiable in ``table`` and ``own``.
    """
    shape = (*lattice.base.shape, *size, table.shape[-1])

    def pool(order: jax.Array, members: Lattice, out: jax.Array) -> jax.Array:
        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            factor = _factor(members, k, size, own)
            for index, weight in _corners(members, k, size):
                total += _rows(table, index) * (weight * factor)[..., None]
            return total

        # Many samples are added up: in float32, and rounded to the dtype of the maps once.
        group = jnp.zeros((*order.shape, *shape[2:]), jnp.float32)
        group = _for_each_sample(members, add, group).astype(table.dtype)
        return jax.vmap(lambda o, i, g: o.at[i].set(g, mode="drop", unique_indices=True))(out, order, group)

    return _for_each_group(lattice, pool, jnp.zeros(shape, table.dtype))


_Saved: TypeAlias = tuple[jax.Array, Lattice, jax.Array | None]
_Gradients: TypeAlias = tuple[jax.Array, jax.Array | None]


def _forward(
    table: jax.Array, lattice: Lattice, size: tuple[int, int], own: jax.Array | None
) -> tuple[jax.Array, _Saved]:
    return _gathered_average(table, lattice, size, own), (table, lattice, own)


def _backward(size: tuple[int, int], saved: _Saved, grad: jax.Array) -> tuple[jax.Array, None, jax.Array | None]:
    """The same groups and samples as forward, with each gather turned into a scatter-add."""
    table, lattice, own = saved

    def spread(order: jax.Array, members: Lattice, out: _Gradients) -> _Gradients:
        group = _members_of(grad, order).astype(jnp.float32)

        def add(k: jax.Array, totals: _Gradients) -> _Gradients:
            to_table, to_own = totals
            factor, places = _factor(members, k, size, own), _corners(members, k, size)
            for index, weight in places:
                to_table = _add_rows(to_table, index, group * (weight * factor)[..., None])
            if to_own is None or members.own is None:
                return to_table, None
            sample = sum(_rows(table, index) * weight[..., None] for index, weight in places)
            # The slope of the result along the value on the box's own map.  The sum over channels is a product with a
            # vector, because XLA:CPU would gather number by number for a plain sum, five times slower.
            slope = jnp.tensordot(sample * group, jnp.ones(group.shape[-1:]), 1, precision="highest")
            slope *= _share(members, k)
            for index, weight in _corners(members.own, k, size):
                to_own = _add_rows(to_own, index, slope * weight)
            return to_table, to_own

        return _for_each_sample(members, add, out)

    none_yet = jnp.zeros(table.shape, jnp.float32), None if own is None else jnp.zeros_like(own)
    to_table, to_own = _for_each_group(lattice, spread, none_yet)
    return to_table.astype(table.dtype), None, to_own


_gathered_average.defvjp(_forward, _backward)


def _for_each_group(lattice: Lattice, work: Callable[[jax.Array, Lattice, _Carry], _Carry], carry: _Carry) -> _Carry:
    """Fold ``work(order [B, g], members, carry)`` over groups of boxes that need about equally many samples."""
    batch, n = lattice.base.shape
    group = min(GROUP if backend() == "cpu" else GROUP_ON_ACCELERATORS, n)
    groups = -(-n // group) if n else 0
    # The most demanding first, so that neighbours in this order need about equally many rounds.
    order = jnp.argsort(lattice.rounds, axis=1, descending=True)
    order = jnp.pad(order, ((0, 0), (0, groups * group - n)), constant_values=n)  # n: out of range, dropped

    def step(g: jax.Array, carry: _Carry) -> _Carry:
        here = jax.lax.dynamic_slice_in_dim(order, g * group, group, axis=1)
        # Slots beyond N are filled with zeros: no samples.
        members = jax.tree.map(lambda a: _members_of(a, here), lattice)
        return work(here, members, carry)

    return jax.lax.fori_loop(0, groups, step, carry) if n and batch else carry


def _for_each_sample(members: Lattice, add: Callable[[jax.Array, _Carry], _Carry], carry: _Carry) -> _Carry:
    """Fold ``add(k, carry)`` over the samples of a bin, as many as the most demanding member has."""
    # A divisor of the number that all have: no sample too many.
    most = AT_ONCE_ON_A_GPU if backend() == "gpu" else 1
    at_once = max(number for number in range(1, most + 1) if members.fixed % number == 0)
    # A CPU gains by a group of invalid boxes, which has no round.
    rounds = members.rounds.max() if backend() == "cpu" or not members.fixed else members.fixed

    def add_several(k: jax.Array, carry: _Carry) -> _Carry:
        for i in range(at_once):
            carry = add(k * at_once + i, carry)
        return carry

    return jax.lax.fori_loop(0, -(-rounds // at_once), add_several, carry)


def _members_of(values: jax.Array, order: jax.Array) -> jax.Array:
    """``[B, g, ...]`` of ``values [B, N, ...]``, zeros for slots beyond N."""
    return jax.vmap(lambda v, i: v.at[i].get(mode="fill", fill_value=0))(values, order)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    return jax.vmap(lambda rows, i: rows[i])(table, index)


def _add_rows(table: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    return jax.vmap(lambda rows, i, v: rows.at[i].add(v))(table, index, values)


def _factor(lattice: Lattice, k: jax.Array, size: tuple[int, int], own: jax.Array | None) -> jax.Array:
    """What every bin's k-th sample counts ``[B, g, *size]``: its share, times its value on the box's own map."""
    share = _share(lattice, k)
    if own is None or lattice.own is None:
        return share
    value = sum((_rows(own, index) * weight for index, weight in _corners(lattice.own, k, size)), jnp.zeros(()))
    # Chosen, not multiplied: the map of a box without samples may hold a NaN.
    return jnp.where(share > 0, share * value, 0.0)


def _share(lattice: Lattice, k: jax.Array) -> jax.Array:
    """1 / count ``[B, g, 1, 1]``; members with fewer samples than the group has rounds wait with 0."""
    return jnp.where(k < lattice.rounds, 1.0 / jnp.maximum(lattice.rounds, 1), 0.0)[..., None, None]


def _corners(lattice: Lattice, k: jax.Array, size: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
    """The four table rows and weights ``[B, g, *size]`` of every bin's k-th sample."""
    columns = jnp.maximum(lattice.count[..., 1], 1)
    which = jnp.stack([k // columns, k % columns], -1)  # row and column of the sample inside the bin
    base, width = lattice.base[..., None, None], lattice.extent[..., 1, None, None]
    # [B, g, rows, 1] and [B, g, 1, columns]: samples of a box form a lattice, so taps are few.
    y = jax.tree.map(lambda a: a[..., :, None], _taps(lattice, which, 0, size[0]))
    x = jax.tree.map(lambda a: a[..., None, :], _taps(lattice, which, 1, size[1]))
    return [(base + row, weight) for row, weight in corners(y, x, width)]


def _taps(lattice: Lattice, which: jax.Array, axis: int, bins: int) -> Taps:
    """Taps ``[B, g, bins]`` of the sample ``which`` in each bin along one axis."""
    start, step, count = (a[..., axis, None] for a in (lattice.start, lattice.bin, lattice.count))
    position = sample_position(start, step, count, jnp.arange(bins), which[..., axis, None])
    return taps(position, lattice.extent[..., axis, None])
