"""ResNet (He et al. 2015) as a detection backbone, with what later papers put into its blocks.

Groups of channels (ResNeXt, Xie et al. 2017), global context (GC-Net, Cao et al. 2019) and deformable convolutions
(DCN, Dai et al. 2017 and Zhu et al. 2019) are settings, which go together.

Letters in shapes: B images, H W canvas, h w a map, C channels.
"""

import functools
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import numpy as np

from jaxdet.nn.blocks.context import GlobalContext
from jaxdet.nn.blocks.deform import DeformConv, DeformKind
from jaxdet.nn.blocks.layers import Conv, NormKind, make_norm
from jaxdet.ranges import CHANNELS, Range, check_ranges
from jaxdet.structures import Levels

Style: TypeAlias = Literal["pytorch", "caffe"]

# Blocks in each of the four stages, by depth (the paper's table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Shallower networks have blocks of two 3x3 convolutions, these and deeper ones bottlenecks.
_BOTTLENECK_FROM = 50
# Context and deformable convolutions are in C3 to C5, as in the papers' tables.
_EXTRAS_FROM = 2


class _Block(nn.Module):
    """A residual block: 3x3, 3x3 or, as a bottleneck, 1x1, 3x3, 1x1 with four times the channels.

    ``[B, h, w, C]`` -> ``[B, ceil(h / stride), ceil(w / stride), channels]``, of a bottleneck ``4 * channels``.

    Settings are those of `ResNet`.  The last norm starts at 0, so that a fresh block is the identity (Goyal et al.
    2017).
    """

    channels: int
    bottleneck: bool
    stride: int = 1
    norm: NormKind = "batch"
    style: Style = "pytorch"
    groups: int = 1
    group_width: int = 64
    context: int | None = None
    deform: DeformKind | None = None
    deform_groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.channels * (4 if self.bottleneck else 1)
        if self.bottleneck:
            inner = bottleneck_channels(self.channels, self.groups, self.group_width)
            first, second = (self.stride, 1) if self.style == "caffe" else (1, self.stride)
            y = nn.relu(Conv(inner, 1, first, bias=False, name="conv1")(x, make_norm(self.norm, "bn1")))
            y = nn.relu(self._conv2(inner, second)(y, make_norm(self.norm, "bn2")))
            last: nn.Module = Conv(features, 1, bias=False, name="conv3")
        else:
            y = nn.relu(Conv(features, 3, self.stride, bias=False, name="conv1")(x, make_norm(self.norm, "bn1")))
            last = self._conv2(features, 1)
        # No ReLU behind the last norm: the paper adds the shortcut first and rectifies the sum.
        y = last(y, make_norm(self.norm, "bn3" if self.bottleneck else "bn2", nn.initializers.zeros))
        if self.context is not None:
            y = GlobalContext(self.context, name="context")(y)
        # The shortcut is a projection only where the shape changes (the paper's option B, section 4.1).
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = Conv(features, 1, self.stride, bias=False, name="downsample_conv")
            x = shortcut(x, make_norm(self.norm, "downsample_bn"))
        return nn.relu(x + y)

    def _conv2(self, features: int, stride: int) -> nn.Module:
        """The last 3x3 convolution."""
        if self.deform is None:
            return Conv(features, 3, stride, bias=False, groups=self.groups, name="conv2")
        return DeformConv(
            features,
            stride=stride,
            kind=self.deform,
            groups=self.groups,
            deform_groups=self.deform_groups,
            name="conv2",
        )


class ResNet(nn.Module):
    """Image ``[B, H, W, 3]`` -> ``{2: C2, .., 5: C5}``; H and W are multiples of 32.

    ``width`` is the number of channels of the first stage (64 in the paper).  With fewer than four ``stages`` the last
    maps are left out: three end with C4, which for small images is coarse enough.  The stem and the first
    ``frozen_stages`` stages are not trained, and no gradient is computed for them; 0 trains all but the stem, -1
    everything.  ``norm="sync_batch"`` takes the statistics of the batch in the stages that are trained;
    ``"frozen_batch"`` trains no scale and bias of a norm in any.  ``remat``: in training, what is inside blocks is not
    kept but computed again for their gradients.

    - ``style``: where a bottleneck has its stride, in the 3x3 convolution as in torchvision (``"pytorch"``), or in the
      first 1x1 as in the weights that came from Caffe (``"caffe"``).
    - ``groups`` of the 3x3 convolution of bottlenecks, with ``group_width`` channels each in the first stage if
      ``width`` is 64: ResNeXt-101 32x8d is ``depth=101, groups=32, group_width=8``.
    - ``context``: the reduction of a `GlobalContext` block at the end of each residual of C3 to C5; None: none.
    - ``deform``: the kind of the deformable convolutions that the (last) 3x3 ones of C3 to C5 are; None: ordinary ones.
      ``deform_groups`` as in `DeformConv`.

    Raises:
        ValueError: groups in blocks that have none, or that leave no channel; more ``deform_groups`` than channels.
    """

    depth: int = 50
    width: int = 64
    frozen_stages: int = 1
    norm: NormKind = "batch"
    remat: bool = False
    stages: int = 4
    style: Style = "pytorch"
    groups: int = 1
    group_width: int = 64
    context: int | None = None
    deform: DeformKind | None = None
    deform_groups: int = 1

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise ValueError(f"ResNet.depth: expected one of {sorted(BLOCKS)}, got {self.depth}")
        check_ranges(self, width=CHANNELS, stages=Range(1, 4), frozen_stages=Range(-1, self.stages))
        check_ranges(self, groups=CHANNELS, group_width=CHANNELS, context=CHANNELS, deform_groups=CHANNELS)
        self._check_groups()
        super().__post_init__()

    def _check_groups(self) -> None:
        bottleneck = self.depth >= _BOTTLENECK_FROM
        if not bottleneck and (self.groups, self.group_width) != (1, 64):
            raise ValueError(
                f"ResNet.groups and ResNet.group_width: blocks of depth {self.depth} have no groups, got {self.groups} "
                f"and {self.group_width}; groups need a depth of 50 or 101"
            )
        inner = bottleneck_channels(self.width, self.groups, self.group_width) if bottleneck else self.width
        if inner < 1:
            raise ValueError(
                f"ResNet.group_width: {self.group_width} of {self.width}/64 channels leave none for a group; "
                "set a larger group_width or width"
            )
        # C3 has twice the channels of C2.
        if self.deform is not None and 2 * inner % self.deform_groups:
            raise ValueError(
                f"ResNet.deform_groups: expected a divisor of the {2 * inner} channels of C3's 3x3 convolutions, "
                f"got {self.deform_groups}"
            )

    @nn.compact
    def __call__(self, image: jax.Array) -> Levels:
        # The stem leaves a map at a stride of 4 pixels: convolution and pooling halve it once each.
        x = Conv(self.width, 7, 2, bias=False, name="conv1")(image, make_norm(self._norm(0), "bn1"))
        x = max_pool(nn.relu(x))
        x = self._freeze(x, 0)
        block_type = functools.partial(
            nn.remat(_Block) if self.remat else _Block,
            bottleneck=self.depth >= _BOTTLENECK_FROM,
            style=self.style,
            groups=self.groups,
            group_width=self.group_width,
            deform_groups=self.deform_groups,
        )
        features = {}
        for stage, blocks in enumerate(BLOCKS[self.depth][: self.stages], 1):
            for i in range(blocks):
                # The first block of a stage halves the map, except in stage 1: the stem has done that already.
                stride = 2 if stage > 1 and i == 0 else 1
                x = block_type(
                    self.width * 2 ** (stage - 1),
                    stride=stride,
                    norm=self._norm(stage),
                    context=self.context if stage >= _EXTRAS_FROM else None,
                    deform=self.deform if stage >= _EXTRAS_FROM else None,
                    name=f"layer{stage}_{i}",
                )(x)
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
        """Whether the parameter at this path below the backbone is not trained: its stage, or all norms, are frozen."""
        if self.norm == "frozen_batch" and any(name.startswith(("bn", "downsample_bn")) for name in path):
            return True
        # The names are "layer3_0", ..; "conv1" and "bn1" are the stem, stage 0.
        stage = int(path[0][len("layer")]) if path[0].startswith("layer") else 0
        return stage <= self.frozen_stages


def bottleneck_channels(channels: int, groups: int, group_width: int) -> int:
    """Channels of the 3x3 convolution of a bottleneck in a stage of ``channels`` (64 in the first one of the paper)."""
    return channels * group_width // 64 * groups


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows with stride 2, padded by one pixel: ``[B, h, w, C]`` -> half of h and w, rounded up."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    # A NumPy scalar: with a traced start value XLA no longer sees a maximum, and there is no gradient.
    lowest = np.array(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
