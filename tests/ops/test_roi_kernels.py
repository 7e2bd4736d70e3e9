"""Kernels of RoIAlign, interpreted, beside the gathers that other tests compare with independent loops."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import roi_align as module
from jaxdet.ops import roi_kernels
from jaxdet.ops.devices import portable, runs_kernels, traced_for
from jaxdet.ops.masks import mask_targets
from jaxdet.ops.roi_align import roi_align, sa_roi_align
from jaxdet.structures import Masks
from tests.ops import oracles
from tests.ops.test_roi_align import EXTENT, SCALES, make_maps, wild_boxes

NUMBER = 34
"""More boxes than a word has bits."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_kernels", lambda: True)


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


def test_two_levels_with_gradients(kernels: None) -> None:
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
    monkeypatch.setattr(roi_kernels, "_CHANNELS", 2)
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


def test_mask_targets(kernels: None) -> None:
    """Maps that lie one under the other, of a single channel."""
    rng = np.random.default_rng(2)
    frames = np.tile(np.float32([2, 1, 18, 19]), (2, 3, 1))
    masks = Masks(jnp.asarray(rng.random((2, 3, 6, 5)) < 0.5, jnp.uint8), jnp.asarray(frames))
    boxes, valid = make_boxes(rng)
    index = rng.integers(0, 3, valid.shape).astype(np.int32)
    cut_out = jax.jit(mask_targets, static_argnames=("size", "method"))
    cut = [cut_out(masks, boxes, index, valid, size=5, method=method) for method in ("kernel", "gather")]
    assert 0.1 < np.mean(cut[1]) < 0.9
    np.testing.assert_array_equal(*cut)


def test_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert not runs_kernels()
    with traced_for("gpu"):
        assert runs_kernels()
        with portable():
            assert not runs_kernels()
    with traced_for("tpu"):
        assert not runs_kernels()
