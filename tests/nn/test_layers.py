from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.blocks.deform import DeformConv
from jaxdet.nn.blocks.layers import BatchNorm, Conv, GroupNorm, Linear, Upsample, interleave
from jaxdet.ops.devices import traced_for
from tests.nn.blocks import KEY, slow_conv


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "pads"),
    [
        (1, 1, None, (0, 0)),
        (1, 2, None, (0, 0)),
        (3, 1, None, (1, 1)),
        (3, 2, None, (1, 1)),
        (7, 2, None, (3, 3)),
        ((7, 3), 1, None, (3, 1)),
        ((7, 3), 1, 1, (1, 1)),
        ((3, 7), 1, 3, (3, 3)),
        ((3, 1), 1, 0, (0, 0)),
        (1, 1, 2, (2, 2)),
    ],
)
def test_conv_against_loops(
    kernel: int | tuple[int, int], stride: int, padding: int | None, pads: tuple[int, int]
) -> None:
    layer, x = Conv(4, kernel, stride, padding=padding), jax.random.normal(KEY, (1, 7, 8, 3))
    variables = layer.init(KEY, x)
    bias = jnp.arange(4.0)
    variables["params"]["bias"] = bias
    expected = slow_conv(np.asarray(x[0]), np.asarray(variables["params"]["kernel"]), stride, pads) + bias
    np.testing.assert_allclose(layer.apply(variables, x)[0], expected, atol=1e-5)


def test_a_product_and_a_convolution_are_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 1x1 kernel of stride 2 is a product on a CPU and a convolution elsewhere: same values, same gradients."""
    layer, x = Conv(4, 1, 2), jax.random.normal(KEY, (2, 7, 8, 3))
    variables = layer.init(KEY, x)

    def program() -> str:
        return str(jax.make_jaxpr(lambda: layer.apply(variables, x))())

    def found() -> tuple[jax.Array, tuple[dict, jax.Array]]:
        return layer.apply(variables, x), jax.grad(lambda v, x: jnp.sin(layer.apply(v, x)).sum(), (0, 1))(variables, x)

    on_cpu = found()
    assert "conv_general_dilated" not in program()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in program()
    assert "dot_general" not in program()
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found(), on_cpu)


def test_rectangular_kernels_of_the_fcc_head() -> None:
    x = jnp.zeros((2, 7, 7, 3))
    narrow, variables = Conv(5, (7, 3), padding=1).init_with_output(KEY, x)
    assert narrow.shape == (2, 3, 7, 5)
    assert variables["params"]["kernel"].shape == (7, 3, 3, 5)
    assert Conv(5, (3, 7), padding=3).init_with_output(KEY, narrow)[0].shape == (2, 7, 7, 5)


@pytest.mark.parametrize(
    ("crops", "kernel", "padding", "features", "method"),
    [
        ((1000, 7, 7, 256), 7, None, 256, "spectral"),
        ((4000, 7, 7, 256), 5, None, 256, "spectral"),
        ((1000, 7, 7, 256), (7, 3), 1, 128, "spectral"),
        ((1000, 3, 7, 64), (3, 7), 3, 64, "spectral"),
        ((100, 14, 14, 256), 3, None, 256, "spectral"),
        ((16, 5, 5, 512), 3, None, 512, "direct"),
        ((16, 10, 10, 256), 3, None, 256, "direct"),
        ((2, 7, 7, 256), 7, None, 256, "direct"),
        ((1000, 7, 7, 256), 1, None, 256, "direct"),
        ((1, 200, 272, 256), 3, None, 256, "direct"),
    ],
)
def test_method_by_shape(
    crops: tuple[int, ...], kernel: int | tuple[int, int], padding: int | None, features: int, method: str
) -> None:
    """The traced program of a convolution is that of its fastest method."""
    x = jax.ShapeDtypeStruct(crops, jnp.float32)

    def traced(method: str | None) -> str:
        layer = Conv(features, kernel, padding=padding, method=method)
        return str(jax.make_jaxpr(lambda x: layer.init_with_output(KEY, x)[0])(x))

    assert ("conv_general_dilated" in traced(None)) == (method == "direct" and kernel != 1)


def test_methods_agree_and_spectral_needs_stride_one() -> None:
    x = jax.random.normal(KEY, (3, 7, 7, 8))
    y, variables = Conv(5, (7, 3), padding=1, method="spectral").init_with_output(KEY, x)
    np.testing.assert_allclose(y, Conv(5, (7, 3), padding=1, method="direct").apply(variables, x), atol=1e-5)
    with pytest.raises(ValueError, match="stride 1, got 2"):
        Conv(5, 3, 2, method="spectral").init(KEY, x)


def test_upsample_puts_each_pixel_into_its_block() -> None:
    layer, x = Upsample(2), jax.random.normal(KEY, (1, 2, 3, 4))
    variables = layer.init(KEY, x)
    kernel, out = variables["params"]["kernel"], interleave(layer.apply(variables, x))
    assert out.shape == (1, 4, 6, 2)
    for i, j, a, b in np.ndindex(2, 3, 2, 2):
        np.testing.assert_allclose(out[0, 2 * i + a, 2 * j + b], x[0, i, j] @ kernel[a, b], rtol=1e-5, atol=1e-6)


def test_batch_norm_uses_stored_statistics() -> None:
    x = jnp.array([[1.0, 10.0], [3.0, 30.0]])[None, None]
    variables = {
        "params": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.5, 0.0])},
        "batch_stats": {"mean": jnp.array([1.0, 20.0]), "var": jnp.array([4.0, 100.0])},
    }
    out = BatchNorm(epsilon=0.0).apply(variables, x)
    np.testing.assert_allclose(out[0, 0], [[0.5, -1.0], [2.5, 1.0]], rtol=1e-6)


class Normed(nn.Module):
    """A convolution and its norm: as one, or one after the other."""

    conv: nn.Module
    norm: nn.Module
    together: bool

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x, self.norm) if self.together else self.norm(self.conv(x))


@pytest.mark.parametrize(
    "conv", [Conv(8, 1, 2, bias=False), Conv(8, (7, 3)), Conv(8, 3, 2, groups=2), DeformConv(8, kind="v2")]
)
def test_a_norm_that_is_a_line_is_folded_into_the_convolution(conv: nn.Module) -> None:
    """Same values and gradients; on accelerators without a map before the norm."""
    x = jax.random.normal(KEY, (2, 6, 7, 4))
    apart, together = (Normed(conv, BatchNorm(), together) for together in (False, True))
    like = apart.init(KEY, x)
    leaves = [
        jax.random.uniform(jax.random.key(i), leaf.shape, minval=0.1, maxval=0.3)
        for i, leaf in enumerate(jax.tree.leaves(like))
    ]
    variables = jax.tree.unflatten(jax.tree.structure(like), leaves)

    def found(module: nn.Module) -> Any:
        def total(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = module.apply(variables, x)
            return jnp.sin(y).mean(), y

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(variables, x)

    def products(module: nn.Module) -> int:
        """Products as large as the result, beside those of the convolution itself."""
        y = jax.eval_shape(module.apply, variables, x)
        traced = jax.make_jaxpr(module.apply)(variables, x)
        return sum(each.primitive.name == "mul" and each.outvars[0].aval.shape == y.shape for each in traced.eqns)

    expected = found(apart)
    assert products(together) == products(apart)
    with traced_for("gpu"):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found(together), expected)
        assert products(together) == products(apart) - 1


def test_statistics_of_a_batch_are_not_folded() -> None:
    x = jax.random.normal(KEY, (2, 6, 7, 4))
    apart, together = (Normed(Conv(8), BatchNorm(frozen=False), together) for together in (False, True))
    variables = apart.init(KEY, x)
    with traced_for("gpu"):
        found, expected = (each.apply(variables, x, mutable=["batch_stats"]) for each in (together, apart))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert np.abs(found[1]["batch_stats"]["norm"]["mean"]).max() > 0
        # In prediction they stay, and are.
        found, expected = (each.apply(variables, x) for each in (together, apart))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_group_norm_statistics_and_error() -> None:
    layer, x = GroupNorm(groups=2), 5 + 3 * jax.random.normal(KEY, (2, 4, 4, 6))
    out = layer.apply(layer.init(KEY, x), x).reshape(2, 16, 2, 3)
    np.testing.assert_allclose(out.mean((1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std((1, 3)), 1.0, atol=1e-3)
    with pytest.raises(ValueError, match="multiple of groups=4, got 6"):
        GroupNorm(groups=4).init(KEY, x)


@pytest.mark.parametrize("layer", [Conv(4), Conv(4, 1), Linear(4), Upsample(4), BatchNorm(), GroupNorm(groups=2)])
def test_bfloat16_in_bfloat16_out_with_float32_parameters(layer: object) -> None:
    x = jax.random.normal(KEY, (1, 4, 4, 4))
    variables = layer.init(KEY, x.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    low, exact = layer.apply(variables, x.astype(jnp.bfloat16)), layer.apply(variables, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), exact, atol=0.06)
