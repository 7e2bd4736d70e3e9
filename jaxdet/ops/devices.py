"""Choices that depend on the devices that a program is for: of which kind they are, and over how many arrays are split.

A program runs where it is traced, unless it is exported: then it is traced here for a device of another kind
(`traced_for`), and asking ``jax.default_backend()`` would choose for the wrong one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

#: The kind of device that is traced for and their number; None: those of this process.  What jax has traced and kept is
#: not used again under another value, which a variable of our own could not promise.
_target = jax.make_user_context(None)
#: The devices over which gradients of cast parameters are summed in float32; None: as the compiler sums them.
_summed_over = jax.make_user_context(None)
#: Whether the program that is traced will be read by other versions of jax and XLA.
_portable = jax.make_user_context(False)


def backend() -> str:
    """What ``jax.default_backend()`` is where the program that is traced will run: ``cpu``, ``gpu`` or ``tpu``."""
    return _target.value[0] if _target.value else jax.default_backend()


@contextmanager
def traced_for(kind: str, devices: int = 1) -> Iterator[None]:
    """What is traced inside will run on devices of that kind (``cpu``, ``gpu``, ``tpu``), whatever there is here."""
    with _target((kind, devices)):
        yield


@contextmanager
def portable() -> Iterator[None]:
    """What is traced inside will be kept, and run by other versions of jax and XLA than these."""
    with _portable(True):
        yield


def devices_of_arrays() -> int:
    """Over how many devices an array may be split where this is traced.

    All of them, as the compiler decides; but one inside `jax.shard_map`, where each device has arrays of its own.
    """
    # Manual axes are those that a surrounding shard_map has taken over.
    if jax.sharding.get_abstract_mesh().manual_axes:
        return 1
    return _target.value[1] if _target.value else jax.device_count()


def runs_kernels() -> bool:
    """Whether what is traced here may call kernels that are written for GPUs (Pallas, Triton).

    A program for other versions may not: kernels are in it in a form that no version promises to read.  Arrays that are
    split over devices may not be given to one, since the compiler cannot split it and would copy them to every device.
    """
    return backend() == "gpu" and not _portable.value and devices_of_arrays() == 1


@contextmanager
def summed_in_float32(mesh: Mesh) -> Iterator[None]:
    """The gradients of layers that are traced inside are summed over devices in float32 (`apply_cast`).

    ``mesh`` has one axis ``data``, over which the first axis of what layers read is split.
    """
    with _summed_over(mesh if mesh.size > 1 else None):
        yield


def apply_cast(function: Callable[..., jax.Array], x: Any, *parameters: jax.Array) -> jax.Array:
    """``function(x, *parameters)`` with the parameters, which are float32, cast to the dtype of ``x``.

    The gradient of a parameter is a sum over images, of which each device has some.  The compiler adds up the devices'
    sums where they are made, in the dtype of ``x``, and the cast back to float32 comes behind: in bfloat16 a sum over
    hundreds of devices would keep the two to three digits of one.  So inside `summed_in_float32` each device applies
    the function to its own images; then it casts its own sum, and the casts are added up.

    Args:
        function: treats each member of the first axis of ``x`` by itself; what it returns has that axis too.
        x: an array whose first axis goes over images, or what lies in them, or a tuple of such; the first one's dtype
            counts.
        parameters: float32.
    """
    dtype = jax.tree.leaves(x)[0].dtype

    def cast(x: Any, *parameters: jax.Array) -> jax.Array:
        return function(x, *(parameter.astype(dtype) for parameter in parameters))

    mesh = _summed_over.value
    # Inside another shard_map each device has its own images already.
    if mesh is None or dtype == jnp.float32 or jax.sharding.get_abstract_mesh().manual_axes:
        return cast(x, *parameters)
    # The gradient of an argument that every device has whole is the sum of what the devices give for it.
    specs = (P("data"), *[P()] * len(parameters))
    applied: jax.Array = jax.shard_map(cast, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)(
        x, *parameters
    )
    return applied
