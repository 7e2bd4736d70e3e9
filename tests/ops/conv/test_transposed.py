"""Transposed convolutions that double a map, against torch's definition as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.blocks.layers import interleave
from jaxdet.ops.conv.transposed import double


def slow(x: np.ndarray, kernel: np.ndarray, groups: int) -> np.ndarray:
    """Every pixel adds the kernel, times itself, to a map on which it stands at twice its place; a border is cut."""
    n, h, w, channels = x.shape
    members, features = channels // groups, kernel.shape[-1]
    out = np.zeros((n, 2 * h + 2, 2 * w + 2, groups * features))
    for i, j, c in np.ndindex(h, w, channels):
        g = c // members
        for ky, kx in np.ndindex(4, 4):
            its = x[:, i, j, c, None] * kernel[ky, kx, c]
            out[:, 2 * i + ky, 2 * j + kx, g * features : (g + 1) * features] += its
    return out[:, 1:-1, 1:-1]


@pytest.mark.parametrize(("groups", "channels", "features"), [(1, 3, 2), (4, 8, 4), (9, 18, 9)])
def test_against_loops(groups: int, channels: int, features: int) -> None:
    rng = np.random.default_rng(groups)
    x, kernel = rng.normal(size=(2, 3, 5, channels)), rng.normal(size=(4, 4, channels, features // groups))
    found = interleave(double(jnp.float32(x), jnp.float32(kernel), groups))
    np.testing.assert_allclose(found, slow(x, kernel, groups), atol=1e-5)


def test_gradient_is_the_adjoint() -> None:
    """A linear map L has <L x, y> = <x, L' y>, in the map and in the kernel."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (1, 2, 3, 4)), jax.random.normal(keys[1], (4, 4, 4, 3))
    y, pull = jax.vjp(lambda x, kernel: double(x, kernel, 2), x, kernel)
    other = jax.random.normal(keys[2], y.shape)
    for given, gradient in zip((x, kernel), pull(other), strict=True):
        np.testing.assert_allclose((given * gradient).sum(), (y * other).sum(), rtol=1e-4)
