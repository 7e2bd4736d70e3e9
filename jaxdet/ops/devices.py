"""Choices that depend on the devices that a program is for: of which kind they are, and over how many arrays are split.

A program runs where it is traced, unless it is exported: then it is traced here for a device of another kind
(`traced_for`), and asking ``jax.default_backend()`` would choose for the wrong one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

_T = TypeVar("_T")


class _Split(NamedTuple):
    """How a batch is split over devices."""

    mesh: Mesh
    narrow_sums: bool  #: whether gradients of cast parameters are summed in the dtype that they are cast to


#: The kind of device that is traced for and their number; None: those of this process.  What jax has traced and kept is
#: not used again under another value, which a variable of our own could not promise.
_target = jax.make_user_context(None)
#: Over which devices the batch is split, a `_Split`; None: over one, or as the compiler splits it.
_split = jax.make_user_context(None)
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
    """Whether what is traced here may call kernels that are written for GPUs (Pallas, Triton) or TPUs (Pallas, Mosaic).

    A program for other versions may not: kernels are in it in a form that no version promises to read.  Arrays that are
    split over devices may not be given to one, since the compiler cannot split it and would copy them to every device.
    """
    return backend() in ("gpu", "tpu") and not _portable.value and devices_of_arrays() == 1


@contextmanager
def split_over(mesh: Mesh, *, narrow_sums: bool = False) -> Iterator[None]:
    """What is traced inside reads arrays whose first axis goes over images, and is split over a mesh.

    Args:
        mesh: has one axis, ``data``.
        narrow_sums: devices add up the gradients of cast parameters in the dtype that these are cast to, and not in
            float32 (`apply_cast`).
    """
    with _split(_Split(mesh, narrow_sums) if mesh.size > 1 else None):
        yield


def on_own_images(function: Callable[..., _T], *arrays: Any, whole: int = 0) -> _T:
    """``function(*arrays)``, of which each device works on its own images (`split_over`).

    Left to itself, the compiler splits a loop that goes on until all images are done by asking all devices in every
    round; and kernels, whose work it does not know, it would run on every device for all images.

    Args:
        function: treats each member of the first axis of its arguments by itself; what it returns has that axis too.
        arrays: trees of arrays that have the axis.
        whole: so many of them, the last ones, are not split: every device has them, and what the devices give for their
            gradients is added up.
    """
    # Inside another shard_map each device has its own images already.
    if _split.value is None or jax.sharding.get_abstract_mesh().manual_axes:
        return function(*arrays)
    specs = (*[P("data")] * (len(arrays) - whole), *[P()] * whole)
    mapped = jax.shard_map(function, mesh=_split.value.mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    result: _T = mapped(*arrays)
    return result


def apply_cast(function: Callable[..., jax.Array], x: Any, *parameters: jax.Array) -> jax.Array:
    """``function(x, *parameters)`` with the parameters, which are float32, cast to the dtype of ``x``.

    The gradient of a parameter is a sum over images, of which each device has some.  The compiler adds up the devices'
    sums where they are made, in the dtype of ``x``, and the cast back to float32 comes behind: in bfloat16 a sum over
    hundreds of devices would keep the two to three digits of one.  So inside `split_over` each device applies the
    function to its own images; then it casts its own sum, and the casts are added up.

    Args:
        function: treats each member of the first axis of ``x`` by itself; what it returns has that axis too.
        x: an array whose first axis goes over images, or what lies in them, or a tuple of such; the first one's dtype
            counts.
        parameters: float32.
    """
    dtype = jax.tree.leaves(x)[0].dtype

    def cast(x: Any, *parameters: jax.Array) -> jax.Array:
        return function(x, *(parameter.astype(dtype) for parameter in parameters))

    if dtype == jnp.float32 or (_split.value and _split.value.narrow_sums):
        return cast(x, *parameters)
    return on_own_images(cast, x, *parameters, whole=len(parameters))
