"""Devices for data parallelism: one mesh axis ``data``; batches are split along it, the rest is on every device.

Parameters and the state of the optimizer may be split along it too, to save memory; each device then gathers them at
each step (fully sharded data parallelism; Rajbhandari et al. 2020, ZeRO stage 3).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.structures import Batch

T = TypeVar("T")


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or the given ones) along one axis ``data``."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: T, mesh: Mesh) -> T:
    """Every leaf as a global array that each device holds whole."""
    replicated: T = jax.device_put(tree, NamedSharding(mesh, P()))
    return replicated


def layout_of(tree: Any, mesh: Mesh, *, split: bool) -> Any:
    """A sharding for each leaf of a tree of arrays: whole on every device or, with ``split``, in equal parts.

    It is split along the longest of its axes that the number of devices divides; without one it stays whole.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, side in enumerate(leaf.shape) if split and side and side % mesh.size == 0]
        longest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
        return NamedSharding(mesh, P() if longest is None else P(*[None] * longest, "data"))

    return jax.tree.map(place, tree)


def replicated_key(seed: int, mesh: Mesh) -> jax.Array:
    """``jax.random.key(seed)`` on every device; keys, unlike arrays, can not be put on another process's devices."""
    make = jax.jit(lambda: jax.random.key(seed), out_shardings=NamedSharding(mesh, P()))
    key: jax.Array = make()
    return key


def split_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's share of a batch as part of the global batch, images split over the devices.  Does not wait."""
    sharding = NamedSharding(mesh, P("data"))
    split: Batch = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
    return split


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """ValueError where a global batch can not be split evenly over the devices."""
    if batch_size % mesh.size:
        near = max(batch_size // mesh.size, 1) * mesh.size
        raise ValueError(
            f"data.batch_size: expected a multiple of the {mesh.size} devices, got {batch_size}; "
            f"set data.batch_size={near} (the learning rate follows)"
        )
