"""Mask score head: what it reads, in which order, and the reference's parameter counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2, FCC
from tests.nn.blocks import KEY, count, random_variables, slow_layer


def test_against_loops() -> None:
    head, rng = MaskIoUHead(FC2(channels=4), channels=5), np.random.default_rng(0)
    crops, logits = rng.normal(size=(2, 6, 6, 3)).astype(np.float32), rng.normal(size=(2, 12, 12)).astype(np.float32)
    variables = random_variables(head, crops, logits, 3)
    params = variables["params"]
    assert set(params) == {"conv1", "conv2", "conv3", "conv4", "trunk", "iou"}
    assert params["conv1"]["kernel"].shape == (3, 3, 4, 5)
    for crop, own, out in zip(crops, logits, head.apply(variables, crops, logits, 3), strict=True):
        largest = np.array([[own[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max() for j in range(6)] for i in range(6)])
        x = np.concatenate([crop, 1 / (1 + np.exp(-largest[..., None]))], -1)
        for i in range(1, 5):
            x = np.maximum(slow_layer(x, params[f"conv{i}"], stride=2 if i == 4 else 1, pad=1), 0)
        x = x.reshape(-1)
        assert x.size == 3 * 3 * 5
        for layer in (params["trunk"]["fc1"], params["trunk"]["fc2"]):
            x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
        np.testing.assert_allclose(out, x @ params["iou"]["kernel"] + params["iou"]["bias"], atol=1e-5)


def test_gradients_reach_crops_and_logits() -> None:
    """The score loss also trains what the mask came from, as in the reference."""
    head, crops = MaskIoUHead(FCC(channels=(4, 2)), channels=4), jax.random.normal(KEY, (2, 14, 14, 3))
    logits = jax.random.normal(KEY, (2, 28, 28))
    variables = random_variables(head, crops, logits, 3)
    by_crops, by_logits = jax.grad(lambda c, m: head.apply(variables, c, m, 3).sum(), (0, 1))(crops, logits)
    assert (by_crops != 0).any(axis=(1, 2, 3)).all()
    # of each 2x2 pixels the largest alone takes part
    assert ((by_logits != 0).reshape(2, 14, 2, 14, 2).sum((2, 4)) <= 1).all()
    assert (by_logits != 0).any(axis=(1, 2)).all()


def test_logits_of_another_size_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs logits \(2, 28, 28\) of one class .* got \(2, 14, 14\)"):
        MaskIoUHead(FC2()).init(KEY, jnp.zeros((2, 14, 14, 4)), jnp.zeros((2, 14, 14)), 3)


def test_no_crops_and_bfloat16() -> None:
    head, crops = MaskIoUHead(FC2(channels=4), channels=4), jnp.zeros((0, 14, 14, 4), jnp.bfloat16)
    out, variables = head.init_with_output(KEY, crops, jnp.zeros((0, 28, 28)), 3)
    assert (out.shape, out.dtype) == ((0, 3), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("trunk", "expected"),
    [
        (FC2(), 16_340_304),
        (FCC(), 4_620_816),
        (FCC(kernel="7x3"), 5_194_640),
        (FCC(before=NonLocal()), 11_043_984),
        (FCC(before=NonLocal(), after=NonLocal()), 11_445_552),
    ],
)
def test_counts_of_the_reference(trunk: nn.Module, expected: int) -> None:
    assert count(MaskIoUHead(trunk), jnp.zeros((1, 14, 14, 256)), jnp.zeros((1, 28, 28)), 80) == expected
