"""The largest of many values, on a CPU by sorting, on a TPU by counting.

XLA's compiler for TPUs needs half a minute for each sort of some hundred thousand values, and a training step has more
than ten of them.  Counting needs no sort: how many values are above a threshold says on which side of it the k-th is.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdet.ops.devices import backend, devices_of_arrays

_COMPARED = 2**14
"""Values up to which each is compared with each, in place of a sort."""

_ROW = 512
"""Places that are counted up by one product."""


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The ``k`` largest of ``values [N]``, largest first, and where they are; of equal ones the first comes first.

    ``values`` are float32 without NaN.
    """
    if backend() == "tpu":
        index = _largest(ordered(values), k)
    elif devices_of_arrays() == 1:
        largest, index = jax.lax.top_k(values, k)
        return largest, index
    else:
        # For ``jax.lax.top_k`` XLA first brings a batch that is split over the devices to every one of them (jax 0.10),
        # a sort leaves it where it is.
        index = largest_first(values)[:k]
    return values[index], index


def sorts_at_once(number: int) -> bool:
    """Whether it takes a compiler no long time to order so many values; else choose the largest ones only."""
    return backend() != "tpu" or number <= _COMPARED


def largest_first(values: jax.Array, number: int | None = None) -> jax.Array:
    """Where the largest of ``values [N]`` float32 is, the next and so on, the first of equal ones first.

    ``[number]`` int32, None: of all.  NaN is not among the values.
    """
    if backend() == "tpu" and (number is not None or len(values) <= _COMPARED):
        keys = ordered(jnp.where(values == 0, 0.0, values))  # -0.0 is 0.0 for a sort
        return _largest(keys, len(values) if number is None else number)
    return jnp.argsort(values, descending=True, stable=True)[:number]


def ordered(values: jax.Array) -> jax.Array:
    """Whole numbers ``[...]`` uint32 in the order that ``jax.lax.top_k`` has of the float32 ``values [...]``.

    That is the order of the numbers, with -0.0 before 0.0, and NaN beyond infinity on the side of its sign.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    # Of floats above 0 the bits are in their order, of those below in the opposite one.
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def last_of_largest(keys: jax.Array, number: jax.Array) -> jax.Array:
    """The smallest ``[...]`` of the ``number [...]`` largest of ``keys [..., N]`` uint32; 2 ** 32 - 1 where it is 0.

    There is no sort: the threshold is found digit by digit, each in a pass of counting.
    """
    # A digit of 4 bits takes 15 comparisons at once, which cost a CPU as much as 15 passes, and others hardly more
    # than one.
    bits = 1 if backend() == "cpu" else 4
    digits = jnp.arange(1, 2**bits, dtype=jnp.uint32)

    def add_digit(i: jax.Array, limit: jax.Array) -> jax.Array:
        shift = jnp.asarray(32 - bits * (i + 1), jnp.uint32)
        higher = limit[..., None] | (digits << shift)
        enough = (keys[..., None, :] >= higher[..., None]).sum(-1) >= number[..., None]
        return limit | (enough.sum(-1).astype(jnp.uint32) << shift)

    return jax.lax.fori_loop(0, 32 // bits, add_digit, jnp.zeros(keys.shape[:-1], jnp.uint32))


def _largest(keys: jax.Array, k: int) -> jax.Array:
    return _by_comparing(keys)[:k] if len(keys) <= _COMPARED else _by_counting(keys, k)


def _by_counting(keys: jax.Array, k: int) -> jax.Array:
    # XLA's compiler for TPUs takes four times as long where it may fuse one of these parts into another (jax 0.10.2).
    apart: Any = jax.lax.optimization_barrier
    limit = last_of_largest(keys, jnp.int32(k))
    keys, limit = apart((keys, limit))
    above, tied = apart(count_up(jnp.stack([keys > limit, keys == limit])))
    # Of those at the limit the first ones fill up.
    chosen = apart(above + jnp.minimum(tied, k - above[-1]))
    index = apart(jnp.searchsorted(chosen, jnp.arange(1, k + 1)).astype(jnp.int32))
    return index[_by_comparing(apart(keys[index]))]


def count_up(marks: jax.Array) -> jax.Array:
    """How many of ``marks [..., N]`` bool are true up to each place, itself included, ``[..., N]`` int32.

    In rows, by products with a triangle of ones: XLA's compiler for TPUs takes as long for a cumulative sum as for a
    sort.  No number in a product is above `_ROW`, which bfloat16 factors of 0 and 1 and float32 sums hold exactly.
    """
    n = marks.shape[-1]
    padded = jnp.pad(marks, [(0, 0)] * (marks.ndim - 1) + [(0, -n % _ROW)])
    rows = padded.reshape(*marks.shape[:-1], -1, _ROW).astype(jnp.bfloat16)
    inside = jnp.dot(rows, jnp.tri(_ROW, dtype=jnp.bfloat16).T, preferred_element_type=jnp.float32).astype(jnp.int32)
    number = rows.shape[-2]
    earlier = jnp.tri(number, k=-1, dtype=bool)  # [row, row before it]
    before = jnp.where(earlier, inside[..., None, :, -1], 0).sum(-1)
    return (before[..., None] + inside).reshape(*marks.shape[:-1], -1)[..., :n]


def _by_comparing(keys: jax.Array) -> jax.Array:
    n = len(keys)
    place = jnp.arange(n, dtype=jnp.int32)
    before = (keys > keys[:, None]) | ((keys == keys[:, None]) & (place < place[:, None]))
    return jnp.zeros(n, jnp.int32).at[before.sum(1)].set(place, unique_indices=True)
