"""Attention inside a crop: which pixels a pixel listens to."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer

from jaxdet.nn.blocks.layers import Conv

kaiming_uniform: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Attention(nn.Module):
    """Where a pixel looks depends on its own content and on the distance: crops ``[N, h, w, C]`` -> the same shape.

    The term epsilon 2, "query content and relative position", of generalised attention (Zhu et al. 2019, *An Empirical
    Study of Spatial Attention Mechanisms in Deep Networks*); mmdet calls it ``attention_type="0100"``.  Per head, pixel
    ``(y, x)`` and key ``(y', x')`` have the energy ``q(y, x) . p_x(x - x') + q(y, x) . p_y(y - y')``, not divided by
    ``sqrt(depth)``.  It is a sum of a column's and a row's term, so the softmax over all keys is the product of two
    short ones.  Keys are every ``stride``-th pixel.  ``gamma`` starts at 0, and with it the module as the identity.

    ``transposed``: the reference's row term reads the query of pixel ``(x, y)`` instead of ``(y, x)``, a mistake of
    mmcv (its pull request 2742) that GRoIE's tables and weights were made with.  False is the formula above.

    Raises:
        ValueError: channels that the heads or the waves cannot share; ``transposed`` with crops that are not square.
    """

    heads: int = 6
    stride: int = 2
    wavelength: float = 1000.0
    transposed: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self._check(*x.shape[1:])
        channels = x.shape[-1]
        inner = channels // self.heads * self.heads  # 252 of 256 with six heads
        query = self._split(Conv(inner, 1, bias=False, kernel_init=kaiming_uniform, name="query")(x))
        value = self._split(Conv(inner, 1, self.stride, bias=False, kernel_init=kaiming_uniform, name="value")(x))
        p_y, p_x = (self._positions(x, axis, inner) for axis in ("y", "x"))
        rows = _softmax(jnp.einsum(("nxymd" if self.transposed else "nyxmd") + ",ykmd->nyxmk", query, p_y))
        columns = _softmax(jnp.einsum("nyxmd,xlmd->nyxml", query, p_x))
        weights = rows[..., :, None] * columns[..., None, :]
        heard = jnp.einsum("nyxmkl,nklmd->nyxmd", weights, value).reshape(*x.shape[:-1], inner)
        gamma = self.param("gamma", nn.initializers.zeros, (1,)).astype(x.dtype)
        return x + gamma * Conv(channels, 1, kernel_init=kaiming_uniform, name="out")(heard)

    def _check(self, height: int, width: int, channels: int) -> None:
        if channels % 4 or channels < self.heads:
            expected = f"a multiple of 4 channels, at least one for each of its {self.heads} heads"
            raise ValueError(f"Attention needs {expected}; got {channels}: change heads, or the channels before it")
        if self.transposed and height != width:
            raise ValueError(f"Attention(transposed=True) needs square crops, got {height}x{width}; set it to False")

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _positions(self, x: jax.Array, axis: str, inner: int) -> jax.Array:
        """Learned vectors ``[pixels, keys, heads, depth]`` of the distances along an axis."""
        length = x.shape[1 if axis == "y" else 2]
        waves = position_embedding(length, self.stride, x.shape[-1], self.wavelength)
        project = nn.Dense(inner, use_bias=False, dtype=x.dtype, kernel_init=kaiming_uniform, name=f"geometry_{axis}")
        # The embeddings of both axes are added: the root keeps the variance.
        return self._split(project(jnp.asarray(waves, x.dtype)) / math.sqrt(2.0))


def position_embedding(length: int, stride: int, channels: int, wavelength: float = 1000.0) -> np.ndarray:
    """Sines, then cosines, of ``pixel - key``: float32 ``[length, ceil(length / stride), channels / 2]``.

    Keys lie at every ``stride``-th pixel; wave ``k`` of ``channels / 4`` turns by ``wavelength ** (-4 k / channels)``
    a pixel.
    """
    distance = np.arange(length)[:, None] - np.arange(0, length, stride)
    angle = distance[..., None] / wavelength ** (4.0 / channels * np.arange(channels // 4))
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def _softmax(energy: jax.Array) -> jax.Array:
    return nn.softmax(energy.astype(jnp.float32)).astype(energy.dtype)
