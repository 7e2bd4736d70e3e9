"""Heads of dense detectors, shared by all levels of the pyramid: class and box of every place of a map.

Letters in shapes: B images, h w cells of a level, A places in a cell, K classes, C channels, c numbers of a code.
Output channels are place-major (place 0's K logits, then those of place 1), as in the reference.
"""

from typing import Protocol

import flax.linen as nn
import jax
from flax import struct

from jaxdet.nn.blocks.layers import Conv, gaussian, prior_bias
from jaxdet.ranges import CHANNELS, LAYERS, Range, check_ranges


@struct.dataclass
class DenseMaps:
    """What a head predicts for a level: A places in each cell, the channels of each place together."""

    logits: jax.Array  #: ``[B, h, w, A * K]``
    deltas: jax.Array  #: ``[B, h, w, A * 4]``
    codes: jax.Array | None = None  #: ``[B, h, w, A * c]``, what a detection carries on: coefficients, embeddings


class DenseHead(Protocol):
    """The call that heads of dense detectors have."""

    def __call__(self, level: jax.Array, num_classes: int) -> DenseMaps:
        """A level ``[B, h, w, C]`` -> maps for K = ``num_classes``."""


class RPNHead(nn.Module):
    """One convolution, then objectness and deltas of A = ``anchors`` in each cell (Ren et al. 2015, section 3.1)."""

    anchors: int = 3
    channels: int = 256

    def __post_init__(self) -> None:
        check_ranges(self, anchors=Range(1, 1000), channels=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int = 1) -> DenseMaps:
        # All layers from N(0, 0.01), as Faster R-CNN's new layers (section 3.1.3).
        x = nn.relu(Conv(self.channels, 3, kernel_init=gaussian(0.01), name="conv")(level))
        logits = Conv(self.anchors * num_classes, 1, kernel_init=gaussian(0.01), name="objectness")(x)
        return DenseMaps(logits, Conv(4 * self.anchors, 1, kernel_init=gaussian(0.01), name="deltas")(x))


class RetinaHead(nn.Module):
    """Two towers of ``convs`` convolutions, one for classes and one for boxes (RetinaNet, Lin et al. 2017, section 4).

    The bias of the logits starts so that every place has probability ``prior`` of each class: with thousands of places
    of background, one half would make the first loss, and its gradient, enormous.
    """

    anchors: int = 9
    channels: int = 256
    convs: int = 4
    prior: float = 0.01

    def __post_init__(self) -> None:
        check_ranges(self, anchors=Range(1, 1000), channels=CHANNELS, convs=LAYERS, prior=Range(0, 1, without=(0, 1)))
        super().__post_init__()

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int) -> DenseMaps:
        # Section 4.1 of the paper: N(0, 0.01) for all new layers, and the prior in the last bias of the classes.
        init = gaussian(0.01)
        # Two towers without shared weights: classes and boxes read the level alone in common.
        classes = boxes = level
        for i in range(1, self.convs + 1):
            classes = nn.relu(Conv(self.channels, 3, kernel_init=init, name=f"class_conv{i}")(classes))
            boxes = nn.relu(Conv(self.channels, 3, kernel_init=init, name=f"box_conv{i}")(boxes))
        bias = prior_bias(self.prior)
        logits = Conv(self.anchors * num_classes, 3, kernel_init=init, bias_init=bias, name="logits")(classes)
        return DenseMaps(logits, Conv(4 * self.anchors, 3, kernel_init=init, name="deltas")(boxes))
