"""Kernels of RoIAlign, interpreted, beside the gathers that other tests compare with independent loops."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from jaxdet.ops import roi_align as module
from jaxdet.ops.devices import portable, runs_kernels, traced_for
from jaxdet.ops.roi_align import Method, roi_align, sa_roi_align
from jaxdet.ops.roi_kernels import gpu, tpu
from jaxdet.runtime.mesh import data_mesh
from tests.ops import oracles
from tests.ops.test_roi_align import EXTENT, SCALES, make_maps, wild_boxes
from tests.programs import equations

NUMBER = 34
"""More boxes than a word has bits."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_kernels", lambda: True)


@pytest.fixture
def on_a_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of a TPU, with tiles of which even small maps have some; what they do not write is not a number."""
    monkeypatch.setattr(tpu, "_TILE", 8)
    with traced_for("tpu"), pltpu.force_tpu_interpret_mode():
        yield


@pytest.fixture(params=["gpu", "tpu"])
def on_a_device(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("kernels" if request.param == "gpu" else "on_a_tpu")


def make_boxes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all kinds in two images, and which of them count; the others hold what is no box."""
    more = [oracles.random_boxes(rng, NUMBER - 9, EXTENT) for _ in range(2)]
    boxes = np.stack([np.concatenate([wild_boxes(), each]) for each in more])
    valid = rng.random((2, NUMBER)) < 0.9
    return np.where(valid[..., None], boxes, np.float32(np.nan)), valid


def by(method: str, crops: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> Any:
    """Crops, and the gradients of their product with some numbers."""

    def with_gradients(*arguments: Any) -> Any:
        found, pull = jax.vjp(partial(crops, method=method), *arguments)
        numbers = np.random.default_rng(9).standard_normal(found.shape)
        return found, pull(jnp.asarray(numbers, found.dtype))

    return jax.jit(with_gradients)(*arguments)


def test_two_levels_with_gradients(on_a_device: None) -> None:
    """With the adaptive number of samples; a level is any number where a box does not count."""
    rng = np.random.default_rng(0)
    maps, (boxes, valid) = make_maps(rng), make_boxes(rng)
    level = np.where(valid, rng.integers(0, 2, valid.shape), 99).astype(np.int32)

    def crops(maps: Any, method: str) -> jax.Array:
        return roi_align(maps, SCALES, boxes, level, valid, size=(3, 2), method=method)

    found, expected = (by(method, crops, (maps,)) for method in ("kernel", "gather"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6), found, expected)


def test_shape_aware_in_bfloat16(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two samples a bin, not aligned, and more channels than a program takes: all is rounded once, at the end."""
    monkeypatch.setattr(gpu, "_CHANNELS", 2)
    rng = np.random.default_rng(1)
    m, (boxes, valid) = jnp.asarray(make_maps(rng)[0], jnp.bfloat16), make_boxes(rng)
    prob = np.where(valid[..., None, None], rng.random((2, NUMBER, 3, 5), np.float32), np.nan)
    level = np.zeros(valid.shape, np.int32)

    def crops(m: jax.Array, prob: jax.Array, method: str) -> jax.Array:
        options = {"size": (3, 2), "sampling_ratio": 2, "aligned": False, "method": method}
        return sa_roi_align([m], SCALES[:1], boxes, level, valid, prob, **options)

    (found, (to_map, to_prob)), (crop, (of_map, of_prob)) = (
        by(method, crops, (m, prob)) for method in ("kernel", "gather")
    )
    assert found.dtype == to_map.dtype == jnp.bfloat16
    for ours, theirs in ((found, crop), (to_map, of_map)):
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=2**-7, atol=1e-6)
    np.testing.assert_allclose(to_prob, of_prob, rtol=1e-5, atol=1e-5)


def test_an_image_at_a_time(on_a_tpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with two samples a bin."""
    monkeypatch.setattr(tpu, "_MOST_BOXES", 12)
    rng = np.random.default_rng(3)
    m = jnp.asarray(rng.standard_normal((2, 11, 6, 4)), jnp.bfloat16)
    boxes, valid = (each[:, :12] for each in make_boxes(rng))
    level = np.zeros(valid.shape, np.int32)

    def crops(m: jax.Array, method: Method) -> jax.Array:
        return roi_align([m], [0.5], boxes, level, valid, size=(3, 2), sampling_ratio=2, method=method)

    (found, (to_map,)), (crop, (of_map,)) = (by(method, crops, (m,)) for method in ("kernel", "gather"))
    assert found.dtype == to_map.dtype == jnp.bfloat16
    for ours, theirs in ((found, crop), (to_map, of_map)):
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=2**-7, atol=1e-6)


def test_whole_tiles_on_own_images(on_a_tpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as large as they are, and channels that fill no lanes, where each of two devices has images of its own."""
    monkeypatch.setattr(tpu, "_TILE", 16)
    rng = np.random.default_rng(4)
    m = rng.standard_normal((1, 37, 43, 130)).astype(np.float32)
    boxes = np.float32([[[-9, 3, 99, 35], [20, 18.5, 29, 36.5], [30, 30, 42, 31]]])
    level, valid = np.zeros((1, 3), np.int32), np.ones((1, 3), bool)

    def crops(m: jax.Array, method: Method) -> jax.Array:
        def own(*arrays: jax.Array) -> jax.Array:
            m, *boxes = arrays
            return roi_align([m], [1.0], *boxes, size=(2, 3), aligned=False, method=method)

        mapped = jax.shard_map(
            own, mesh=data_mesh(jax.devices()[:1]), in_specs=P("data"), out_specs=P("data"), check_vma=False
        )
        return mapped(m, boxes, level, valid)

    with traced_for("tpu", devices=2):
        found, expected = (by(method, crops, (m,)) for method in ("kernel", "gather"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6), found, expected)


def test_what_a_tpu_gathers() -> None:
    """Crops with maps of their own, and crops too large for the kernels, whatever the setting says."""
    maps, boxes, prob = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 9, 9, 8), (1, 3, 4), (1, 3, 5, 5)))
    index, valid = (jax.ShapeDtypeStruct((1, 3), dtype) for dtype in (jnp.int32, bool))

    def kernels_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
        with traced_for("tpu"):
            program = jax.jit(partial(function, method="kernel", **options)).trace(*arguments).jaxpr
        return sum(equation.primitive.name == "pallas_call" for equation, _ in equations(program.jaxpr))

    def crops(m: Any, *others: Any, align: Callable[..., jax.Array] = roi_align, **options: Any) -> jax.Array:
        return align([m], [1.0], *others, **options)

    assert kernels_of(crops, maps, boxes, index, valid, size=(7, 7)) == 1
    assert kernels_of(crops, maps, boxes, index, valid, size=(40, 40)) == 0
    assert kernels_of(crops, maps, boxes, index, valid, prob, align=sa_roi_align, size=(7, 7)) == 0


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_where_kernels_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert not runs_kernels()
    with traced_for(kind):
        assert runs_kernels()
        with portable():
            assert not runs_kernels()
    with traced_for(kind, devices=2):
        assert not runs_kernels()
