"""Arrays are split over all devices, and over none where each device works for itself."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxdet.ops.devices import devices_of_arrays
from jaxdet.runtime.mesh import data_mesh
from tests.devices import run_on_devices


def test_a_device_alone() -> None:
    assert devices_of_arrays() == jax.device_count()


def test_inside_and_outside_of_shard_map() -> None:
    assert run_on_devices(__file__, 4) == ["4", "1", "4"]


def on_devices() -> None:
    def say(x: jax.Array) -> jax.Array:
        print(devices_of_arrays())
        return x

    for each in (say, jax.shard_map(jax.vmap(say), mesh=data_mesh(), in_specs=P("data"), out_specs=P("data")), say):
        jax.jit(each)(jnp.ones(8))
        jax.clear_caches()


if __name__ == "__main__":
    on_devices()
