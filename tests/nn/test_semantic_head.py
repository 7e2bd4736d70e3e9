"""The semantic branch: what it computes, what it loses, and what it adds to crops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.semantic import PlusSemantic, SemanticHead, semantic_crops
from jaxdet.ops.roi_align import roi_align
from jaxdet.structures import Features
from tests.ops.oracles import resize as slow_resize

KEY = jax.random.key(0)


def pyramid(channels: int = 4, side: int = 64) -> Features:
    keys = jax.random.split(KEY, 5)
    shapes = {level: (2, side >> level, (side + side // 2) >> level, channels) for level in range(2, 7)}
    levels = zip(keys, shapes.items(), strict=True)
    return Features({level: jax.random.normal(key, shape) for key, (level, shape) in levels})


def test_parameters_and_shapes() -> None:
    head = SemanticHead()
    features = {level: jax.ShapeDtypeStruct((1, 64 >> level, 96 >> level, 256), jnp.float32) for level in range(2, 7)}
    maps, variables = jax.eval_shape(lambda f: head.init_with_output(KEY, Features(f)), features)
    logits, embedding = maps.semantic_logits, maps.semantic
    assert (logits.shape, embedding.shape) == ((1, 8, 12, 183), (1, 8, 12, 256))
    laterals = {f"lateral{level}" for level in range(2, 7)}
    assert set(variables["params"]) == laterals | {f"conv{i}" for i in range(1, 5)} | {"logits", "embedding"}
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    assert count == 5 * (256 * 256 + 256) + 4 * (9 * 256 * 256 + 256) + (256 * 183 + 183) + (256 * 256 + 256)


def slow_head(params: Any, features: dict[int, np.ndarray], convs: int) -> tuple[np.ndarray, np.ndarray]:
    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])
        pad = kernel.shape[0] // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        out = sum(
            padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )
        return np.asarray(out + bias)

    hw = features[3].shape[1:3]
    x = sum(np.maximum(conv(slow_resize(f, hw, "corners"), f"lateral{level}"), 0) for level, f in features.items())
    for i in range(1, convs + 1):
        x = np.maximum(conv(np.asarray(x), f"conv{i}"), 0)
    return conv(np.asarray(x), "logits"), np.maximum(conv(np.asarray(x), "embedding"), 0)


def test_the_head_by_a_slow_one() -> None:
    head, features = SemanticHead(num_classes=5, channels=4, convs=2), pyramid()
    variables = head.init(KEY, features)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # biases that are not 0
    maps = jax.jit(head.apply)(variables, features)
    logits, embedding = maps.semantic_logits, maps.semantic
    expected = slow_head(variables["params"], jax.tree.map(np.asarray, features.levels), convs=2)
    np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(embedding, expected[1], rtol=1e-4, atol=1e-4)


def test_logits_are_float32_whatever_the_features_are() -> None:
    head, features = SemanticHead(num_classes=5, channels=4), pyramid()
    variables = head.init(KEY, features)
    half = jax.tree.map(lambda f: f.astype(jnp.bfloat16), features)
    maps = jax.eval_shape(head.apply, variables, half)
    logits, embedding = maps.semantic_logits, maps.semantic
    assert (logits.dtype, embedding.dtype) == (jnp.float32, jnp.bfloat16)


def test_a_missing_level_is_named() -> None:
    features = pyramid()
    del features.levels[6]
    with pytest.raises(ValueError, match=r"semantic branch reads levels .* lacks \[6\]"):
        SemanticHead(channels=4).init(KEY, features)


BOXES = jnp.asarray([[[8.0, 8, 40, 56], [0, 0, 64, 64], [20, 4, 23, 9]], [[5, 5, 30, 30], [1, 2, 3, 4], [0, 0, 9, 9]]])
VALID = jnp.asarray([[True, True, False], [True, True, True]])


@pytest.mark.parametrize("size", [14, 7])
def test_crops_are_means_of_fourteen(size: int) -> None:
    embedding = jax.random.normal(KEY, (2, 8, 8, 3))
    level = jnp.zeros(VALID.shape, jnp.int32)
    fine = np.asarray(roi_align([embedding], [0.125], BOXES, level, VALID, size=(14, 14)))
    expected = np.zeros((2, 3, size, size, 3))
    step = 14 // size
    for i in range(size):
        for j in range(size):
            expected[:, :, i, j] = fine[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((2, 3))
    crops = semantic_crops(embedding, BOXES, VALID, size)
    np.testing.assert_allclose(crops, expected, atol=1e-6)
    assert not np.asarray(crops)[~np.asarray(VALID)].any()


def test_invalid_boxes_may_hold_anything() -> None:
    embedding = jax.random.normal(KEY, (2, 8, 8, 3))

    def total(embedding: jax.Array, boxes: jax.Array) -> jax.Array:
        return (semantic_crops(embedding, boxes, VALID, 7) ** 2).sum()

    nan = jnp.where(VALID[..., None], BOXES, jnp.nan)
    for a, b in zip(*(jax.value_and_grad(total)(embedding, boxes) for boxes in (BOXES, nan)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(jax.grad(total)(embedding, nan)).max() > 0


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="divides 14, got 5"):
        semantic_crops(jnp.zeros((2, 8, 8, 3)), BOXES, VALID, 5)


@pytest.mark.parametrize("size", [7, 14])
def test_an_extractor_plus_the_semantic_crops(size: int) -> None:
    features = pyramid().replace(semantic=jax.random.normal(KEY, (2, 8, 12, 4)))
    alone = SingleLevel(size=size, sampling_ratio=2)
    both = PlusSemantic(alone).apply({}, features, BOXES, VALID)
    pyramids = alone.apply({}, features, BOXES, VALID)
    np.testing.assert_allclose(both - pyramids, semantic_crops(features.semantic, BOXES, VALID, size), atol=1e-5)
    assert not np.asarray(both)[~np.asarray(VALID)].any()
