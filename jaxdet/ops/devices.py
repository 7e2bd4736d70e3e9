"""Choices that depend on the devices that a program is for: of which kind they are, and over how many arrays are split.

A program runs where it is traced, unless it is exported: then it is traced here for a device of another kind
(`traced_for`), and asking ``jax.default_backend()`` would choose for the wrong one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp

#: The kind of device that is traced for; None: that of this process.  What jax has traced and kept is not used again
#: under another value, which a variable of our own could not promise.
_target = jax.make_user_context(None)


#: Whether the program that is traced will be read by other versions of jax and XLA.
_portable = jax.make_user_context(False)


def backend() -> str:
    """What ``jax.default_backend()`` is where the program that is traced will run: ``cpu``, ``gpu`` or ``tpu``."""
    return _target.value or jax.default_backend()


@contextmanager
def traced_for(kind: str) -> Iterator[None]:
    """What is traced inside will run on one device of that kind (``cpu``, ``gpu``, ``tpu``), whatever there is here."""
    with _target(kind):
        yield


@contextmanager
def portable() -> Iterator[None]:
    """What is traced inside will be kept, and run by other versions of jax and XLA than these."""
    with _portable(True):
        yield


def devices_of_arrays() -> int:
    """Over how many devices an array may be split where this is traced.

    All of them, as the compiler decides; but one inside `jax.shard_map`, where each device has arrays of its own, and
    inside `traced_for`.
    """
    # Manual axes are those that a surrounding shard_map has taken over.
    return 1 if _target.value or jax.sharding.get_abstract_mesh().manual_axes else jax.device_count()


def runs_kernels() -> bool:
    """Whether what is traced here may call kernels that are written for GPUs (Pallas, Triton).

    A program for other versions may not: kernels are in it in a form that no version promises to read.  Arrays that are
    split over devices may not be given to one, since the compiler cannot split it and would copy them to every device.
    """
    return backend() == "gpu" and not _portable.value and devices_of_arrays() == 1


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
