"""What kernels of GPUs and of TPUs have in common: what a program knows of its box, and which boxes reach a tile.

Which boxes reach a tile follows from rows and columns alone: those that reach its rows and its columns.  There is a bit
for each box and row of tiles, and one for each box and column of tiles.

Letters in shapes: B images, N boxes, W words of 32 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxdet.ops.bilinear import Taps, taps
from jaxdet.ops.lattice import Lattice, sample_position

_WORD = 32

Ref: TypeAlias = Any
"""An array in the memory of the device, as a kernel sees it."""

_Carry = TypeVar("_Carry")


@dataclass(frozen=True)
class Box:
    """What a program knows of its box: numbers in pairs, as (y, x)."""

    extent: list[jax.Array]
    start: list[jax.Array]
    bin: list[jax.Array]
    count: list[jax.Array]

    def taps(self, axis: int, which_bin: jax.Array, which: jax.Array) -> Taps:
        """Taps of sample ``which`` in the bins ``which_bin [..]`` along an axis."""
        position = sample_position(self.start[axis], self.bin[axis], self.count[axis], which_bin, which)
        return taps(position, self.extent[axis])

    def weights(self, axis: int, which_bin: jax.Array, pixel: jax.Array) -> jax.Array:
        """How much the samples of bins take of pixels along an axis; the two are broadcast against each other.

        Samples are a lattice, so that rows and columns have sums of their own, and a bin's mean takes of a pixel their
        product times `share`.
        """

        def add(which: jax.Array, total: jax.Array) -> jax.Array:
            return total + touch(pixel, self.taps(axis, which_bin, which))

        shape = jnp.broadcast_shapes(jnp.shape(which_bin), jnp.shape(pixel))
        return jax.lax.fori_loop(0, self.count[axis], add, jnp.zeros(shape, jnp.float32))

    @property
    def share(self) -> jax.Array:
        """What a sample counts in the mean of its bin."""
        return 1.0 / jnp.maximum(self.count[0] * self.count[1], 1).astype(jnp.float32)


def touch(pixel: jax.Array, at: Taps) -> jax.Array:
    """How much of each pixel ``[..]`` a sample takes along an axis."""
    share = jnp.where(pixel == at.low, 1.0 - at.fraction, 0.0) + jnp.where(pixel == at.high, at.fraction, 0.0)
    return jnp.where(at.inside, share, 0.0)


def touched(lattice: Lattice, axis: int, bins: int) -> tuple[jax.Array, jax.Array]:
    """The first and the last pixel ``[B, N, bins]`` int32 along an axis that each bin's samples lie at or between."""
    start, step, count = (a[..., axis, None] for a in (lattice.start, lattice.bin, lattice.count))
    ends = [
        sample_position(start, step, count, jnp.arange(bins), which) for which in (jnp.zeros_like(count), count - 1)
    ]
    last = jnp.maximum(lattice.extent[..., axis, None] - 1, 0)
    # A box may be too large for the positions to be numbers; a kernel must not look outside of the map even then.
    low, high = jnp.nan_to_num(jnp.floor(jnp.minimum(*ends))), jnp.nan_to_num(jnp.floor(jnp.maximum(*ends))) + 1
    return jnp.clip(low, 0, last).astype(jnp.int32), jnp.clip(high, 0, last).astype(jnp.int32)


def reach(
    lattice: Lattice, axis: int, bins: int, here: jax.Array, pixels: int, tile: int
) -> tuple[jax.Array, jax.Array]:
    """Along an axis of a map, which boxes reach which tiles, and by which of their bins.

    ``here [B, N]`` are boxes that sample this map; a tile has ``tile`` of its ``pixels``.  Returns the first bin and
    the one behind the last ``[B, tiles, N, 2]``, and the bits of the boxes ``[B, tiles, W]``; both int32.  A bin
    reaches all that lies between its first and its last sample.
    """
    low, high = (end // tile for end in touched(lattice, axis, bins))
    tiles = jnp.arange(pl.cdiv(pixels, tile))[:, None, None]
    # [B, tiles, N, bins]
    reached = (low[:, None] <= tiles) & (tiles <= high[:, None]) & here[:, None, :, None]
    first, behind = reached.argmax(-1), bins - reached[..., ::-1].argmax(-1)
    words = reached.any(-1)
    words = jnp.pad(words, ((0, 0), (0, 0), (0, -words.shape[-1] % _WORD))).reshape(*words.shape[:2], -1, _WORD)
    bits = (words.astype(jnp.uint32) << jnp.arange(_WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
    return jnp.stack([first, behind], -1).astype(jnp.int32), jax.lax.bitcast_convert_type(bits, jnp.int32)


def for_each_bit(
    words: int, word_of: Callable[[jax.Array], jax.Array], work: Callable[[jax.Array, _Carry], _Carry], carry: _Carry
) -> _Carry:
    """Fold ``work(n, carry)`` over the boxes n that have a bit in the words ``word_of(0)``, ``word_of(1)``, .."""

    def of_word(k: jax.Array, carry: _Carry) -> _Carry:
        def of_lowest(state: tuple[jax.Array, _Carry]) -> tuple[jax.Array, _Carry]:
            word, carry = state
            lowest = word & -word
            return word ^ lowest, work(k * _WORD + _WORD - 1 - jax.lax.clz(lowest), carry)

        return jax.lax.while_loop(lambda state: state[0] != 0, of_lowest, (word_of(k), carry))[1]

    return jax.lax.fori_loop(0, words, of_word, carry)
