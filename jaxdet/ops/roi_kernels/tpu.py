"""RoIAlign as kernels for TPUs, written in Pallas and compiled by Mosaic: what `roi_align` gathers, as products.

A TPU has no fast way to gather rows, and a fast one to multiply matrices.  How much the mean of a bin takes of a pixel
is a product, of what its samples take of the pixel's row and of its column.  So the small matrices of rows and of
columns, which hold the sum over all samples already, say what each of the S bins of a box takes of each of the P pixels
of a tile; and crops are that matrix times the pixels, the gradient of the pixels is it times that of the crops.

Maps and crops stay in HBM.  Forward a program goes through the tiles of the window that its box reaches, each copied
to VMEM while the one before is multiplied.  Backward a program owns a tile of a map's pixels, goes through the boxes
that reach it in the same way, and writes once: no two programs write to one place.  All sums are in float32.

A pixel that is not a number makes crops whose tiles have it not a number, also where no sample touches it.

Letters in shapes: B images, N boxes, M all B * N of them, C channels, h w rows and columns of a map, P pixels of a
tile, S bins of a box; ``size`` is rows x columns of bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxdet.ops.lattice import Lattice
from jaxdet.ops.roi_kernels.boxes import Box, Ref, for_each_bit, reach, touched

_TILE = 16
"""Pixels of a tile's side.  A box of its own level covers 14 to 28 pixels: it reaches few tiles, and most of each."""

_ALIGNED = 8
"""Copies from HBM begin at multiples of so many columns of a map."""

_IN_HBM = pl.BlockSpec(memory_space=pltpu.HBM)

_MOST_BOXES = 8192
"""So many boxes at once: where they sample lies in the memory for scalars, 1 MB, with 64 bytes for each."""

_MOST_BINS = 1024
_MOST_NUMBERS = 5 * 2**16
"""Of a tile and a crop together: with all that is made of them they lie in VMEM, of which a kernel has 16 MB."""


def fits(maps: Sequence[jax.Array], lattice: Lattice, size: tuple[int, int]) -> bool:
    """Whether the kernels take such crops of such maps."""
    channels, bins = maps[0].shape[-1], size[0] * size[1]
    small = bins <= _MOST_BINS and (_TILE**2 + bins) * channels <= _MOST_NUMBERS
    return small and lattice.level.shape[1] <= _MOST_BOXES


def kernel_average(maps: Sequence[jax.Array], lattice: Lattice, size: tuple[int, int]) -> jax.Array:
    """Mean over the samples of each bin: ``[B, N, *size, C]`` from ``maps``, each ``[B, h, w, C]``, which must `fits`.

    Differentiable in ``maps``.
    """
    batch, number = lattice.level.shape
    images = max(_MOST_BOXES // number, 1)
    parts = [itemgetter(slice(i, i + images)) for i in range(0, batch, images)]
    return jnp.concatenate([_average(*jax.tree.map(part, (tuple(maps), lattice)), size) for part in parts])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _average(maps: tuple[jax.Array, ...], lattice: Lattice, size: tuple[int, int]) -> jax.Array:
    """As `kernel_average`, of images with no more than `_MOST_BOXES` boxes together."""
    maps = tuple(map(_with_whole_tiles, maps))
    channels, bins, dtype = maps[0].shape[-1], size[0] * size[1], maps[0].dtype
    numbers = [*_samples(lattice), *_windows(lattice, size, [m.shape[1:3] for m in maps])]
    crops = pl.pallas_call(
        partial(_crop_kernel, size=size, boxes=lattice.level.shape[1]),
        jax.ShapeDtypeStruct((lattice.level.size, bins, channels), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(numbers),
            grid=(lattice.level.size,),
            in_specs=[_IN_HBM] * len(maps),
            out_specs=pl.BlockSpec((None, bins, channels), lambda i, *_: (i, 0, 0)),
            scratch_shapes=[
                pltpu.VMEM((2, _TILE, _TILE, channels), dtype),
                pltpu.VMEM((bins, channels), jnp.float32),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        name="roi_align",
    )(*numbers, *map(_in_hbm, maps))
    return crops.reshape(*lattice.level.shape, *size, channels)


_Kept: TypeAlias = tuple[tuple[jax.Array, ...], Lattice]


def _forward(maps: tuple[jax.Array, ...], lattice: Lattice, size: tuple[int, int]) -> tuple[jax.Array, _Kept]:
    return _average(maps, lattice, size), (maps, lattice)


def _backward(size: tuple[int, int], kept: _Kept, grad: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
    maps, lattice = kept
    return tuple(_to_map(level, m, lattice, size, grad) for level, m in enumerate(maps)), None


_average.defvjp(_forward, _backward)


def _with_whole_tiles(m: jax.Array) -> jax.Array:
    """A map with zeros behind, if it is smaller than a tile or its last columns could not be copied."""
    height, width = m.shape[1:3]
    more = max(_TILE - height, 0), max(_TILE - width, -width % _ALIGNED)
    return jnp.pad(m, ((0, 0), (0, more[0]), (0, more[1]), (0, 0))) if any(more) else m


def _in_hbm(array: jax.Array) -> jax.Array:
    """The array where copies of it cost no instructions: XLA would keep small ones in VMEM."""
    return pltpu.with_memory_space_constraint(array, pltpu.HBM)


def _samples(lattice: Lattice) -> list[jax.Array]:
    """The arrays of which `_read` makes a box: numbers in a row, since scalar memory pads other shapes."""
    return [array.reshape(-1) for array in (lattice.extent, lattice.start, lattice.bin, lattice.count)]


def _pair(ref: Ref, i: jax.Array) -> list[jax.Array]:
    return [ref[2 * i + axis] for axis in (0, 1)]


def _read(refs: Sequence[Ref], i: jax.Array) -> Box:
    return Box(*(_pair(pair, i) for pair in refs))


def _windows(lattice: Lattice, size: tuple[int, int], extents: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The level of each box ``[M]``; and ``[M * 2]`` where its first tile begins, how many, and where the last may."""
    level = jnp.clip(lattice.level, 0, len(extents) - 1)
    ends = [touched(lattice, axis, size[axis]) for axis in (0, 1)]
    first = jnp.stack([low.min(-1) for low, _ in ends], -1)
    last = jnp.stack([high.max(-1) for _, high in ends], -1)
    first -= first % jnp.asarray([1, _ALIGNED])
    # A box without samples has a tile too, so that each program knows which one the next begins with.
    tiles = jnp.where(lattice.rounds[..., None] > 0, (last - first) // _TILE + 1, 1)
    return [a.reshape(-1) for a in (level, first, tiles, jnp.asarray(extents, jnp.int32)[level] - _TILE)]


@dataclass(frozen=True)
class _Windows:
    """`_windows`, as a kernel sees them."""

    level: Ref
    first: Ref
    tiles: Ref
    latest: Ref

    def number(self, i: jax.Array) -> jax.Array:
        """Tiles of a box."""
        down, across = _pair(self.tiles, i)
        return down * across

    def places(self, i: jax.Array, k: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """The first pixel (y, x) of tile ``k`` of a box, and the first that no tile before it has."""
        across = self.tiles[2 * i + 1]
        steps = jax.lax.div(k, across), jax.lax.rem(k, across)
        new = [start + step * _TILE for start, step in zip(_pair(self.first, i), steps, strict=True)]
        y, x = (jnp.minimum(start, latest) for start, latest in zip(new, _pair(self.latest, i), strict=True))
        return [y, pl.multiple_of(x, _ALIGNED)], new


def _crop_kernel(*refs: Ref, size: tuple[int, int], boxes: int) -> None:
    """The crop of one box, from the tiles of its window."""
    where, windows = refs[:4], _Windows(*refs[4:8])
    *maps, out, pixels, sums, turn, arrived = refs[8:]
    i = pl.program_id(0)

    def start(i: jax.Array, k: jax.Array, slot: jax.Array) -> None:
        (y, x), _ = windows.places(i, k)
        for level, m in enumerate(maps):
            tile = m.at[jax.lax.div(i, boxes), pl.ds(y, _TILE), pl.ds(x, _TILE)]
            copy = pltpu.make_async_copy(tile, pixels.at[slot], arrived.at[slot])
            pl.when(windows.level[i] == level)(copy.start)

    @pl.when(i == 0)
    def _() -> None:
        turn[0] = 0
        start(i, jnp.int32(0), jnp.int32(0))

    box, tiles = _read(where, i), windows.number(i)
    sums[...] = jnp.zeros(sums.shape, jnp.float32)

    def of_tile(k: jax.Array, slot: jax.Array) -> jax.Array:
        # The next tile comes while this one is multiplied; behind the last it is the first of the next box.
        ends = k + 1 == tiles
        following = jnp.where(ends, i + 1, i)
        pl.when(following < pl.num_programs(0))(lambda: start(following, jnp.where(ends, 0, k + 1), 1 - slot))
        whole = maps[0].at[0, pl.ds(0, _TILE), pl.ds(0, _TILE)]  # waiting asks for no more than the size
        pltpu.make_async_copy(whole, pixels.at[slot], arrived.at[slot]).wait()
        weights = _weights(box, *windows.places(i, k), size)
        sums[...] += _product(weights, pixels[slot].reshape(_TILE**2, -1), 0)
        return 1 - slot

    turn[0] = jax.lax.fori_loop(0, tiles, of_tile, turn[0])
    out[...] = sums[...].astype(out.dtype)


def _weights(box: Box, first: list[jax.Array], new: list[jax.Array], size: tuple[int, int]) -> jax.Array:
    """How much the mean of each bin takes of each pixel of a tile, ``[P, S]`` float32.

    The tile begins at the pixel ``first``; those before ``new`` are those of another tile, too.
    """
    shape = _TILE, size[0] * size[1]
    number, step = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 0))
    bins = jax.lax.div(number, size[1]), jax.lax.rem(number, size[1])

    def of_axis(axis: int) -> jax.Array:
        pixel = first[axis] + step
        return jnp.where(pixel >= new[axis], box.weights(axis, bins[axis], pixel), 0.0)

    rows, columns = of_axis(0) * box.share, of_axis(1)
    return (rows[:, None] * columns[None]).reshape(_TILE**2, -1)


def _product(weights: jax.Array, values: jax.Array, over: int) -> jax.Array:
    """``weights`` times ``values``, over that axis of the weights and the first of the values, in float32.

    Values in bfloat16 are multiplied as they are; weights then as two numbers, which keep twice its digits.
    """
    axes = (((over,), (0,)), ((), ()))
    if values.dtype == jnp.float32:
        return jax.lax.dot_general(weights, values, axes, precision="highest")
    high = weights.astype(values.dtype)
    low = (weights - high.astype(jnp.float32)).astype(values.dtype)
    times = partial(jax.lax.dot_general, rhs=values, dimension_numbers=axes, preferred_element_type=jnp.float32)
    return times(high) + times(low)


def _to_map(level: int, m: jax.Array, lattice: Lattice, size: tuple[int, int], grad: jax.Array) -> jax.Array:
    """The gradient ``[B, h, w, C]`` of the map of one level."""
    batch, height, width, channels = m.shape
    boxes, bins = lattice.level.shape[1], size[0] * size[1]
    here = (lattice.level == level) & (lattice.rounds > 0)
    _, rows = reach(lattice, 0, size[0], here, height, _TILE)
    _, columns = reach(lattice, 1, size[1], here, width, _TILE)
    numbers = [*_samples(lattice), rows.reshape(-1), columns.reshape(-1)]
    return pl.pallas_call(
        partial(_tile_kernel, size=size, boxes=boxes, words=rows.shape[2]),
        jax.ShapeDtypeStruct(m.shape, m.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(numbers),
            grid=(batch, rows.shape[1], columns.shape[1]),
            in_specs=[_IN_HBM],
            out_specs=pl.BlockSpec((None, _TILE, _TILE, channels), lambda b, down, across, *_: (b, down, across, 0)),
            scratch_shapes=[
                pltpu.SMEM((boxes,), jnp.int32),
                pltpu.VMEM((2, bins, channels), grad.dtype),
                pltpu.VMEM((_TILE**2, channels), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        name=f"roi_align_gradient_{level}",
    )(*numbers, _in_hbm(grad.reshape(-1, bins, channels)))


def _tile_kernel(*refs: Ref, size: tuple[int, int], boxes: int, words: int) -> None:
    """The gradient of a tile of pixels, from the boxes that reach it."""
    where, (rows, columns, grad, out, members, crops, sums, arrived) = refs[:4], refs[4:]
    b, down, across = (pl.program_id(axis) for axis in range(3))

    def word_of(k: jax.Array) -> jax.Array:
        row, column = b * pl.num_programs(1) + down, b * pl.num_programs(2) + across
        return rows[row * words + k] & columns[column * words + k]

    def note(n: jax.Array, found: jax.Array) -> jax.Array:
        members[found] = b * boxes + n
        return found + 1

    found = for_each_bit(words, word_of, note, jnp.int32(0))

    def copy(j: jax.Array) -> Any:
        slot = jax.lax.rem(j, 2)
        return pltpu.make_async_copy(grad.at[members[j]], crops.at[slot], arrived.at[slot])

    pl.when(found > 0)(lambda: copy(jnp.int32(0)).start())
    sums[...] = jnp.zeros(sums.shape, jnp.float32)

    @pl.loop(0, found)
    def _(j: jax.Array) -> None:
        pl.when(j + 1 < found)(lambda: copy(j + 1).start())
        copy(j).wait()
        first = [down * _TILE, across * _TILE]
        sums[...] += _product(_weights(_read(where, members[j]), first, first, size), crops[jax.lax.rem(j, 2)], 1)

    out[...] = sums[...].reshape(out.shape).astype(out.dtype)
