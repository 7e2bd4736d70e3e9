"""Attention inside a crop, against the reference, a slow formulation in NumPy, and arithmetic by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.blocks.attention import Attention, position_embedding
from tests.ops.golden import compare, normal
from tests.parity.weights import named_weight

KEY = jax.random.key(0)


def named_params(name: str, channels: int = 256, inner: int = 252) -> dict:
    """Parameters of the golden attention blocks, from their torch names."""

    def conv(part: str, out: int, into: int) -> np.ndarray:
        return named_weight(f"{name}.{part}.weight", (out, into, 1, 1)).transpose(2, 3, 1, 0)

    def linear(part: str) -> np.ndarray:
        return named_weight(f"{name}.{part}.weight", (inner, channels // 2)).T

    return {
        "query": {"kernel": conv("query_conv", inner, channels)},
        "value": {"kernel": conv("value_conv", inner, channels)},
        "geometry_x": {"kernel": linear("appr_geom_fc_x")},
        "geometry_y": {"kernel": linear("appr_geom_fc_y")},
        "out": {
            "kernel": conv("proj_conv", channels, inner),
            "bias": named_weight(f"{name}.proj_conv.bias", (channels,)),
        },
        "gamma": named_weight(f"{name}.gamma", (1,)),
    }


def oracle(p: dict, x: np.ndarray, heads: int, transposed: bool = False, stride: int = 2) -> np.ndarray:
    """One crop ``[h, w, C]`` in float64: one pixel, one head, one softmax over all keys at a time."""
    h, w, channels = x.shape
    depth = channels // heads
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    query, value = (x @ p[name]["kernel"][0, 0] for name in ("query", "value"))

    def position(axis: str, distance: int) -> np.ndarray:
        angles = [distance / 1000 ** (4 * k / channels) for k in range(channels // 4)]
        waves = np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        return waves @ p[f"geometry_{axis}"]["kernel"] / math.sqrt(2)

    keys = [(i, j) for i in range(0, h, stride) for j in range(0, w, stride)]
    out = np.array(x, np.float64)
    for i, j in np.ndindex(h, w):
        heard = []
        for m in range(heads):
            part = slice(m * depth, (m + 1) * depth)
            q, for_rows = query[i, j, part], query[(j, i) if transposed else (i, j)][part]
            energy = [q @ position("x", j - c)[part] + for_rows @ position("y", i - r)[part] for r, c in keys]
            weight = np.exp(energy) / np.exp(energy).sum()
            heard.append(sum(a * value[r, c, part] for a, (r, c) in zip(weight, keys, strict=True)))
        out[i, j] += p["gamma"] * (np.concatenate(heard) @ p["out"]["kernel"][0, 0] + p["out"]["bias"])
    return out


def small(seed: int, transposed: bool = False) -> tuple[Attention, dict, np.ndarray]:
    """Three heads on crops of 8 channels, of which 6 are used; all parameters random."""
    rng, attention = np.random.default_rng(seed), Attention(heads=3, transposed=transposed)
    crops = rng.standard_normal((2, 3, 3 if transposed else 4, 8)).astype(np.float32)
    shapes = jax.eval_shape(attention.init, KEY, crops)["params"]
    return attention, jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes), crops


@pytest.mark.parametrize(("size", "number"), [(7, 3), (14, 2)])
def test_golden(size: int, number: int) -> None:
    crops = normal(f"ops/x{size}", (number, 256, size, size)).astype(np.float32).transpose(0, 2, 3, 1)
    out = jax.jit(Attention().apply)({"params": named_params(f"blocks.ga{size}")}, crops)
    compare(f"blocks.ga{size}/out", np.asarray(out).transpose(0, 3, 1, 2))


def test_golden_position_embedding() -> None:
    compare("blocks.ga7/pos_embed_x", position_embedding(7, 2, 256), 1e-6)


def test_position_embedding_by_hand() -> None:
    """Pixels 0, 1, 2; keys 0 and 2; two waves, of 1 and 1000 ** -1/2 a pixel."""
    found = position_embedding(3, 2, 8)
    assert found.shape == (3, 2, 4)
    slow = 1000**-0.5
    np.testing.assert_allclose(found[1, 0], [math.sin(1), math.sin(slow), math.cos(1), math.cos(slow)], rtol=1e-6)
    np.testing.assert_allclose(found[0, 1, :2], [math.sin(-2), math.sin(-2 * slow)], rtol=1e-6)
    np.testing.assert_array_equal(found[2, 1], [0, 0, 1, 1])


@pytest.mark.parametrize("transposed", [False, True])
def test_against_the_oracle(transposed: bool) -> None:
    attention, params, crops = small(0, transposed)
    out = jax.jit(attention.apply)({"params": params}, crops)
    for crop, found in zip(crops, out, strict=True):
        np.testing.assert_allclose(found, oracle(params, crop, 3, transposed), atol=1e-4)


def test_gradient_against_differences_of_the_oracle() -> None:
    """Along one random direction of every parameter and of the crop."""
    attention, params, crops = small(2)
    rng = np.random.default_rng(3)
    along = rng.standard_normal(crops.shape)

    @jax.jit
    def gradients(params: dict, crops: jax.Array) -> tuple:
        total = lambda p, x: (attention.apply({"params": p}, x) * along).sum()  # noqa: E731
        return jax.grad(total, (0, 1))(params, crops)

    found, inputs = gradients(params, crops), (params, crops)
    leaves, tree = jax.tree.flatten(inputs)
    for i, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(found), strict=True)):
        step = rng.standard_normal(leaf.shape)
        ends = []
        for sign in (1, -1):
            moved = [*leaves[:i], leaf + sign * 1e-5 * step, *leaves[i + 1 :]]
            p, x = jax.tree.unflatten(tree, moved)
            ends.append(sum((oracle(p, crop, 3) * a).sum() for crop, a in zip(x, along, strict=True)))
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs((gradient * step).sum() - expected) < 1e-4 * max(np.linalg.norm(gradient * step), 1.0), i


def test_a_fresh_module_is_the_identity_and_learns() -> None:
    attention, crops = Attention(heads=2), jax.random.normal(KEY, (2, 7, 7, 8))
    params = jax.jit(attention.init)(KEY, crops)["params"]
    np.testing.assert_array_equal(jax.jit(attention.apply)({"params": params}, crops), crops)
    gradient = jax.jit(jax.grad(lambda p: (attention.apply({"params": p}, crops) * crops).sum()))(params)
    assert abs(gradient["gamma"][0]) > 1e-3


@pytest.mark.parametrize(("heads", "count"), [(6, 258_305), (8, 262_401)])
def test_number_of_parameters(heads: int, count: int) -> None:
    """PARAMS of the paper's variants v9 and v14, and of its GC-Net model, which has eight heads."""
    params = jax.eval_shape(Attention(heads=heads).init, KEY, jnp.zeros((1, 7, 7, 256)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_crops_do_not_see_each_other() -> None:
    attention, params, crops = small(4)
    apply = jax.jit(attention.apply)
    together = apply({"params": params}, crops)
    np.testing.assert_allclose(apply({"params": params}, crops[1:]), together[1:], atol=1e-5)
    assert apply({"params": params}, crops[:0]).shape == (0, 3, 4, 8)


def test_bfloat16() -> None:
    attention, params, crops = small(5)
    params["query"]["kernel"] *= 0.3
    out = jax.jit(attention.apply)({"params": params}, crops.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), attention.apply({"params": params}, crops), atol=0.3)


@pytest.mark.parametrize(("heads", "channels"), [(6, 4), (2, 6)])
def test_channels_that_do_not_fit_are_an_error(heads: int, channels: int) -> None:
    with pytest.raises(ValueError, match=rf"multiple of 4 channels, .* its {heads} heads; got {channels}"):
        Attention(heads=heads).init(KEY, jnp.zeros((1, 3, 3, channels)))


def test_the_references_mistake_needs_square_crops() -> None:
    with pytest.raises(ValueError, match=r"needs square crops, got 3x4; set it to False"):
        Attention(heads=2).init(KEY, jnp.zeros((1, 3, 4, 8)))
