"""Mask heads: a bitmap for each class of a crop."""

import flax.linen as nn
import jax

from jaxdet.nn.layers import Conv, Upsample


class FCN(nn.Module):
    """Convolutions, a 2x upsampling and a 1x1 classifier (Mask R-CNN, He et al. 2017, fig. 4 right).

    Crops ``[N, 14, 14, C]`` -> logits ``[N, 28, 28, K]``, K = ``num_classes``.
    """

    channels: int = 256
    convs: int = 4

    @nn.compact
    def __call__(self, crops: jax.Array, num_classes: int) -> jax.Array:
        x = crops
        for i in range(1, self.convs + 1):
            x = nn.relu(Conv(self.channels, 3, name=f"conv{i}")(x))
        x = nn.relu(Upsample(self.channels, name="upsample")(x))
        return Conv(num_classes, 1, name="logits")(x)
