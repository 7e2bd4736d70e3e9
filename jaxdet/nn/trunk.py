"""Trunks of box and mask-score heads: crop -> vector, before the last fully connected layers."""

import math

import flax.linen as nn
import jax

from jaxdet.nn.layers import Linear


class FC2(nn.Module):
    """Two fully connected layers (FPN, Lin et al. 2017, section 4.2): crops ``[N, 7, 7, C]`` -> ``[N, channels]``."""

    channels: int = 1024

    @nn.compact
    def __call__(self, crops: jax.Array) -> jax.Array:
        x = crops.reshape(crops.shape[0], math.prod(crops.shape[1:]))
        x = nn.relu(Linear(self.channels, name="fc1")(x))
        return nn.relu(Linear(self.channels, name="fc2")(x))
