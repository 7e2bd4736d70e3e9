"""Mask score head: how good a predicted mask is.  N crops, h w their rows and columns, C channels, K classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, Linear, gaussian
from jaxdet.ranges import CHANNELS, check_ranges


class MaskIoUHead(nn.Module):
    """Predicted IoU of a mask with its object, for each class (Mask Scoring R-CNN, Huang et al. 2019, section 3.3).

    Mask crops ``[N, 14, 14, C]`` and the logits ``[N, 28, 28]`` of one class's mask -> ``[N, K]``, K =
    ``num_classes``.  The IoU is linear, not squashed into 0..1.  The mask's probabilities, max-pooled to the crop's
    size, join the crop as its last channel; three convolutions, one with stride 2, and the trunk follow: ``FC2()`` in
    the original, ``FCC(...)`` in R3-CNN and SBR-CNN.

    Raises:
        ValueError: logits that are not two per pixel of the crop along each axis.
    """

    trunk: nn.Module
    channels: int = 256

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, crops: jax.Array, logits: jax.Array, num_classes: int) -> jax.Array:
        n, h, w, _ = crops.shape
        if logits.shape != (n, 2 * h, 2 * w):
            expected = f"logits {(n, 2 * h, 2 * w)} of one class for crops {crops.shape}"
            raise ValueError(
                f"MaskIoUHead needs {expected}, got {logits.shape}; take those of the mask head's extractor"
            )
        # Max pooling over 2x2 pixels, in float32 as the logits are.
        mask = jax.nn.sigmoid(logits).reshape(n, h, 2, w, 2).max((2, 4))
        x = jnp.concatenate([crops, mask[..., None].astype(crops.dtype)], axis=-1)
        for i in range(1, 5):
            # The last one halves 14x14 to 7x7, which the trunk is made for.
            x = nn.relu(Conv(self.channels, 3, stride=2 if i == 4 else 1, name=f"conv{i}")(x))
        # One IoU for each class and no activation, as in the authors' code; the class is picked by the caller.
        return Linear(num_classes, gaussian(0.01), name="iou")(self.trunk(x))
