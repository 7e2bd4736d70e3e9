"""Layers with the reference's padding and initialisation.

No layer has a dtype of its own: parameters are float32, computation follows the dtype of the input.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

NormKind: TypeAlias = Literal["batch", "group"]

kaiming_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform: Initializer = nn.initializers.xavier_uniform()


def gaussian(std: float) -> Initializer:
    """Normal values with mean 0."""
    return nn.initializers.normal(std)


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], *args: Any, **kwargs: Any) -> jax.Array:
    """``lax.conv_general_dilated``, but a 1x1 kernel as a matrix product, which XLA:CPU runs twice as fast."""
    if kernel.shape[:2] != (1, 1) or kwargs.get("feature_group_count", 1) != 1:
        return jax.lax.conv_general_dilated(x, kernel, strides, *args, **kwargs)
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


class Conv(nn.Module):
    """Convolution ``[B, H, W, C] -> [B, H', W', features]``, padded symmetrically by half the kernel."""

    features: int
    kernel: int = 3
    stride: int = 1
    bias: bool = True
    kernel_init: Initializer = kaiming_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The parameters belong to this module's scope, so the tree reads conv1/kernel, not conv1/Conv_0/kernel.
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(x.dtype)
        pad = self.kernel // 2
        padding = ((pad, pad), (pad, pad)) if pad else ((0, 0), (0, 0))
        y = convolve(x, kernel, (self.stride, self.stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype) if self.bias else y


class Linear(nn.Module):
    """Affine map of the last axis."""

    features: int
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features)).astype(x.dtype)
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)


class Upsample(nn.Module):
    """Transposed convolution with a 2x2 kernel and stride 2: ``[N, h, w, C] -> [N, 2h, 2w, features]``.

    Strides equal to the kernel never overlap, so each input pixel becomes its own 2x2 block: one matrix product.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kaiming_fan_out, (2, 2, x.shape[-1], self.features)).astype(x.dtype)
        n, h, w, _ = x.shape
        blocks = jnp.einsum("nijc,abcd->niajbd", x, kernel).reshape(n, 2 * h, 2 * w, self.features)
        return blocks + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)


class BatchNorm(nn.Module):
    """Normalisation by stored statistics, the detection standard of training with ``norm_eval``.

    ``scale`` and ``bias`` are trained; ``mean`` and ``var`` come with pretrained weights (collection ``batch_stats``)
    and stay.  From scratch they are 0 and 1, which leaves an affine map: use group normalisation there.
    """

    scale_init: Initializer = nn.initializers.ones
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32).value
        gain = self.param("scale", self.scale_init, shape) * jax.lax.rsqrt(var + self.epsilon)
        shift = self.param("bias", nn.initializers.zeros, shape) - mean * gain
        return x * gain.astype(x.dtype) + shift.astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018), statistics in float32; needs no pretrained statistics."""

    scale_init: Initializer = nn.initializers.ones
    groups: int = 16
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        if c % self.groups:
            raise ValueError(f"channels must be a multiple of groups={self.groups}, got {c}; change width or groups")
        grouped = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        mean = grouped.mean((1, 3), keepdims=True)
        var = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        y = ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(b, h, w, c)
        y = y * self.param("scale", self.scale_init, (c,)) + self.param("bias", nn.initializers.zeros, (c,))
        return y.astype(x.dtype)


def make_norm(kind: NormKind, name: str, scale_init: Initializer = nn.initializers.ones) -> nn.Module:
    """The normalisation layer of that kind."""
    if kind == "batch":
        return BatchNorm(scale_init=scale_init, name=name)
    return GroupNorm(scale_init=scale_init, name=name)
