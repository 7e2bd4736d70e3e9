"""RoIAlign as kernels for GPUs, written in Pallas and compiled by Triton: what `roi_align` gathers, in one pass.

Forward a program computes a row of one box's bins, in as many rounds as this box has samples in a bin: no box waits for
another.  Backward a program owns a tile of a map's pixels, and adds up what the boxes that reach it send there.  No two
programs write to one place.  So there are no atomic sums: the result does not depend on which program runs first, and
passes memory once, in the dtype of the map.

Letters in shapes: B images, N boxes, C channels, h w rows and columns of a map, P pixels of a tile, Hp Wp rows and
columns of the boxes' own maps; k channels and j columns of bins of a program, both powers of two; ``size`` is rows x
columns of bins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxdet.ops.bilinear import corners
from jaxdet.ops.devices import backend
from jaxdet.ops.lattice import Lattice
from jaxdet.ops.roi_kernels.boxes import Box, Ref, for_each_bit, reach, touch

_TILE = 4
"""Pixels of a tile's side.  A bin covers one to a few pixels: of larger tiles it would fill a small part."""

_CHANNELS = 256
"""At most so many channels in a program: its sums, in float32 for 8 columns of bins or 16 pixels, lie in registers."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_average(
    maps: tuple[jax.Array, ...], lattice: Lattice, size: tuple[int, int], own: jax.Array | None = None
) -> jax.Array:
    """Mean over the samples of each bin: ``[B, N, *size, C]`` from ``maps``, each ``[B, h, w, C]``.

    ``own [B, N, Hp, Wp]``, float32, are the boxes' own maps, by whose samples at ``lattice.own`` those of the maps are
    multiplied.  Differentiable in ``maps`` and ``own``.  On a CPU the kernels are interpreted, slowly, for tests.
    """
    channels, block = maps[0].shape[-1], _block(maps)
    return _call(
        partial(_forward_kernel, block=block, shown=own is not None),
        jax.ShapeDtypeStruct((*lattice.level.shape, *size, channels), maps[0].dtype),
        grid=(size[0], pl.cdiv(channels, block), *lattice.level.shape[::-1]),
        sums=pl.next_power_of_2(size[1]) * block,
    )(*_samples(lattice, own), lattice.level, *map(_pixels, maps))


_Kept: TypeAlias = tuple[tuple[jax.Array, ...], Lattice, jax.Array | None]


def _forward(
    maps: tuple[jax.Array, ...], lattice: Lattice, size: tuple[int, int], own: jax.Array | None
) -> tuple[jax.Array, _Kept]:
    return kernel_average(maps, lattice, size, own), (maps, lattice, own)


def _backward(
    size: tuple[int, int], kept: _Kept, grad: jax.Array
) -> tuple[tuple[jax.Array, ...], None, jax.Array | None]:
    maps, lattice, own = kept
    to_maps = tuple(_to_map(level, m, lattice, size, own, grad) for level, m in enumerate(maps))
    return to_maps, None, None if own is None else _to_own(maps, lattice, own, grad)


kernel_average.defvjp(_forward, _backward)


def _samples(lattice: Lattice, own: jax.Array | None) -> list[jax.Array]:
    """The arrays of which `_read` makes a box, and those of its own map."""
    arrays = [lattice.extent, lattice.start, lattice.bin, lattice.count]
    if own is None or lattice.own is None:
        return arrays
    return [*arrays, *_samples(lattice.own, None), own.reshape(*own.shape[:2], -1)]


def _read(refs: Sequence[Ref], b: jax.Array, n: jax.Array) -> Box:
    return Box(*([pair[b, n, axis] for axis in (0, 1)] for pair in refs))


def _pixels(m: jax.Array) -> jax.Array:
    """A map ``[B, h, w, C]`` as ``[B, h * w, C]``."""
    return m.reshape(len(m), -1, m.shape[-1])


def _call(kernel: Any, out: jax.ShapeDtypeStruct, *, grid: tuple[int, ...], sums: int) -> Any:
    """A call of a kernel whose programs have so many sums each: about 16 of them for a thread, 32 threads to a warp."""
    warps = min(max(sums // 512, 1), 4)
    params = plgpu.CompilerParams(num_warps=warps, num_stages=1)
    return pl.pallas_call(kernel, out, grid=grid, interpret=backend() == "cpu", compiler_params=params)


def _block(maps: tuple[jax.Array, ...]) -> int:
    """Channels of a program."""
    return min(pl.next_power_of_2(maps[0].shape[-1]), _CHANNELS)


def _forward_kernel(*refs: Ref, block: int, shown: bool) -> None:
    """A row of bins of one box, for a block of channels."""
    (where, own, (level, *maps)), out = _split(refs[:-1], shown), refs[-1]
    i, c, n, b = (pl.program_id(axis) for axis in range(4))
    box = _read(where, b, n)
    # What is too much in blocks of a power of two is neither read nor written.
    j = jnp.arange(pl.next_power_of_2(out.shape[3]))
    channel = c * block + jnp.arange(block)
    fits = (channel < out.shape[-1])[None, :]

    def total(pixels: Ref) -> jax.Array:
        def add(row: jax.Array, column: jax.Array, total: jax.Array) -> jax.Array:
            value = _sample(pixels, b, box, (i, j), (row, column), channel, fits)
            return total + (value if own is None else value * own.values(b, n, (i, j), (row, column))[:, None])

        return _rounds(box, add, jnp.zeros((len(j), block), jnp.float32))

    mean = _of_level(level[b, n], total, maps) * box.share
    place = out.at[b, n, i, j[:, None], channel[None, :]]
    plgpu.store(place, mean.astype(out.dtype), mask=(j < out.shape[3])[:, None] & fits)


@dataclass(frozen=True)
class _Own:
    """The boxes' own maps, as a kernel sees them."""

    where: Sequence[Ref]
    pixels: Ref

    def values(self, b: jax.Array, n: jax.Array, bins: tuple[Any, Any], which: tuple[Any, Any]) -> jax.Array:
        """Values of the own map of a box at samples of its bins: as `_sample`, without channels."""
        box = _read(self.where, b, n)
        y, x = (box.taps(axis, bins[axis], which[axis]) for axis in (0, 1))
        found = (self.pixels[b, n, index] * weight for index, weight in corners(y, x, box.extent[1]))
        return sum(found, jnp.zeros(()))

    def weights(
        self, box: Box, b: jax.Array, n: jax.Array, i: jax.Array, y: jax.Array, x: jax.Array
    ) -> Callable[[jax.Array], jax.Array]:
        """As `_weights`, each sample times the value of the own map of its box."""

        def of_bin(j: jax.Array) -> jax.Array:
            def add(row: jax.Array, column: jax.Array, total: jax.Array) -> jax.Array:
                touched = touch(y, box.taps(0, i, row)) * touch(x, box.taps(1, j, column))
                return total + touched * self.values(b, n, (i, j), (row, column))

            return _rounds(box, add, jnp.zeros(y.shape, jnp.float32)) * box.share

        return of_bin


def _split(refs: Sequence[Ref], shown: bool) -> tuple[Sequence[Ref], _Own | None, Sequence[Ref]]:
    """Where boxes sample, their own maps if ``shown``, and the rest."""
    if not shown:
        return refs[:4], None, refs[4:]
    return refs[:4], _Own(refs[4:8], refs[8]), refs[9:]


def _rounds(box: Box, add: Any, total: Any) -> Any:
    """``total`` after ``add(row, column, total)`` for every sample of a bin."""
    return jax.lax.fori_loop(
        0,
        box.count[0],
        lambda row, total: jax.lax.fori_loop(0, box.count[1], lambda column, total: add(row, column, total), total),
        total,
    )


def _of_level(level: jax.Array, work: Any, maps: Sequence[Ref]) -> jax.Array:
    """``work`` of the map of that level."""
    return jax.lax.switch(level, [partial(work, pixels) for pixels in maps]) if len(maps) > 1 else work(maps[0])


def _sample(
    pixels: Ref,
    b: jax.Array,
    box: Box,
    bins: tuple[Any, Any],
    which: tuple[Any, Any],
    channel: jax.Array,
    fits: jax.Array,
) -> jax.Array:
    """Bilinear values ``[j, k]``, float32, of one sample in each of a row of bins."""
    y, x = (box.taps(axis, bins[axis], which[axis]) for axis in (0, 1))
    total = jnp.zeros((len(bins[1]), len(channel)), jnp.float32)
    for index, weight in corners(y, x, box.extent[1]):
        place = pixels.at[b, index[:, None], channel[None, :]]
        total += plgpu.load(place, mask=fits, other=0.0).astype(jnp.float32) * weight[:, None]
    return total


def _to_map(
    level: int,
    m: jax.Array,
    lattice: Lattice,
    size: tuple[int, int],
    own: jax.Array | None,
    grad: jax.Array,
) -> jax.Array:
    """The gradient ``[B, h, w, C]`` of the map of one level."""
    batch, height, width, channels = m.shape
    block = _block((m,))
    here = (lattice.level == level) & (lattice.rounds > 0)
    rows, row_bits = reach(lattice, 0, size[0], here, height, _TILE)
    columns, column_bits = reach(lattice, 1, size[1], here, width, _TILE)
    return _call(
        partial(_tile_kernel, block=block, shown=own is not None),
        jax.ShapeDtypeStruct(m.shape, m.dtype),
        grid=(rows.shape[1] * columns.shape[1], pl.cdiv(channels, block), batch),
        sums=_TILE**2 * block,
    )(*_samples(lattice, own), rows, columns, row_bits, column_bits, grad)


def _tile_kernel(*refs: Ref, block: int, shown: bool) -> None:
    """The gradient of a tile of pixels, for a block of channels."""
    (where, own, (rows, columns, row_bits, column_bits, grad)), out = _split(refs[:-1], shown), refs[-1]
    tile, c, b = (pl.program_id(axis) for axis in range(3))
    down, across = jax.lax.div(tile, columns.shape[1]), jax.lax.rem(tile, columns.shape[1])
    place = jnp.arange(_TILE**2)
    y, x = down * _TILE + place // _TILE, across * _TILE + place % _TILE
    channel = c * block + jnp.arange(block)
    fits = channel < out.shape[-1]

    def of_box(n: jax.Array, total: jax.Array) -> jax.Array:
        box = _read(where, b, n)

        def of_row(i: jax.Array, total: jax.Array) -> jax.Array:
            weights = _weights(box, i, y, x) if own is None else own.weights(box, b, n, i, y, x)

            def of_bin(j: jax.Array, total: jax.Array) -> jax.Array:
                values = plgpu.load(grad.at[b, n, i, j, channel], mask=fits, other=0.0).astype(jnp.float32)
                return total + weights(j)[:, None] * values[None, :]

            return jax.lax.fori_loop(columns[b, across, n, 0], columns[b, across, n, 1], of_bin, total)

        return jax.lax.fori_loop(rows[b, down, n, 0], rows[b, down, n, 1], of_row, total)

    def word_of(k: jax.Array) -> jax.Array:
        return row_bits[b, down, k] & column_bits[b, across, k]

    total = for_each_bit(row_bits.shape[2], word_of, of_box, jnp.zeros((_TILE**2, block), jnp.float32))
    inside = ((y < out.shape[1]) & (x < out.shape[2]))[:, None] & fits[None, :]
    plgpu.store(out.at[b, y[:, None], x[:, None], channel[None, :]], total.astype(out.dtype), mask=inside)


def _weights(box: Box, i: jax.Array, y: jax.Array, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """For each column of bins in row ``i``, how much the mean of that bin takes of pixels ``y, x [P]``."""
    of_rows = box.weights(0, i, y) * box.share
    return lambda j: of_rows * box.weights(1, j, x)


def _to_own(maps: tuple[jax.Array, ...], lattice: Lattice, own: jax.Array, grad: jax.Array) -> jax.Array:
    """The gradient ``[B, N, Hp, Wp]`` of the boxes' own maps."""
    block = _block(maps)
    return _call(
        partial(_own_kernel, block=block),
        jax.ShapeDtypeStruct(own.shape, jnp.float32),
        grid=lattice.level.shape[::-1],
        sums=pl.next_power_of_2(grad.shape[3]) * block,
    )(*_samples(lattice, own), lattice.level, grad, *map(_pixels, maps))


def _own_kernel(*refs: Ref, block: int) -> None:
    """The gradient of one box's own map."""
    where, own, level, grad, *maps, out = refs[:4], _Own(refs[4:8], refs[8]), *refs[9:]
    n, b = pl.program_id(0), pl.program_id(1)
    rows, columns, channels = grad.shape[2:]
    box, shown = _read(where, b, n), _read(own.where, b, n)
    j, y, x = (jnp.arange(pl.next_power_of_2(extent)) for extent in (columns, *out.shape[2:]))

    def total(pixels: Ref) -> jax.Array:
        def of_row(i: jax.Array, total: jax.Array) -> jax.Array:
            def add(row: jax.Array, column: jax.Array, total: jax.Array) -> jax.Array:
                def of_block(c: jax.Array, slope: jax.Array) -> jax.Array:
                    channel = c * block + jnp.arange(block)
                    fits = (channel < channels)[None, :]
                    value = _sample(pixels, b, box, (i, j), (row, column), channel, fits)
                    place = grad.at[b, n, i, j[:, None], channel[None, :]]
                    up = plgpu.load(place, mask=(j < columns)[:, None] & fits, other=0.0)
                    return slope + (value * up.astype(jnp.float32)).sum(1)

                # The slope of the result along the value on the box's own map, in each of a row of bins.
                slope = jax.lax.fori_loop(0, pl.cdiv(channels, block), of_block, jnp.zeros(j.shape, jnp.float32))
                down = touch(y, shown.taps(0, i, row))
                across = touch(x[None, :], jax.tree.map(lambda a: a[:, None], shown.taps(1, j, column)))
                return total + down[:, None] * (slope[:, None] * across).sum(0)[None, :]

            return _rounds(box, add, total)

        return jax.lax.fori_loop(0, rows, of_row, jnp.zeros((len(y), len(x)), jnp.float32))

    found = _of_level(level[b, n], total, maps) * box.share
    inside = (y < out.shape[2])[:, None] & (x < out.shape[3])[None, :]
    plgpu.store(out.at[b, n, y[:, None], x[None, :]], found, mask=inside)
