"""Devices for data parallelism: one mesh axis ``data``, along which batches are split.

Parameters and the state of the optimizer lie on every device, or may be split too, to save memory; each device then
gathers them at each step (fully sharded data parallelism; Rajbhandari et al. 2020, ZeRO stage 3).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.messages import counted
from jaxdet.structures import Batch

_T = TypeVar("_T")


def all_devices() -> list[jax.Device]:
    """Return the devices of all processes; the first call connects jax to them.

    Raises:
        ValueError: the environment variable ``JAX_PLATFORMS`` asks for a kind of which there are none.
    """
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:  # without a plugin for a GPU jax has nothing but an assertion
        reason = f": {error}" if str(error) else ""
        config: Any = jax.config  # whose types know its settings in newer versions alone
        wanted = config.jax_platforms
        raise ValueError(
            f"devices: expected one of the kind that the environment variable JAX_PLATFORMS={wanted} names, but jax "
            f"finds none{reason}. Leave the variable out to take what there is, or install jax and a driver for it, "
            "as in pip install '.[cuda12]'"
        ) from error


def device_kinds(mesh: Mesh) -> str:
    """Say how many devices of which kind a mesh has, as in ``8 devices (gpu: NVIDIA H200)``."""
    devices = list(mesh.devices.flat)
    kinds = sorted({_kind(device) for device in devices})
    return f"{counted(len(devices), 'device')} ({', '.join(kinds)})"


def _kind(device: jax.Device) -> str:
    platform, name = device.platform, device.device_kind
    return name if platform in name.lower() else f"{platform}: {name}"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of all devices of all processes, or of the given ones, along one axis ``data``.

    Raises:
        ValueError: as `all_devices`.
    """
    devices = all_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: _T, mesh: Mesh) -> _T:
    """Put every leaf of a tree on every device, as global arrays."""
    replicated: _T = jax.device_put(tree, NamedSharding(mesh, P()))
    return replicated


class Copies:
    """Copies of a tree's arrays on the devices of a mesh, for many calls that need the same arrays there.

    An array is copied once; another one in its place is copied in its turn.  Arrays that change in place are not
    noticed.  Copies are held as long as this object is; they are not pickled with it.
    """

    def __init__(self) -> None:
        self._mesh: Mesh | None = None
        self._made: dict[Any, tuple[Any, jax.Array]] = {}  #: place in the tree -> the array and its copy

    def of(self, tree: _T, mesh: Mesh) -> _T:
        """Return the tree with its arrays on every device of the mesh."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        kept = self._made if mesh == self._mesh else {}
        made = {path: kept[path] for path, leaf in leaves if path in kept and kept[path][0] is leaf}
        missing = {path: leaf for path, leaf in leaves if path not in made}
        copied = replicate(list(missing.values()), mesh)
        made |= {path: (leaf, copy) for (path, leaf), copy in zip(missing.items(), copied, strict=True)}
        self._mesh, self._made = mesh, made
        copies: _T = jax.tree.unflatten(structure, [made[path][1] for path, _ in leaves])
        return copies

    def __reduce__(self) -> tuple[type["Copies"], tuple[()]]:
        return Copies, ()


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
