"""Trunks of heads: order of layers and channels, and the parameter counts that the papers print."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.trunk import FC2, FCC
from tests.nn.blocks import KEY, count, random_variables, slow_layer

CROPS = jnp.zeros((1, 7, 7, 256))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, {"conv1": (7, 7, 6, 4), "conv2": (7, 7, 4, 2)}),
        (
            {"kernel": "7x3"},
            {"conv1a": (7, 3, 6, 6), "conv1b": (3, 7, 6, 4), "conv2a": (7, 3, 4, 4), "conv2b": (3, 7, 4, 2)},
        ),
        (
            {"kernel": "7x3", "reduce": "first"},
            {"conv1a": (7, 3, 6, 4), "conv1b": (3, 7, 4, 4), "conv2a": (7, 3, 4, 2), "conv2b": (3, 7, 2, 2)},
        ),
    ],
)
def test_convolutions_against_loops(options: dict[str, Any], layers: dict[str, tuple[int, ...]]) -> None:
    trunk, crops = FCC(channels=(4, 2), **options), np.random.default_rng(0).normal(size=(2, 7, 7, 6))
    variables = random_variables(trunk, np.float32(crops))
    params = variables["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == layers
    out = trunk.apply(variables, np.float32(crops))
    for crop, vector in zip(crops, out, strict=True):
        x = crop
        for name, shape in layers.items():
            x = relu(slow_layer(x, params[name], pad=1 if shape[:2] == (7, 3) else 3))
        np.testing.assert_allclose(vector, x.reshape(-1), atol=1e-5)  # rows, columns, channels


class Shift(nn.Module):
    """Adds a constant: a context block whose effect can be read off."""

    by: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.by


def test_context_blocks_stand_before_and_after_and_relu_follows_them() -> None:
    crops = jax.random.normal(KEY, (2, 7, 7, 6))
    plain = FCC(channels=(4, 2))
    variables = random_variables(plain, crops)
    between = FCC(channels=(4, 2), before=Shift(-0.5), after=Shift(-0.1)).apply(variables, crops)
    expected = jax.nn.relu(plain.apply(variables, jax.nn.relu(crops - 0.5)) - 0.1)
    np.testing.assert_allclose(between, expected, atol=1e-6)
    assert (between == 0).any()


def test_names_of_the_parameters() -> None:
    head = BoxHead(FCC(channels=(4, 2), before=NonLocal(), after=NonLocal()), class_agnostic=True)
    shapes = jax.eval_shape(lambda: head.init(KEY, jnp.zeros((1, 7, 7, 6)), 3))["params"]
    assert set(shapes) == {"trunk", "logits", "deltas"}
    assert set(shapes["trunk"]) == {"before", "conv1", "conv2", "after"}
    assert shapes["trunk"]["after"]["g"]["kernel"].shape == (7, 7, 2, 1)
    assert shapes["logits"]["kernel"].shape == (98, 4)


@pytest.mark.parametrize("trunk", [FC2(), FCC(), FCC(kernel="7x3")])
def test_no_crops(trunk: nn.Module) -> None:
    head = BoxHead(trunk, class_agnostic=True)
    (logits, deltas), _ = jax.eval_shape(lambda: head.init_with_output(KEY, CROPS[:0], 80))
    assert (logits.shape, deltas.shape) == ((0, 81), (0, 1, 4))


@pytest.mark.parametrize("options", [{"kernel": "3x7"}, {"reduce": "middle"}])
def test_unknown_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"FCC has kernel=.*got .*{next(iter(options.values()))}"):
        FCC(**options).init(KEY, CROPS)


TABLE_1 = [
    (FC2(), {"fc1": 12_846_080, "fc2": 1_049_600}),
    (FCC(), {"conv1": 1_605_760, "conv2": 401_472}),
    (FCC(kernel="7x3"), {"conv1a": 1_376_512, "conv1b": 688_256, "conv2a": 344_192, "conv2b": 172_096}),
]
"""SBR-CNN, table 1: parameters of each layer on 256 channels."""


@pytest.mark.parametrize(("trunk", "expected"), TABLE_1)
def test_counts_of_layers(trunk: nn.Module, expected: dict[str, int]) -> None:
    shapes = jax.eval_shape(lambda: trunk.init(KEY, CROPS))["params"]
    assert {k: sum(int(np.prod(leaf.shape)) for leaf in v.values()) for k, v in shapes.items()} == expected


@pytest.mark.parametrize(
    ("trunk", "expected"),
    [
        (FC2(), 13_982_805),
        (FCC(), 2_273_877),
        (FCC(kernel="7x3"), 2_847_701),
        (FCC(before=NonLocal()), 8_697_045),
        (FCC(before=NonLocal(), after=NonLocal()), 8_697_045 + 401_568),
        (FCC(kernel="7x3", before=NonLocal()), 9_270_869),
        (FCC(kernel="7x3", reduce="first", before=NonLocal()), 7_980_437),
    ],
)
def test_counts_of_box_heads(trunk: nn.Module, expected: int) -> None:
    """The reference's class-agnostic heads for 80 classes."""
    assert count(BoxHead(trunk, class_agnostic=True), CROPS, 80) == expected
