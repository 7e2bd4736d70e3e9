"""ResNet (He et al. 2015) as a detection backbone.

Letters in shapes: B images, H W canvas, h w a map, C channels.
"""

import flax.linen as nn
import jax
import numpy as np

from jaxdet.nn.blocks.layers import Conv, NormKind, make_norm
from jaxdet.ranges import CHANNELS, Range, check_ranges
from jaxdet.structures import Levels

# Blocks in each of the four stages, by depth (the paper's table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Shallower networks have blocks of two 3x3 convolutions, these and deeper ones bottlenecks.
_BOTTLENECK_FROM = 50


class _Block(nn.Module):
    """A residual block: 3x3, 3x3 or, as a bottleneck, 1x1, 3x3, 1x1 with four times the channels.

    ``[B, h, w, C]`` -> ``[B, ceil(h / stride), ceil(w / stride), channels]``, of a bottleneck ``4 * channels``.

    The stride is in the (first) 3x3 convolution, as in torchvision.  The last norm starts at 0, so that a fresh
    block is the identity (Goyal et al. 2017).
    """

    channels: int
    bottleneck: bool
    stride: int = 1
    norm: NormKind = "batch"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.channels * (4 if self.bottleneck else 1)
        first, last = ((1, 1), 1) if self.bottleneck else ((3, self.stride), 3)
        y = self._conv_norm(x, self.channels, *first, "1")
        if self.bottleneck:
            y = self._conv_norm(nn.relu(y), self.channels, 3, self.stride, "2")
        # No ReLU behind the last norm: the paper adds the shortcut first and rectifies the sum.
        y = self._conv_norm(nn.relu(y), features, last, 1, "3" if self.bottleneck else "2", nn.initializers.zeros)
        # The shortcut is a projection only where the shape changes (the paper's option B, section 4.1).
        if self.stride != 1 or x.shape[-1] != features:
            x = Conv(features, 1, self.stride, bias=False, name="downsample_conv")(x)
            x = make_norm(self.norm, "downsample_bn")(x)
        return nn.relu(x + y)

    def _conv_norm(
        self,
        x: jax.Array,
        features: int,
        kernel: int,
        stride: int,
        suffix: str,
        scale_init: nn.initializers.Initializer = nn.initializers.ones,
    ) -> jax.Array:
        # The norm that follows has a bias; one here would be subtracted again with the mean.
        x = Conv(features, kernel, stride, bias=False, name=f"conv{suffix}")(x)
        return make_norm(self.norm, f"bn{suffix}", scale_init)(x)


class ResNet(nn.Module):
    """Image ``[B, H, W, 3]`` -> ``{2: C2, .., 5: C5}``; H and W are multiples of 32.

    ``width`` is the number of channels of the first stage (64 in the paper).  With fewer than four ``stages`` the last
    maps are left out: three end with C4, which for small images is coarse enough.  The stem and the first
    ``frozen_stages`` stages are not trained, and no gradient is computed for them; 0 trains all but the stem, -1
    everything.  ``norm="sync_batch"`` takes the statistics of the batch in the stages that are trained.  ``remat``: in
    training, what is inside blocks is not kept but computed again for their gradients.
    """

    depth: int = 50
    width: int = 64
    frozen_stages: int = 1
    norm: NormKind = "batch"
    remat: bool = False
    stages: int = 4

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise ValueError(f"ResNet.depth: expected one of {sorted(BLOCKS)}, got {self.depth}")
        check_ranges(self, width=CHANNELS, stages=Range(1, 4), frozen_stages=Range(-1, self.stages))
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array) -> Levels:
        # The stem leaves a map at a stride of 4 pixels: convolution and pooling halve it once each.
        x = Conv(self.width, 7, 2, bias=False, name="conv1")(image)
        x = nn.relu(make_norm(self._norm(0), "bn1")(x))
        x = max_pool(x)
        x = self._freeze(x, 0)
        block_type = nn.remat(_Block) if self.remat else _Block
        features = {}
        for stage, blocks in enumerate(BLOCKS[self.depth][: self.stages], 1):
            for i in range(blocks):
                # The first block of a stage halves the map, except in stage 1: the stem has done that already.
                stride = 2 if stage > 1 and i == 0 else 1
                channels = self.width * 2 ** (stage - 1)
                bottleneck, norm = self.depth >= _BOTTLENECK_FROM, self._norm(stage)
                x = block_type(channels, bottleneck, stride, norm, name=f"layer{stage}_{i}")(x)
            # Stage s ends at a stride of 2^(s + 1) pixels, so that its map is level s + 1.
            features[stage + 1] = x = self._freeze(x, stage)
        return features

    def _norm(self, stage: int) -> NormKind:
        """The stored statistics of a stage that is not trained stay, too."""
        return "batch" if self.norm == "sync_batch" and stage <= self.frozen_stages else self.norm

    def _freeze(self, x: jax.Array, stage: int) -> jax.Array:
        # Cut behind the last frozen stage, so that nothing before it is differentiated or kept for a backward pass.
        return jax.lax.stop_gradient(x) if stage <= self.frozen_stages else x

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path below the backbone belongs to a frozen stage."""
        # The names are "layer3_0", ..; "conv1" and "bn1" are the stem, stage 0.
        stage = int(path[0][len("layer")]) if path[0].startswith("layer") else 0
        return stage <= self.frozen_stages


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows with stride 2, padded by one pixel: ``[B, h, w, C]`` -> half of h and w, rounded up."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    # A NumPy scalar: with a traced start value XLA no longer sees a maximum, and there is no gradient.
    lowest = np.array(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
