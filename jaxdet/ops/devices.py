"""Choices that depend on the devices that a program is for: of which kind they are, and over how many arrays are split.

A program runs where it is traced, unless it is exported: then it is traced here for a device of another kind
(`traced_for`), and asking ``jax.default_backend()`` would choose for the wrong one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp

#: The kind of device that is traced for and their number; None: those of this process.  What jax has traced and kept is
#: not used again under another value, which a variable of our own could not promise.
_target = jax.make_user_context(None)


def backend() -> str:
    """What ``jax.default_backend()`` is where the program that is traced will run: ``cpu``, ``gpu`` or ``tpu``."""
    return _target.value[0] if _target.value else jax.default_backend()


@contextmanager
def traced_for(kind: str, devices: int = 1) -> Iterator[None]:
    """What is traced inside will run on devices of that kind (``cpu``, ``gpu``, ``tpu``), whatever there is here."""
    with _target((kind, devices)):
        yield


def devices_of_arrays() -> int:
    """Over how many devices an array may be split where this is traced.

    All of them, as the compiler decides; but one inside `jax.shard_map`, where each device has arrays of its own.
    """
    # Manual axes are those that a surrounding shard_map has taken over.
    if jax.sharding.get_abstract_mesh().manual_axes:
        return 1
    return _target.value[1] if _target.value else jax.device_count()


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
