"""Necks: the maps of a backbone -> a pyramid whose fine levels carry the content of the coarse ones too.

Letters in shapes: B images, h w a map, C channels.  Levels are log2 of the stride.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, NormKind, make_norm, xavier_uniform
from jaxdet.ops.bilinear import resize
from jaxdet.ranges import CHANNELS, LEVELS, Range, check_ranges
from jaxdet.structures import Levels


class Subsample(nn.Module):
    """One more level, every second pixel of the last: what the region proposal network of FPN reads."""

    @nn.compact
    def __call__(self, backbone_top: jax.Array, pyramid_top: jax.Array, level: int) -> Levels:
        """The levels above ``level``, which is that of both maps ``[B, h, w, C]``."""
        # The reference's max pooling of 1x1 windows with stride 2.
        return {level + 1: pyramid_top[:, ::2, ::2]}


class StridedConvs(nn.Module):
    """``number`` more levels, each by a 3x3 convolution of stride 2 of the one before (RetinaNet, section 4).

    The first reads the last map of the backbone, as in the paper, or that of the pyramid.  ``relu`` stands between the
    convolutions; the reference has none, torchvision and CondInst have one.
    """

    number: int = 2
    source: Literal["backbone", "pyramid"] = "backbone"
    relu: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, number=Range(1, 8))
        super().__post_init__()

    @nn.compact
    def __call__(self, backbone_top: jax.Array, pyramid_top: jax.Array, level: int) -> Levels:
        """As `Subsample`."""
        if self.source not in ("backbone", "pyramid"):
            raise ValueError(f'StridedConvs.source is "backbone" or "pyramid", got {self.source!r}')
        x, levels = backbone_top if self.source == "backbone" else pyramid_top, {}
        for i in range(1, self.number + 1):
            # A level is stored before the ReLU: this one feeds the next convolution alone.
            x = nn.relu(x) if self.relu and i > 1 else x
            name = f"conv{level + i}"
            levels[level + i] = x = Conv(pyramid_top.shape[-1], 3, 2, kernel_init=xavier_uniform, name=name)(x)
        return levels


class FPN(nn.Module):
    """Feature Pyramid Network (Lin et al. 2017): maps ``{2..5}`` -> pyramid ``{2..6}`` of ``channels`` channels.

    ``lowest`` is the first level: 3 leaves the finest out (RetinaNet).  A coarser level is brought to the size of the
    next finer one by repeating its pixels, or with ``bilinear`` by values between them (YOLACT).  ``top`` makes the
    levels above the last map of the backbone.  A backbone of three stages, ``{2..4}``, makes a pyramid ``{2..5}`` in
    the same way.  With ``norm`` a normalisation follows each convolution, which then has no bias (torchvision's second
    generation); those of ``top`` have none.
    """

    channels: int = 256
    lowest: int = 2
    top: Subsample | StridedConvs = Subsample()
    bilinear: bool = False
    norm: NormKind | None = None

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, lowest=LEVELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Levels) -> Levels:
        levels = sorted(level for level in features if level >= self.lowest)
        if not levels:
            raise ValueError(f"FPN.lowest: the backbone has levels {sorted(features)}, none from {self.lowest} on")
        merged = {level: self._conv(features[level], 1, f"lateral{level}") for level in levels}
        # Top-down: a level is complete before the next finer one takes it over.
        for level in reversed(levels[:-1]):
            coarse, fine = merged[level + 1], merged[level]
            hw = fine.shape[1], fine.shape[2]
            merged[level] = fine + (resize(coarse, hw, "cells") if self.bilinear else upsample_to(coarse, fine))
        # The convolutions behind the sums counter the aliasing of upsampling (FPN, section 3); the sums that are handed
        # down stay without.
        pyramid = {level: self._conv(merged[level], 3, f"output{level}") for level in levels}
        last = levels[-1]
        return {**pyramid, **self.top(features[last], pyramid[last], last)}

    def _conv(self, x: jax.Array, kernel: int, name: str) -> jax.Array:
        norm = None if self.norm is None else make_norm(self.norm, f"{name}_norm")
        return Conv(self.channels, kernel, bias=norm is None, kernel_init=xavier_uniform, name=name)(x, norm)


def upsample_to(x: jax.Array, like: jax.Array) -> jax.Array:
    """Nearest neighbour doubling of ``[B, h, w, C]``, cut to the size of ``like`` (2h or 2h - 1, likewise w)."""
    # An odd finer map was rounded up when it was halved, so that the doubled one is a pixel too large.
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : like.shape[1], : like.shape[2]]
