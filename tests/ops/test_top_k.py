"""The largest values of each image of a batch, on one device and on several."""

import re

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.ops.devices import top_k
from jaxdet.runtime.mesh import data_mesh
from tests.devices import run_on_devices

VALUES = np.random.default_rng(0).integers(-20, 20, (4, 100)).astype(np.float32)
LARGEST = jax.jit(jax.vmap(lambda values: top_k(values, 50)))


def check() -> None:
    """Against numpy's stable sort; many values are equal."""
    expected = np.argsort(-VALUES, axis=1, kind="stable")[:, :50]
    found, index = LARGEST(VALUES)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(VALUES, expected, 1))


def test_the_largest_come_first_and_of_equal_ones_the_first() -> None:
    check()


def test_a_split_batch_stays_split() -> None:
    assert run_on_devices(__file__, 4) == ["split"]


def on_devices() -> None:
    check()
    values = jax.device_put(VALUES, NamedSharding(data_mesh(), P("data")))
    program = LARGEST.lower(values).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
    assert all(found.sharding.spec == P("data") for found in program(values))
    print("split")


if __name__ == "__main__":
    on_devices()
