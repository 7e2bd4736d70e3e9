"""Heads and the extractor of one level: shapes, layouts and what goes where."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.names.mmdet import from_mmdet
from jaxdet.nn.extractors.single_level import SingleLevel, crops_as_batch
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.trunk import FC2, ConvFC
from jaxdet.structures import Features
from tests.nn.blocks import random_variables, slow_conv
from tests.ops.golden import INPUTS, OPS

KEY = jax.random.key(0)


@pytest.mark.parametrize(("agnostic", "boxes"), [(False, 5), (True, 1)])
def test_box_head_shapes(agnostic: bool, boxes: int) -> None:
    head = BoxHead(FC2(channels=16), class_agnostic=agnostic)
    (logits, deltas), _ = jax.eval_shape(lambda: head.init_with_output(KEY, jnp.zeros((3, 7, 7, 8)), 5))
    assert (logits.shape, deltas.shape) == ((3, 6), (3, boxes, 4))


def test_box_head_treats_crops_alone() -> None:
    head, crops = BoxHead(FC2(channels=16)), jax.random.normal(KEY, (3, 7, 7, 8))
    variables = head.init(KEY, crops, 5)
    together, alone = head.apply(variables, crops, 5), head.apply(variables, crops[1:2], 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:2], b, atol=1e-6), together, alone)
    fewer = head.apply(variables, crops[:0], 5)
    assert (fewer[0].shape, fewer[1].shape) == ((0, 6), (0, 5, 4))


def test_mask_head_doubles_the_crop() -> None:
    head = FCN(channels=8, convs=2)
    logits, variables = jax.eval_shape(lambda: head.init_with_output(KEY, jnp.zeros((3, 14, 14, 8)), 5))
    assert logits.shape == (3, 28, 28, 5)
    assert set(variables["params"]) == {"conv1", "conv2", "upsample", "logits"}


def test_mask_head_of_one_class_is_that_channel() -> None:
    """Value and gradients, also of no crop at all."""
    head, labels = FCN(channels=8, convs=1), jnp.array([4, 0, 4])
    crops = jax.random.normal(KEY, (3, 6, 6, 8))
    variables = head.init(KEY, crops, 5)
    biases = variables["params"]["logits"] | {"bias": jnp.arange(5.0)}
    variables = {"params": variables["params"] | {"logits": biases}}

    def picked(variables: Any) -> jax.Array:
        every = head.apply(variables, crops, 5, method="classify")
        return jnp.take_along_axis(every, labels[:, None, None, None], axis=3)[..., 0]

    def alone(variables: Any) -> jax.Array:
        return head.apply(variables, crops, 5, labels, method="classify")

    (first, back), (second, own_back) = jax.vjp(picked, variables), jax.vjp(alone, variables)
    assert second.shape == (3, 12, 12)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    weights = jax.random.normal(KEY, first.shape)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), back(weights), own_back(weights))
    assert head.apply(variables, crops[:0], 5, labels[:0], method="classify").shape == (0, 12, 12)


def test_one_mask_for_all_classes_is_a_head_whose_classes_are_equal() -> None:
    """Whatever the label; in mmdetection's names it is the output of ``class_agnostic=True``."""
    one, each = (FCN(channels=8, convs=1, class_agnostic=agnostic) for agnostic in (True, False))
    crops, labels = jax.random.normal(KEY, (3, 6, 6, 8)), jnp.array([4, 0, 4])
    variables = one.init(KEY, crops, 5)
    (weight,) = from_mmdet(
        {"roi_head.mask_head.conv_logits.weight": np.ones((1, 8, 1, 1), np.float32)},
        {"params": {"masks": {"heads_0": {"head": variables["params"]}}}},
    )["params"]["masks"]["heads_0"]["head"]["logits"].values()
    assert weight.shape == variables["params"]["logits"]["kernel"].shape
    logits = jax.tree.map(lambda a: a.repeat(5, -1), variables["params"]["logits"])
    equal = {"params": variables["params"] | {"logits": logits}}
    assert one.apply(variables, crops, 5, method="classify").shape == (3, 12, 12, 1)
    np.testing.assert_allclose(
        one.apply(variables, crops, 5, labels, method="classify"),
        each.apply(equal, crops, 5, labels, method="classify"),
        atol=1e-5,
    )


def test_level_by_the_size_of_the_box() -> None:
    """Sides of 111, 112, 223, 224, 447, 448 and more; an empty box reads the finest level."""
    extractor, sides = SingleLevel(), np.float32([0, 1, 111, 112, 223, 224, 447, 448, 5000])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
    np.testing.assert_array_equal(jax.jit(extractor.level_of)(boxes), [0, 0, 0, 1, 1, 2, 2, 3, 3])
    long = np.float32([[0, 0, 448, 28], [0, 0, 7, 448]])  # areas of 112 and 56 squared
    np.testing.assert_array_equal(extractor.level_of(long), [1, 0])
    assert extractor.level_of(np.full((2, 4), np.nan, np.float32)).dtype == jnp.int32


@pytest.mark.parametrize("jit", [True, False])
def test_golden_levels(jit: bool) -> None:
    level_of = jax.jit(SingleLevel().level_of) if jit else SingleLevel().level_of
    np.testing.assert_array_equal(level_of(OPS["levels/rois"][:, 1:]), OPS["levels/lvl"])
    np.testing.assert_array_equal(level_of(INPUTS["fixed_rois"]), OPS["levels/fixed_rois_lvl"])


def test_extractor_reads_the_level_of_the_box() -> None:
    """Each level is constant, so a crop says which one it came from."""
    pyramid = Features({level: jnp.full((1, 512 >> level, 512 >> level, 2), float(level)) for level in (2, 3, 4, 5)})
    sides = np.float32([50, 120, 230, 450])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)[None]
    crops = jax.jit(SingleLevel(size=3).__call__)(pyramid, boxes, np.array([[True, True, True, False]]))
    np.testing.assert_allclose(crops[0, :, 1, 1, 0], [2, 3, 4, 0], rtol=1e-6)
    assert crops_as_batch(crops).shape == (4, 3, 3, 2)


def test_a_pyramid_that_lacks_a_level_is_an_error() -> None:
    pyramid = Features({level: jnp.zeros((1, 32 >> level, 32 >> level, 1)) for level in (2, 3)})
    with pytest.raises(ValueError, match=r"the extractor reads levels \(2, 3, 4, 5\), the pyramid has \[2, 3\]"):
        SingleLevel()(pyramid, jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool))


@pytest.mark.parametrize("norm", [None, "batch"])
def test_convolutions_before_a_fully_connected_layer_against_loops(norm: Any) -> None:
    """Without a norm there is a bias; with one its stored statistics count."""
    trunk, rng = ConvFC(convs=2, channels=3, features=5, norm=norm), np.random.default_rng(0)
    crops = np.float32(rng.normal(size=(2, 7, 7, 4)))
    variables = random_variables(trunk, crops)
    variables = jax.tree.map(np.abs, variables) if norm else variables  # variances are not negative
    params = variables["params"]
    found = trunk.apply(variables, crops)
    for crop, vector in zip(crops, found, strict=True):
        x = crop
        for i in (1, 2):
            x = slow_conv(x, params[f"conv{i}"]["kernel"], 1, (1, 1))
            x = x + params[f"conv{i}"]["bias"] if norm is None else normalized(x, variables, f"norm{i}")
            x = np.maximum(x, 0)
        expected = x.reshape(-1) @ params["fc1"]["kernel"] + params["fc1"]["bias"]
        np.testing.assert_allclose(vector, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def test_mask_head_with_norms_against_loops() -> None:
    head, rng = FCN(channels=3, convs=2, norm="batch"), np.random.default_rng(1)
    crops = np.float32(rng.normal(size=(2, 4, 4, 3)))
    variables = jax.tree.map(np.abs, random_variables(head, crops, 2))
    assert set(variables["params"]["conv1"]) == {"kernel"}
    found = head.apply(variables, crops, jnp.zeros_like(crops), method="features")
    for crop, features in zip(crops, found, strict=True):
        x = crop
        for i in (1, 2):
            x = slow_conv(x, variables["params"][f"conv{i}"]["kernel"], 1, (1, 1))
            x = np.maximum(normalized(x, variables, f"norm{i}"), 0)
        np.testing.assert_allclose(features, x, rtol=1e-4, atol=1e-5)


def normalized(x: np.ndarray, variables: Any, name: str) -> np.ndarray:
    """Batch normalisation by its definition."""
    params, stats = variables["params"][name], variables["batch_stats"][name]
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
