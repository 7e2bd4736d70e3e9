"""Head of the region proposal network (Ren et al. 2015), shared by all levels."""

import flax.linen as nn
import jax

from jaxdet.nn.blocks.layers import Conv, gaussian


class RPNHead(nn.Module):
    """A level ``[B, h, w, C]`` -> objectness logits ``[B, h, w, A]`` and deltas ``[B, h, w, 4A]`` (anchor-major)."""

    anchors: int = 3
    channels: int = 256

    @nn.compact
    def __call__(self, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(Conv(self.channels, 3, kernel_init=gaussian(0.01), name="conv")(level))
        objectness = Conv(self.anchors, 1, kernel_init=gaussian(0.01), name="objectness")(x)
        return objectness, Conv(4 * self.anchors, 1, kernel_init=gaussian(0.01), name="deltas")(x)
