"""Grid R-CNN's head against NumPy, and what fusion does and does not touch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.heads.grid import Fusion, GridHead, neighbours
from tests.nn.blocks import KEY, count, random_variables, slow_layer

SMALL = GridHead(points=2, channels=3, convs=2, groups=4)
CROPS = np.random.default_rng(0).normal(size=(2, 6, 6, 5)).astype(np.float32)


def test_neighbours() -> None:
    """Of nine points, column by column: two at corners, three at edges, four in the middle."""
    assert neighbours(3) == [[1, 3], [0, 2, 4], [1, 5], [0, 4, 6], [1, 3, 5, 7], [2, 4, 8], [3, 7], [4, 6, 8], [5, 7]]


def slow_fusion(params: Any, points: int, own: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Of one crop ``[h, w, P * c]``, edge by edge and channel by channel."""
    c, out = own.shape[-1] // points**2, own.astype(np.float64)
    for to, senders in enumerate(neighbours(points)):
        for e, sender in enumerate(senders):
            deep, flat = params[f"depthwise{to}_{e}"], params[f"pointwise{to}_{e}"]
            x = sent[..., sender * c : (sender + 1) * c]
            taps = [{"kernel": deep["kernel"][..., i : i + 1], "bias": deep["bias"][i : i + 1]} for i in range(c)]
            x = np.concatenate([slow_layer(x[..., i : i + 1], taps[i], 2) for i in range(c)], -1)
            out[..., to * c : (to + 1) * c] += slow_layer(x, flat, 0)
    return out


@pytest.mark.parametrize("points", [2, 3])
def test_fusion(points: int) -> None:
    rng = np.random.default_rng(points)
    own, sent = (rng.normal(size=(2, 4, 4, 2 * points**2)).astype(np.float32) for _ in range(2))
    module = Fusion(points, 2)
    variables = random_variables(module, own, sent)
    found = jax.jit(module.apply)(variables, own, sent)
    for n in range(2):
        np.testing.assert_allclose(found[n], slow_fusion(variables["params"], points, own[n], sent[n]), atol=1e-5)


def test_parameters_of_the_paper() -> None:
    """As many as in the reference."""
    assert count(GridHead(), np.zeros((1, 14, 14, 256), np.float32)) == 23_123_145


def test_maps_are_twice_the_crop() -> None:
    shape = jax.eval_shape(lambda: GridHead().init_with_output(KEY, jnp.zeros((2, 14, 14, 8)))[0]).shape
    assert shape == (2, 28, 28, 9)


def test_before_training_nothing_is_found_anywhere() -> None:
    """The probability that RetinaNet begins with, since most cells are none of the point's."""
    maps = jax.jit(lambda: SMALL.init_with_output(KEY, CROPS)[0])()
    np.testing.assert_allclose(jax.nn.sigmoid(maps), 0.01, rtol=0.02)


def test_both_maps() -> None:
    """One is that of a test; the other does not depend on fusion, but on all else that makes a map."""
    variables = random_variables(SMALL, CROPS)
    both = jax.jit(lambda params: SMALL.apply({"params": params}, CROPS, method="both"))
    fused, plain = both(variables["params"])
    np.testing.assert_allclose(fused, jax.jit(SMALL.apply)(variables, CROPS), rtol=1e-5)

    def without(name: str) -> Any:
        zeros = {k: jax.tree.map(jnp.zeros_like, v) if k == name else v for k, v in variables["params"].items()}
        return both(zeros)

    for name in variables["params"]:
        others = without(name)
        assert np.array_equal(others[1], plain) == name.startswith("fusion"), name
        assert not np.array_equal(others[0], fused), name
    no_fusion = {k: jax.tree.map(jnp.zeros_like, v) if "fusion" in k else v for k, v in variables["params"].items()}
    np.testing.assert_allclose(*both(no_fusion), rtol=1e-6, atol=1e-6)


def test_in_the_second_order_a_corner_hears_from_the_opposite_one() -> None:
    """Features of point 3 reach the map of point 0 by way of 1 and 2, and not in the first order alone."""
    own = np.random.default_rng(3).normal(size=(1, 4, 4, 8)).astype(np.float32)
    other = own.copy()
    other[..., 6:] += 1
    module = Fusion(2, 2)
    first, second = (random_variables(module, own, own) for _ in range(2))
    fuse = jax.jit(module.apply)
    once = [fuse(first, x, x) for x in (own, other)]
    np.testing.assert_array_equal(once[0][..., :2], once[1][..., :2])
    twice = [fuse(second, x, y) for x, y in zip((own, other), once, strict=True)]
    assert not np.array_equal(twice[0][..., :2], twice[1][..., :2])


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"side must be even, got 7 x 7: set size of the extractor beside it, as"):
        SMALL.init(KEY, np.zeros((1, 7, 7, 5), np.float32))
    with pytest.raises(ValueError, match=r"norm1: channels must be a multiple of groups=36, got 12"):
        SMALL.clone(groups=36).init(KEY, CROPS)
    with pytest.raises(ValueError, match=r"GridHead\.points: expected a number from 2 to 31, got 1"):
        GridHead(points=1)
