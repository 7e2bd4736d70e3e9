"""Pyramids: what goes where, and the levels above and below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.necks import FPN, StridedConvs, Subsample, upsample_to
from tests.nn.blocks import random_variables, slow_layer
from tests.ops.oracles import resize as slow_resize

KEY = jax.random.key(0)
MAPS = {2 + i: jax.ShapeDtypeStruct((1, 16 >> i, 24 >> i, 4 << i), jnp.float32) for i in range(4)}


def shapes_of(neck: FPN) -> tuple[dict[int, tuple[int, ...]], set[str]]:
    """Shapes of the pyramid, and the names of the layers."""
    pyramid, variables = jax.eval_shape(lambda maps: neck.init_with_output(KEY, maps), MAPS)
    return {level: maps.shape for level, maps in pyramid.items()}, set(variables["params"])


def test_pyramid_adds_the_coarse_level_to_the_fine_one() -> None:
    """With lateral and output convolutions that copy, level 2 is the sum of both, level 4 every second pixel of 3."""
    features = {2: jnp.ones((1, 4, 6, 1)), 3: jnp.arange(6.0).reshape(1, 2, 3, 1)}
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = {f"output{i}": {"kernel": centre, "bias": jnp.zeros(1)} for i in (2, 3)}
    params |= {f"lateral{i}": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)} for i in (2, 3)}
    pyramid = FPN(channels=1).apply({"params": params}, features)
    np.testing.assert_array_equal(pyramid[2][0, :, :, 0], 1 + np.arange(6).reshape(2, 3).repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(pyramid[3], features[3])
    np.testing.assert_array_equal(pyramid[4][0, :, :, 0], [[0, 2]])


def test_pyramid_shapes() -> None:
    shapes, names = shapes_of(FPN(channels=16))
    assert shapes == {level: (1, -(-64 // 2**level), -(-96 // 2**level), 16) for level in range(2, 7)}
    assert names == {f"{layer}{level}" for layer in ("lateral", "output") for level in range(2, 6)}


def test_a_pyramid_may_begin_later() -> None:
    """RetinaNet's: the finest map of the backbone is not looked at, and two levels stand on top."""
    shapes, names = shapes_of(FPN(channels=16, lowest=3, top=StridedConvs()))
    assert shapes == {level: (1, -(-64 // 2**level), -(-96 // 2**level), 16) for level in range(3, 8)}
    layers = {f"{layer}{level}" for layer in ("lateral", "output") for level in range(3, 6)}
    assert names == layers | {"top"}
    with pytest.raises(ValueError, match=r"FPN\.lowest: the backbone has levels \[2, 3, 4, 5\], none from 6 on"):
        shapes_of(FPN(lowest=6))


def test_the_finest_level_has_no_part_in_a_later_pyramid() -> None:
    rng = np.random.default_rng(0)
    maps = {level: rng.normal(size=(1, 16 >> level, 16 >> level, 3)).astype(np.float32) for level in (1, 2, 3)}
    full, later = FPN(channels=2, lowest=1), FPN(channels=2, lowest=2)
    variables = random_variables(full, maps)
    few = {name: leaf for name, leaf in variables["params"].items() if not name.endswith("1")}
    expected, found = full.apply(variables, maps), later.apply({"params": few}, maps)
    assert set(found) == {2, 3, 4}
    for level in found:
        np.testing.assert_array_equal(found[level], expected[level])


@pytest.mark.parametrize("source", ["backbone", "pyramid"])
@pytest.mark.parametrize("relu", [False, True])
def test_strided_convolutions_against_loops(source: str, relu: bool) -> None:
    """The first reads the backbone or the pyramid; a ReLU stands before the second, not before the first."""
    rng = np.random.default_rng(1)
    top = StridedConvs(number=3, source=source, relu=relu)
    maps = rng.normal(size=(1, 5, 8, 6)).astype(np.float32), rng.normal(size=(1, 5, 8, 4)).astype(np.float32)
    variables = random_variables(top, *maps, 5)
    assert variables["params"]["conv6"]["kernel"].shape == (3, 3, 6 if source == "backbone" else 4, 4)
    found = top.apply(variables, *maps, 5)
    assert {level: x.shape for level, x in found.items()} == {6: (1, 3, 4, 4), 7: (1, 2, 2, 4), 8: (1, 1, 1, 4)}
    x = maps[0 if source == "backbone" else 1][0]
    for level in (6, 7, 8):
        x = np.maximum(x, 0) if relu and level > 6 else x
        x = slow_layer(x, variables["params"][f"conv{level}"], pad=1, stride=2)
        np.testing.assert_allclose(found[level][0], x, atol=1e-5)
    assert float(found[7].min()) < 0, "no ReLU after the last one"


def test_an_unknown_source_is_an_error() -> None:
    with pytest.raises(ValueError, match=r'source is "backbone" or "pyramid", got \'neck\''):
        StridedConvs(source="neck").init(KEY, jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3)), 5)


def test_subsampling_takes_every_second_pixel() -> None:
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    found = Subsample().apply({}, jnp.zeros((1, 3, 5, 7)), x, 4)
    assert set(found) == {5}
    np.testing.assert_array_equal(found[5][0, ..., 0], [[0, 2, 4], [10, 12, 14]])


def test_upsampling_is_cut_to_odd_sizes() -> None:
    small = jnp.arange(4.0).reshape(1, 2, 2, 1)
    large = upsample_to(small, jnp.zeros((1, 3, 4, 1)))
    np.testing.assert_array_equal(large[0, :, :, 0], [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]])


@pytest.mark.parametrize("hw", [(69, 69), (5, 8)])
def test_a_bilinear_pyramid_by_a_slow_one(hw: tuple[int, int]) -> None:
    """Coarser levels are brought to any size of the next finer one, and the sums are handed down."""
    rng = np.random.default_rng(0)
    sides = [hw, *((-(-hw[0] // n), -(-hw[1] // n)) for n in (2, 4))]
    maps = {3 + i: rng.normal(size=(1, *side, 2)).astype(np.float32) for i, side in enumerate(sides)}
    neck = FPN(channels=2, lowest=3, bilinear=True)
    variables = random_variables(neck, maps)
    params, found = variables["params"], jax.jit(neck.apply)(variables, maps)
    merged = {i: slow_layer(x[0], params[f"lateral{i}"], pad=0)[None] for i, x in maps.items()}
    for level in (4, 3):
        merged[level] = merged[level] + slow_resize(merged[level + 1], merged[level].shape[1:3], "cells")
    for level, x in merged.items():
        expected = slow_layer(x[0], params[f"output{level}"], pad=1)
        np.testing.assert_allclose(found[level][0], expected, rtol=1e-4, atol=1e-4)
    plain = FPN(channels=2, lowest=3).apply(variables, maps)
    np.testing.assert_allclose(plain[5], found[5], atol=1e-5)
    assert np.abs(plain[3] - found[3]).max() > 0.01


def test_norms_stand_behind_every_convolution_of_the_pyramid() -> None:
    """Lateral maps are normalised before they are handed down; statistics of 0 and 1 but for one level."""
    maps = {2: np.ones((1, 4, 4, 1), np.float32), 3: np.full((1, 2, 2, 1), 5, np.float32)}
    neck = FPN(channels=1, norm="batch")
    variables = jax.tree.map(np.asarray, neck.init(KEY, maps))
    names = {f"{layer}{level}" for layer in ("lateral", "output") for level in (2, 3)}
    assert set(variables["params"]) == names | {f"{name}_norm" for name in names}
    assert all(set(variables["params"][name]) == {"kernel"} for name in names)
    for name in names:
        kernel = variables["params"][name]["kernel"]
        variables["params"][name]["kernel"] = np.zeros_like(kernel)
        variables["params"][name]["kernel"][kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
    variables["batch_stats"]["lateral3_norm"] = {"mean": np.float32([3]), "var": np.float32([4 - 1e-5])}
    pyramid = neck.apply(variables, maps)
    np.testing.assert_allclose(pyramid[3], 1, rtol=1e-4)  # (5 - 3) / 2
    np.testing.assert_allclose(pyramid[2], 2, rtol=1e-4)  # 1 and that
