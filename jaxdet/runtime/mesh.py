"""Devices for data parallelism: one mesh axis ``data``, along which batches are split.

Parameters and the state of the optimizer lie on every device, or may be split too, to save memory; each device then
gathers them at each step (fully sharded data parallelism; Rajbhandari et al. 2020, ZeRO stage 3).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.structures import Batch

_T = TypeVar("_T")


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of all devices of all processes, or of the given ones, along one axis ``data``."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: _T, mesh: Mesh) -> _T:
    """Put every leaf of a tree on every device, as global arrays."""
    replicated: _T = jax.device_put(tree, NamedSharding(mesh, P()))
    return replicated


def layout_of(tree: Any, mesh: Mesh, *, split: bool) -> Any:
    """Choose a sharding for each leaf of a tree of arrays, such as a training state.

    Args:
        tree: the arrays, or their shapes.
        mesh: the devices.
        split: False: every leaf is whole on every device.  True: a leaf is split into equal parts along the longest
            of its axes that the number of devices divides; a leaf without such an axis stays whole.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, side in enumerate(leaf.shape) if split and side and side % mesh.size == 0]
        # Ties go to the first axis, so that the layout is the same in every process.
        longest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
        return NamedSharding(mesh, P() if longest is None else P(*[None] * longest, "data"))

    return jax.tree.map(place, tree)


def replicated_key(seed: int, mesh: Mesh) -> jax.Array:
    """Make ``jax.random.key(seed)`` on every device."""
    # Compiled, because `device_put` takes no keys to the devices of other processes.
    make = jax.jit(lambda: jax.random.key(seed), out_shardings=NamedSharding(mesh, P()))
    key: jax.Array = make()
    return key


def split_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Put this process's part of a batch on its devices, as part of the global batch; does not wait for it."""
    # Leaves are split along their first axis, the images; no process sees the others' images.
    sharding = NamedSharding(mesh, P("data"))
    split: Batch = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
    return split


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise a ValueError if a global batch cannot be split evenly over the devices."""
    if batch_size % mesh.size:
        # The nearest smaller batch size that works, for the message.
        near = max(batch_size // mesh.size, 1) * mesh.size
        raise ValueError(
            f"data.batch_size: expected a multiple of the {mesh.size} devices, got {batch_size}; "
            f"set data.batch_size={near} (the learning rate follows)"
        )
