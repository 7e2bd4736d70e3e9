"""Choices that depend on how many devices arrays are split over."""

import jax
import jax.numpy as jnp


def devices_of_arrays() -> int:
    """Over how many devices an array may be split where this is traced.

    All of them, as the compiler decides; but one inside `jax.shard_map`, where each device has arrays of its own.
    """
    # Manual axes are those that a surrounding shard_map has taken over.
    return 1 if jax.sharding.get_abstract_mesh().manual_axes else jax.device_count()


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The ``k`` largest of ``values [N]``, largest first, and where they are; of equal ones the first comes first.

    ``values`` hold no NaN.  With several devices the values are sorted: for ``jax.lax.top_k`` XLA first brings a batch
    that is split over the devices to every one of them (jax 0.10), a sort leaves it where it is.
    """
    if devices_of_arrays() == 1:
        largest, index = jax.lax.top_k(values, k)
        return largest, index
    index = jnp.argsort(values, descending=True, stable=True)[:k]
    return values[index], index
