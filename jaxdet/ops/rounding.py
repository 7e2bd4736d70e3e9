"""Arithmetic whose last bit does not depend on how it is compiled, for what is then rounded, compared or ranked.

XLA divides by a number that is the same for several others by multiplying with its reciprocal, and divides on GPUs with
an error of two units in the last place.  Where a product is added to something it may round once (fused
multiply-add) or twice; copies of one expression in one program can differ in that.  A loss does not care.  But a box
of 11 pixels a bin gets 12 samples, an IoU of 0.7 is below 0.7, and no anchor has the largest overlap of all anchors.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.devices import backend

_LARGEST = np.finfo(np.float32).max
# Keeps the upper 12 of the 24 bits of a float32's fraction: a product of two such halves has 24, and is exact.
_UPPER_HALF = np.uint32(0xFFFFF000)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a * b``, rounded before anything is added to it.

    The bound changes no finite number; it stands between product and sum, which so cannot become one instruction.
    (An `optimization_barrier` is gone by the time when instructions are chosen.)
    """
    return jnp.minimum(a * b, _LARGEST)


def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 nearest to ``a / b``, of two arrays of one shape.

    ``b`` may not be a broadcast of fewer numbers: XLA would multiply with their reciprocals.
    """
    q = a / b
    return q if backend() == "cpu" else refined(a, b, q)


def refined(a: jax.Array, b: jax.Array, q: jax.Array) -> jax.Array:
    """The float32 nearest to ``a / b``, given one that is some units in the last place away from it."""
    (q_high, q_low), (b_high, b_low) = _halves(q), _halves(b)
    # Products of halves are exact, so that it does not matter whether they are rounded before they are subtracted.
    rest = a - q_high * b_high - q_high * b_low - q_low * b_high - q_low * b_low
    # An infinite or NaN quotient is final: its rest would be NaN.
    return jnp.where(jnp.isfinite(rest), q + rest / b, q)


def whole_parts(x: jax.Array, part: jax.Array | float) -> jax.Array:
    """How many parts of that size cover ``x``, a float32: ``ceil(x / part)`` without the error of the division.

    Exact for a whole ``part`` and less than 2**24 / part of them.
    """
    # The division may be off by a unit in the last place and so the count by one; products of whole numbers are exact.
    count = jnp.ceil(x / part)
    count = jnp.where((count - 1) * part >= x, count - 1, count)
    return jnp.where(count * part < x, count + 1, count)


def snapped(x: jax.Array) -> jax.Array:
    """``x``, or the whole number that differs from it by no more than a few roundings."""
    # 2^-21 of a number are four to eight units in its last place: the error of a few operations.
    whole = jnp.round(x)
    return jnp.where(jnp.abs(x - whole) <= jnp.abs(whole) * 2.0**-21, whole, x)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two float32 of half as many bits each, whose sum is ``x``."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & _UPPER_HALF
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high
