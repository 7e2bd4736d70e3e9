"""Branches that look at every pixel: one map of the whole image, which the codes of instances read.

The map covers the canvas, whatever its number of cells.  Letters in shapes: B images, h w cells, C channels, c numbers
of a pixel, K classes.
"""

import flax.linen as nn
import jax

from jaxdet.nn.blocks.layers import BatchNorm, Conv, GroupNorm, gaussian, kaiming_uniform, xavier_uniform
from jaxdet.ops.bilinear import resize
from jaxdet.ranges import CHANNELS, LAYERS, LEVELS, check_ranges
from jaxdet.structures import Features


class PixelStream(nn.Module):
    """RDSNet's pixel stream (Wang et al. 2020, section 3.2): levels 3 to 5 are added up at the size of level 3.

    The form is that of panoptic FPN (Kirillov et al. 2019, fig. 3): a convolution before each doubling.  The sum is
    doubled once more: ``[B, 2 h, 2 w, code]``, of a level 3 of h, w cells.
    """

    channels: int = 256
    code: int = 32
    groups: int = 32
    levels: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, code=CHANNELS, groups=CHANNELS, levels=LEVELS)
        _check_order(self, self.levels)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> jax.Array:
        maps = features.select(self.levels, "the pixel stream")
        sizes = [(x.shape[1], x.shape[2]) for x in maps]
        total = self._conv(maps[0], f"level{self.levels[0]}_conv1")
        for i, x in enumerate(maps[1:], 1):
            # As many doublings as there are levels down to the finest, each behind a convolution.
            for step in range(i):
                x = self._conv(x, f"level{self.levels[i]}_conv{step + 1}")
                x = resize(x, sizes[i - step - 1], "corners")
            total += x
        height, width = sizes[0]
        codes = Conv(self.code, 1, kernel_init=gaussian(0.01), name="codes")(self._conv(total, "conv"))
        # The paper's order is the other one, with the same numbers: the weights of an interpolation add up to one.
        return resize(codes, (2 * height, 2 * width), "corners")

    def _conv(self, x: jax.Array, name: str) -> jax.Array:
        x = Conv(self.channels, 3, bias=False, kernel_init=xavier_uniform, name=name)(x)
        return nn.relu(GroupNorm(groups=self.groups, name=name.replace("conv", "norm"))(x))


class Protonet(nn.Module):
    """YOLACT's prototypes (Bolya et al. 2019, section 3.1), from the finest level: ``[B, 2 h, 2 w, code]``.

    With ``relu`` prototypes are not negative, as in the paper; RDSNet's correlation takes them as they are.
    """

    channels: int = 256
    code: int = 32
    convs: int = 3
    level: int = 3
    relu: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, code=CHANNELS, convs=LAYERS, level=LEVELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> jax.Array:
        (x,) = features.select((self.level,), "the protonet")
        for i in range(1, self.convs + 1):
            x = nn.relu(Conv(self.channels, 3, kernel_init=xavier_uniform, name=f"conv{i}")(x))
        x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), "cells")
        x = nn.relu(Conv(self.channels, 3, kernel_init=xavier_uniform, name=f"conv{self.convs + 1}")(x))
        x = Conv(self.code, 1, kernel_init=xavier_uniform, name="codes")(x)
        return nn.relu(x) if self.relu else x


class PixelBranch(nn.Module):
    """CondInst's mask branch (Tian et al. 2020, section 3.2): levels 3 to 5 added up, then convolutions.

    ``[B, h, w, code]`` of the size of level 3.  Its batch normalisations take the statistics of the batch in training.
    """

    channels: int = 128
    code: int = 8
    convs: int = 4
    levels: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, code=CHANNELS, convs=LAYERS, levels=LEVELS)
        _check_order(self, self.levels)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> jax.Array:
        maps = features.select(self.levels, "the mask branch")
        total = self._conv(maps[0], f"level{self.levels[0]}_conv1")
        for level, x in zip(self.levels[1:], maps[1:], strict=True):
            factor = 2 ** (level - self.levels[0])
            x = self._conv(x, f"level{level}_conv1")
            x = resize(x, (factor * x.shape[1], factor * x.shape[2]), "strided")
            # Coarser levels are rounded up: doubled they may be too large.
            total += x[:, : total.shape[1], : total.shape[2]]
        for i in range(1, self.convs + 1):
            total = self._conv(total, f"conv{i}")
        return Conv(self.code, 1, kernel_init=kaiming_uniform, name="codes")(total)

    def _conv(self, x: jax.Array, name: str) -> jax.Array:
        norm = BatchNorm(frozen=False, name=name.replace("conv", "norm"))
        return nn.relu(Conv(self.channels, 3, bias=False, kernel_init=kaiming_uniform, name=name)(x, norm))


def _check_order(module: nn.Module, levels: tuple[int, ...]) -> None:
    """ValueError for levels that are not from fine to coarse: all are brought to the size of the first."""
    if list(levels) != sorted(set(levels)):
        raise ValueError(f"{type(module).__name__}.levels: expected each level once, the finest first, got {levels}")
