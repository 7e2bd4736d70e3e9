"""Feature Pyramid Network (Lin et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, xavier_uniform
from jaxdet.structures import Features


def upsample_to(x: jax.Array, like: jax.Array) -> jax.Array:
    """Nearest neighbour doubling of ``[B, h, w, C]``, cut to the size of ``like`` (2h or 2h - 1, likewise w)."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : like.shape[1], : like.shape[2]]


class FPN(nn.Module):
    """Backbone maps ``{2..5}`` -> pyramid ``{2..6}`` of ``channels`` channels.

    Level 6 is every second pixel of level 5 and serves the RPN only.  A backbone of three stages, ``{2..4}``, makes a
    pyramid ``{2..5}`` in the same way.
    """

    channels: int = 256

    @nn.compact
    def __call__(self, features: Features) -> Features:
        levels = sorted(features)
        merged = {
            level: Conv(self.channels, 1, kernel_init=xavier_uniform, name=f"lateral{level}")(features[level])
            for level in levels
        }
        for level in reversed(levels[:-1]):
            merged[level] += upsample_to(merged[level + 1], merged[level])
        pyramid = {
            level: Conv(self.channels, 3, kernel_init=xavier_uniform, name=f"output{level}")(merged[level])
            for level in levels
        }
        top = levels[-1]
        return {**pyramid, top + 1: pyramid[top][:, ::2, ::2]}
