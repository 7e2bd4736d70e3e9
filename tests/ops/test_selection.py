"""The largest values of each image of a batch, by sorting and by counting, on one device and on several."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.ops import selection
from jaxdet.ops.devices import traced_for
from jaxdet.ops.selection import count_up, largest_first, last_of_largest, ordered, top_k
from jaxdet.runtime.mesh import data_mesh
from tests.devices import run_on_devices
from tests.programs import equations

VALUES = np.random.default_rng(0).integers(-20, 20, (4, 100)).astype(np.float32)


@pytest.fixture(params=["sorting", "comparing", "counting"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """That of a CPU and those of a TPU, all run here."""
    if request.param == "counting":
        monkeypatch.setattr(selection, "_COMPARED", 0)
    with traced_for("cpu" if request.param == "sorting" else "tpu"):
        yield request.param


def make_largest() -> Any:
    """Made anew each time: what is compiled of one way is not that of another."""
    return jax.jit(jax.vmap(lambda values: top_k(values, 50)))


def check(largest: Any) -> None:
    """Against numpy's stable sort; many values are equal."""
    expected = np.argsort(-VALUES, axis=1, kind="stable")[:, :50]
    found, index = largest(VALUES)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(VALUES, expected, 1))


def test_the_largest_come_first_and_of_equal_ones_the_first(way: str) -> None:
    check(make_largest())
    found, index = top_k(VALUES[0], 50)
    np.testing.assert_array_equal(index, np.argsort(-VALUES[0], kind="stable")[:50])
    np.testing.assert_array_equal(found, VALUES[0][index])


@pytest.mark.parametrize("k", [1, 7, 12])
def test_limits_of_float32(way: str, k: int) -> None:
    """Infinities, numbers that differ by one digit or have few, and nothing but ties."""
    tiny = np.finfo(np.float32).tiny  # a sort on a CPU takes smaller ones for 0
    values = np.float32(
        [-np.inf, 1, np.nextafter(np.float32(1), 2), tiny, -tiny, 0, np.inf, -1, 3e38, -3e38, np.inf, 0]
    )
    for row in (values, np.full(12, -np.inf, np.float32), np.full(12, 0.25, np.float32)):
        np.testing.assert_array_equal(top_k(row, k)[1], np.argsort(-row, kind="stable")[:k])
        np.testing.assert_array_equal(largest_first(row), np.argsort(-row, kind="stable"))


def test_nan_and_the_sign_of_zero_as_in_top_k(way: str) -> None:
    values = np.float32([1, np.nan, -np.inf, -np.nan, np.inf, -0.0, 0.0, -0.0, 2, np.inf])
    _, index = top_k(values, 10)
    np.testing.assert_array_equal(index, jax.lax.top_k(values, 10)[1])


@pytest.mark.parametrize("number", [0, 1, 33, 100])
def test_the_last_of_the_largest(way: str, number: int) -> None:
    """In digits of one bit and of four."""
    keys = ordered(VALUES)
    expected = np.sort(np.asarray(keys), axis=1)[:, -number] if number else np.full(4, 2**32 - 1, np.uint32)
    for context in (nullcontext(), jax.disable_jit()):
        with context:
            found = last_of_largest(keys, np.full(4, number, np.int32))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 512, 1300])
def test_counting_up(n: int) -> None:
    marks = np.random.default_rng(n).random((3, n)) < [[0.5], [0.01], [1.0]]
    np.testing.assert_array_equal(count_up(marks), np.cumsum(marks, axis=1))


def test_on_a_tpu_nothing_is_sorted() -> None:
    def sorts(kind: str) -> set[str]:
        with traced_for(kind, 8):
            many = jnp.zeros(2 * selection._COMPARED)
            traced = jax.make_jaxpr(lambda: (top_k(many, 50), largest_first(jnp.asarray(VALUES[0]))))()
        return {equation.primitive.name for equation, _ in equations(traced.jaxpr)} & {"sort", "top_k"}

    assert sorts("cpu") == {"sort"}
    assert sorts("tpu") == set()


def test_a_split_batch_stays_split() -> None:
    assert run_on_devices(__file__, 4) == ["split", "split"]


def on_devices() -> None:
    selection._COMPARED = 0
    for context in (nullcontext(), traced_for("tpu", 4)):
        largest = make_largest()
        with context:
            check(largest)
            values = jax.device_put(VALUES, NamedSharding(data_mesh(), P("data")))
            program = largest.lower(values).compile()
        assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
        assert all(found.sharding.spec == P("data") for found in program(values))
        print("split")


if __name__ == "__main__":
    on_devices()
