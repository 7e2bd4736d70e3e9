"""The weight gradient as a product for each tap: XLA's own, by another road."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.conv import direct as direct_conv
from jaxdet.ops.conv.direct import CHANNELS_LAST, conv_with_products, weight_gradient
from tests.programs import equations


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def gradients(convolve: Any, x: jax.Array, kernel: jax.Array) -> Any:
    """Of the input and of the kernel, where the output is weighed by fixed noise."""
    shape = jax.eval_shape(convolve, x, kernel).shape
    return jax.jit(jax.grad(lambda x, k: (convolve(x, k) * normal(7, *shape)).sum(), argnums=(0, 1)))(x, kernel)


@pytest.mark.parametrize(
    ("size", "stride", "pads"),
    [((3, 3), 1, (1, 1)), ((3, 3), 2, (1, 1)), ((1, 1), 2, (0, 0)), ((7, 3), 1, (1, 1)), ((2, 4), 3, (0, 2))],
)
def test_gradients_are_those_of_xla(size: tuple[int, int], stride: int, pads: tuple[int, int]) -> None:
    x, kernel = normal(0, 2, 9, 10, 5), normal(1, *size, 5, 4)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = [(pad, pad) for pad in pads]
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=CHANNELS_LAST)

    expected = gradients(plain, x, kernel)
    found = gradients(lambda x, k: conv_with_products(x, k, stride, pads), x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_weight_gradient_by_hand() -> None:
    """One pixel of gradient: each tap gets the input pixel that it saw there, or the padding."""
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    dy = jnp.zeros((1, 3, 3, 1)).at[0, 0, 1, 0].set(2.0)
    found = weight_gradient(x, dy, (3, 3), 1, (1, 1))[..., 0, 0]
    np.testing.assert_array_equal(found, [[0, 0, 0], [2, 4, 6], [8, 10, 12]])


@pytest.mark.parametrize(("channels", "convolutions"), [(64, 2), (3, 3)])
def test_only_large_convolutions_have_their_gradient_by_products(channels: int, convolutions: int) -> None:
    """Forward, and the gradients of input and kernel; on other backends, XLA's way is the best."""
    x, kernel = normal(0, 8, 32, 32, channels), normal(1, 3, 3, channels, 64)
    program = jax.make_jaxpr(
        jax.grad(lambda x, k: (direct_conv.direct_conv(x, k, 1, (1, 1)) ** 2).sum(), argnums=(0, 1))
    )(x, kernel)
    names = [equation.primitive.name for equation, _ in equations(program.jaxpr)]
    on_cpu = jax.default_backend() == "cpu"
    assert names.count("conv_general_dilated") == (convolutions if on_cpu else 3)
