"""Branches that look at every pixel: names, sizes, what they compute by slow ones, and their statistics."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.heads.pixels import PixelBranch, PixelStream, Protonet
from jaxdet.structures import Features
from tests.nn.blocks import random_variables, slow_conv, slow_layer
from tests.ops.oracles import resize as slow_resize

KEY = jax.random.key(0)
STREAM, NET, BRANCH = PixelStream(4, 3, groups=2), Protonet(4, 3, convs=2), PixelBranch(4, 3, convs=2)
SIZES: dict[int, tuple[int, int]] = {3: (7, 5), 4: (4, 3), 5: (2, 2)}
"""Cells of levels 3 to 5 of a canvas of 56 x 40, rounded up."""


def pyramid(sizes: dict[int, tuple[int, int]] = SIZES, batch: int = 2, channels: int = 4) -> Features:
    rng = np.random.default_rng(0)
    return Features({level: rng.normal(size=(batch, *hw, channels)).astype(np.float32) for level, hw in sizes.items()})


@pytest.mark.parametrize(
    ("module", "size"), [(STREAM, (14, 10)), (NET, (14, 10)), (BRANCH, (7, 5))], ids=lambda x: type(x).__name__
)
def test_sizes(module: nn.Module, size: tuple[int, int]) -> None:
    """Of a level that is odd in all its halvings; the two that add up levels are as large as the finest, or twice."""
    maps, _ = jax.eval_shape(lambda: module.init_with_output(KEY, pyramid()))
    assert (maps.shape, maps.dtype) == ((2, *size, 3), jnp.float32)
    yolact = {3: (69, 69), 4: (35, 35), 5: (18, 18)}
    maps, _ = jax.eval_shape(lambda: module.init_with_output(KEY, pyramid(yolact)))
    assert maps.shape == (2, *((138, 138) if size[0] == 14 else (69, 69)), 3)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pyramid())
    maps, variables = jax.eval_shape(lambda: module.init_with_output(KEY, low))
    assert maps.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_names() -> None:
    def names(module: nn.Module) -> set[str]:
        return set(jax.eval_shape(lambda: module.init(KEY, pyramid()))["params"])

    stream = {f"level{i}_{layer}{j}" for i, n in ((3, 1), (4, 1), (5, 2)) for j in range(1, n + 1) for layer in LAYERS}
    assert names(STREAM) == stream | {"conv", "norm", "codes"}
    assert names(NET) == {"conv1", "conv2", "conv3", "codes"}
    branch = {f"level{i}_{layer}1" for i in (3, 4, 5) for layer in LAYERS}
    assert names(BRANCH) == branch | {"conv1", "norm1", "conv2", "norm2", "codes"}


LAYERS = ("conv", "norm")


def conv(x: np.ndarray, params: Any, name: str) -> np.ndarray:
    """3x3, without bias, of a batch."""
    return np.stack([slow_conv(one, np.asarray(params[name]["kernel"]), 1, (1, 1)) for one in x])


def group_norm_relu(x: np.ndarray, layer: Any, groups: int) -> np.ndarray:
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    return np.maximum(normed * np.asarray(layer["scale"]) + np.asarray(layer["bias"]), 0)


def test_the_stream_by_a_slow_one() -> None:
    """Each level: as often as it must be doubled, and at least once, a convolution, and then twice the size."""
    features = pyramid()
    variables = random_variables(STREAM, features)
    params = variables["params"]

    def block(x: np.ndarray, name: str) -> np.ndarray:
        return group_norm_relu(conv(x, params, name), params[name.replace("conv", "norm")], 2)

    x3, x4, x5 = (np.asarray(features.levels[i]) for i in (3, 4, 5))
    total = block(x3, "level3_conv1") + slow_resize(block(x4, "level4_conv1"), (7, 5), "corners")
    middle = slow_resize(block(x5, "level5_conv1"), (4, 3), "corners")
    total = total + slow_resize(block(middle, "level5_conv2"), (7, 5), "corners")
    total = slow_resize(block(total, "conv"), (14, 10), "corners")
    expected = total @ np.asarray(params["codes"]["kernel"])[0, 0] + np.asarray(params["codes"]["bias"])
    np.testing.assert_allclose(jax.jit(STREAM.apply)(variables, features), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("relu", [True, False])
def test_the_protonet_by_a_slow_one(relu: bool) -> None:
    features, net = pyramid(), NET.clone(relu=relu)
    variables = random_variables(net, features)
    params = variables["params"]
    x = np.asarray(features.levels[3])
    for name in ("conv1", "conv2"):
        x = np.stack([np.maximum(slow_layer(one, params[name], pad=1), 0) for one in x])
    x = slow_resize(x, (14, 10), "cells")
    x = np.stack([np.maximum(slow_layer(one, params["conv3"], pad=1), 0) for one in x])
    expected = np.stack([slow_layer(one, params["codes"], pad=0) for one in x])
    assert expected.min() < 0
    expected = np.maximum(expected, 0) if relu else expected
    np.testing.assert_allclose(jax.jit(net.apply)(variables, features), expected, rtol=1e-4, atol=1e-5)


def slow_branch(
    params: Any, levels: Sequence[np.ndarray], stats: Any | None
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The map, by stored statistics or, without them, by those of the batch, which are given too."""
    seen = {}

    def block(x: np.ndarray, name: str) -> np.ndarray:
        x, norm = conv(x, params, name), name.replace("conv", "norm")
        seen[norm] = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
        mean, var = (
            (x.mean((0, 1, 2)), x.var((0, 1, 2))) if stats is None else (stats[norm]["mean"], stats[norm]["var"])
        )
        x = (x - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-5)
        return np.maximum(x * np.asarray(params[norm]["scale"]) + np.asarray(params[norm]["bias"]), 0)

    total = block(levels[0], "level3_conv1")
    for i, x in ((4, levels[1]), (5, levels[2])):
        factor = 2 ** (i - 3)
        hw = factor * x.shape[1], factor * x.shape[2]
        total = total + slow_resize(block(x, f"level{i}_conv1"), hw, "strided")[:, :7, :5]
    for name in ("conv1", "conv2"):
        total = block(total, name)
    return total @ np.asarray(params["codes"]["kernel"])[0, 0] + np.asarray(params["codes"]["bias"]), seen


def branch_variables() -> Any:
    variables = random_variables(BRANCH, pyramid())
    stats = jax.tree.map(lambda x: np.abs(x) + 0.5, variables["batch_stats"])
    return {**variables, "batch_stats": stats}


def test_the_branch_takes_stored_statistics_at_test() -> None:
    features, variables = pyramid(), branch_variables()
    expected, _ = slow_branch(
        variables["params"], [*map(np.asarray, features.levels.values())], variables["batch_stats"]
    )
    np.testing.assert_allclose(jax.jit(BRANCH.apply)(variables, features), expected, rtol=1e-4, atol=1e-5)


def test_the_branch_takes_the_statistics_of_the_batch_in_training() -> None:
    """And its running averages go a tenth of the way to them."""
    features, variables = pyramid(), branch_variables()
    expected, seen = slow_branch(variables["params"], [*map(np.asarray, features.levels.values())], None)
    apply = jax.jit(lambda v, f: BRANCH.apply(v, f, mutable=["batch_stats"]))
    found, changed = apply(variables, features)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert set(changed["batch_stats"]) == set(seen)
    for name, (mean, var) in seen.items():
        before, after = variables["batch_stats"][name], changed["batch_stats"][name]
        np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [STREAM, NET, BRANCH], ids=lambda x: type(x).__name__)
def test_images_do_not_see_each_other_at_test(module: nn.Module) -> None:
    features = pyramid()
    variables = random_variables(module, features)
    variables |= {"batch_stats": jax.tree.map(np.abs, variables["batch_stats"])} if module is BRANCH else {}
    alone = jax.tree.map(lambda x: x[1:], features)
    both, one = (jax.jit(module.apply)(variables, f) for f in (features, alone))
    np.testing.assert_allclose(both[1:], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (STREAM, r"the pixel stream reads levels \(3, 4, 5\), the pyramid has \[4\] and lacks \[3, 5\]"),
        (NET, r"the protonet reads levels \(3,\)"),
        (BRANCH, r"the mask branch reads levels \(3, 4, 5\)"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_pyramid_that_lacks_a_level_is_an_error(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(KEY, pyramid({4: (4, 3)})))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: PixelStream(channels=0), "PixelStream.channels"),
        (lambda: PixelStream(groups=0), "PixelStream.groups"),
        (lambda: PixelStream(levels=()), "PixelStream.levels"),
        (lambda: PixelStream(levels=(5, 4, 3)), "PixelStream.levels"),
        (lambda: PixelBranch(levels=(3, 4, 4)), "PixelBranch.levels"),
        (lambda: Protonet(convs=-1), "Protonet.convs"),
        (lambda: Protonet(level=40), "Protonet.level"),
        (lambda: PixelBranch(code=0), "PixelBranch.code"),
    ],
)
def test_ranges(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        make()


def test_groups_that_do_not_divide_channels_are_named_with_their_module() -> None:
    class Model(nn.Module):
        pixels: nn.Module

        def __call__(self, features: Features) -> jax.Array:
            return self.pixels(features)  # type: ignore[no-any-return]

    with pytest.raises(
        ValueError,
        match=r"pixels/level3_norm1: channels must be a multiple of groups=32, got 8; change channels or groups",
    ):
        jax.eval_shape(lambda: Model(PixelStream(channels=8)).init(KEY, pyramid()))
