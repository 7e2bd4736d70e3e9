"""Attention inside a crop: with which weights a pixel reads the others.

Letters in shapes and products: N or n crops, h w or y x its rows and columns, k l rows and columns of keys, m heads,
d channels of a head, C channels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer

from jaxdet.nn.blocks.layers import Conv
from jaxdet.ops.devices import apply_cast
from jaxdet.ranges import CHANNELS, Range, check_ranges, positive

# mmcv's kaiming_init with a=1, which its attention calls: gain 1, fan in.
_kaiming_uniform: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Attention(nn.Module):
    """Attention by a pixel's content and the distance to the key: crops ``[N, h, w, C]`` -> the same shape.

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

    def __post_init__(self) -> None:
        check_ranges(self, heads=CHANNELS, stride=Range(1, 512), wavelength=positive(1e9))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self._check(*x.shape[1:])
        channels = x.shape[-1]
        # The reference rounds the channels of a head down: 252 of 256 are used with six heads.
        inner = channels // self.heads * self.heads
        query = self._split(Conv(inner, 1, bias=False, kernel_init=_kaiming_uniform, name="query")(x))
        value = self._split(Conv(inner, 1, self.stride, bias=False, kernel_init=_kaiming_uniform, name="value")(x))
        p_y, p_x = (self._positions(x, axis, inner) for axis in ("y", "x"))
        # exp(row term + column term) is a product, so each factor can be normalised by itself.
        places = ("nxymd" if self.transposed else "nyxmd") + ",ykmd->nyxmk"
        rows = _softmax(apply_cast(lambda query, p_y: jnp.einsum(places, query, p_y), query, p_y))
        columns = _softmax(apply_cast(lambda query, p_x: jnp.einsum("nyxmd,xlmd->nyxml", query, p_x), query, p_x))
        # [N, h, w, heads, rows of keys, columns of keys]; sums to 1 over both last axes.
        weights = rows[..., :, None] * columns[..., None, :]
        read = jnp.einsum("nyxmkl,nklmd->nyxmd", weights, value).reshape(*x.shape[:-1], inner)
        # One number, in an array of one as in mmcv's weights.
        gamma = self.param("gamma", nn.initializers.zeros, (1,))
        out = Conv(channels, 1, kernel_init=_kaiming_uniform, name="out")(read)
        return x + apply_cast(lambda out, gamma: gamma * out, out, gamma)

    def _check(self, height: int, width: int, channels: int) -> None:
        # A quarter of the channels are the sines of an axis, as many its cosines.
        if channels % 4 or channels < self.heads:
            expected = f"a multiple of 4 channels, at least one for each of its {self.heads} heads"
            raise ValueError(f"Attention needs {expected}; got {channels}: change heads, or the channels before it")
        if self.transposed and height != width:
            raise ValueError(f"Attention(transposed=True) needs square crops, got {height}x{width}; set it to False")

    def _split(self, x: jax.Array) -> jax.Array:
        # Head-major, as the reference lays its channels out: the first ``d`` are those of the first head.
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _positions(self, x: jax.Array, axis: str, inner: int) -> jax.Array:
        """Learned vectors ``[pixels, keys, heads, depth]`` float32 of the distances along an axis."""
        length = x.shape[1 if axis == "y" else 2]
        waves = position_embedding(length, self.stride, x.shape[-1], self.wavelength)
        project = nn.Dense(inner, use_bias=False, kernel_init=_kaiming_uniform, name=f"geometry_{axis}")
        # The terms of both axes are added: divided by the root of 2 each, they have the variance of one.
        return self._split(project(jnp.asarray(waves)) / math.sqrt(2.0))


def position_embedding(length: int, stride: int, channels: int, wavelength: float = 1000.0) -> np.ndarray:
    """Sines, then cosines, of ``pixel - key``: float32 ``[length, ceil(length / stride), channels / 2]``.

    Keys lie at every ``stride``-th pixel; wave ``k`` of ``channels / 4`` turns by ``wavelength ** (-4 k / channels)``
    a pixel.
    """
    distance = np.arange(length)[:, None] - np.arange(0, length, stride)
    # Made by NumPy in float64: a constant of the program, and the angles of long distances keep their digits.
    angle = distance[..., None] / wavelength ** (4.0 / channels * np.arange(channels // 4))
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def _softmax(energy: jax.Array) -> jax.Array:
    # float32 whatever the dtype: weights of many keys, summed in bfloat16, would no longer sum to 1.
    return nn.softmax(energy.astype(jnp.float32)).astype(energy.dtype)
