"""Generic RoI extractor: every box reads all levels of the pyramid (Rossi et al. 2020 and, as part of SBR-CNN, 2022).

    boxes -> RoIAlign on each level -> pre -> combine -> post

``pre`` and ``post`` are any module that keeps a crop's shape: :class:`ConvReLU`, :class:`RectangularReLU`,
``NonLocal``, ``Attention``, or None.  One ``pre`` serves all levels.

A guide is sampled on each level as the level's features are, before ``pre``.

Letters in shapes: B images, N boxes, C channels, Hp Wp rows and columns of a guide; crops are ``size`` pixels high and
wide.
"""

import functools
import operator
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv
from jaxdet.nn.extractors.single_level import crops_as_batch
from jaxdet.ops.roi_align import Method, roi_align, sa_roi_align
from jaxdet.ranges import CROP, KERNEL, LEVELS, SAMPLES, check_ranges
from jaxdet.structures import Features


class ConvReLU(nn.Module):
    """A convolution and a ReLU that keep a crop's shape and channels; parameters ``conv``."""

    kernel: int = 5

    def __post_init__(self) -> None:
        check_ranges(self, kernel=KERNEL)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(Conv(x.shape[-1], self.kernel, name="conv")(x))


class RectangularReLU(nn.Module):
    """A tall convolution, then a wide one, each with a ReLU; the crop between them has ``size - long + short`` rows.

    SBR-CNN's "7x3 -> 3x7", padded by 1 and 3 on all sides, as in its detection head.  Parameters ``tall``, ``wide``.
    """

    long: int = 7
    short: int = 3

    def __post_init__(self) -> None:
        check_ranges(self, long=KERNEL, short=KERNEL)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # One padding for both axes, as in the authors' code: 7x3 padded by 1 maps 7x7 to 3x7 (rows x columns), and 3x7
        # padded by 3 maps that back to 7x7.
        tall, wide = (self.long, self.short), (self.short, self.long)
        x = nn.relu(Conv(x.shape[-1], tall, padding=self.short // 2, name="tall")(x))
        return nn.relu(Conv(x.shape[-1], wide, padding=self.long // 2, name="wide")(x))


class GRoIE(nn.Module):
    """Crops from all levels, combined (Rossi et al. 2020, section III); parameters ``pre``, ``post``, ``reduce``.

    ``combine``:
      - ``"sum"``: the sum over levels.  "sum+" of the paper's Table II is the sum with ``post=ConvReLU(1)``.
      - ``"concat"``: all levels' channels, reduced to one level's by ``reduce``, a 1x1 convolution and a ReLU.
      - ``"random"``: one level a box.  Extractors have no random key: a hash of the box's coordinates draws it, so a
        box reads the same level whenever it is met, in training and in testing.

    ``relu`` puts a ReLU behind ``pre``, also where that is None: the first release (mmdet 1.x, which made the paper's
    tables) did so for sums and concat, the later ones do not.  Where ``pre`` ends with a ReLU it changes nothing.
    ``method`` is that of `jaxdet.ops.roi_align.sample_average`.
    """

    size: int = 7
    pre: nn.Module | None = None
    combine: Literal["sum", "concat", "random"] = "sum"
    post: nn.Module | None = None
    sampling_ratio: int = 2
    aligned: bool = True
    levels: tuple[int, ...] = (2, 3, 4, 5)
    relu: bool = False
    method: Method | None = None

    def __post_init__(self) -> None:
        check_ranges(self, size=CROP, sampling_ratio=SAMPLES, levels=LEVELS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, features: Features, boxes: jax.Array, valid: jax.Array, guide: jax.Array | None = None
    ) -> jax.Array:
        """Crops ``[B, N, size, size, C]`` of ``boxes [B, N, 4]``, by ``guide [B, N, Hp, Wp]``; invalid ones are 0."""
        if self.combine not in ("sum", "concat", "random"):
            raise ValueError(f'combine is "sum", "concat" or "random", got {self.combine!r}')
        crops = [crops_as_batch(each) for each in self._pool(features, boxes, valid, guide)]
        # The same module for each level: one set of weights.
        if self.pre is not None:
            crops = [self.pre(each) for each in crops]
        if self.relu:
            crops = [nn.relu(each) for each in crops]
        if self.combine == "concat":
            x = nn.relu(Conv(crops[0].shape[-1], 1, name="reduce")(jnp.concatenate(crops, -1)))
        else:
            # "random" has drawn the level before, so that there is a single crop to add up.
            x = functools.reduce(operator.add, crops)
        x = x if self.post is None else self.post(x)
        # A crop of zeros does not stay one, because convolutions have biases: what is invalid is cleared at the end.
        return jnp.where(valid[..., None, None, None], x.reshape(*valid.shape, *x.shape[1:]), 0)

    def _pool(self, features: Features, boxes: jax.Array, valid: jax.Array, guide: jax.Array | None) -> list[jax.Array]:
        """Crops ``[B, N, size, size, C]`` of each level, or of one level a box."""
        maps = features.select(self.levels, "the extractor")
        scales = [2.0**-level for level in self.levels]
        size = (self.size, self.size)
        align = roi_align if guide is None else functools.partial(sa_roi_align, prob=guide)
        align = functools.partial(
            align, size=size, sampling_ratio=self.sampling_ratio, aligned=self.aligned, method=self.method
        )
        if self.combine == "random":
            return [align(maps, scales, boxes, hashed(boxes, len(maps)), valid)]
        # A call for each level: one for all would first copy the pyramid into one table (CPU: twice the time).
        first = jnp.zeros(valid.shape, jnp.int32)
        return [align([m], [scale], boxes, first, valid) for m, scale in zip(maps, scales, strict=True)]


def hashed(boxes: jax.Array, number: int) -> jax.Array:
    """A number ``[...]`` int32 in ``0 .. number - 1`` for ``boxes [..., 4]``: equal boxes, equal numbers.

    The bits of the four coordinates go through the finaliser of MurmurHash3 one after the other.
    """
    state = jnp.zeros(boxes.shape[:-1], jnp.uint32)
    # A hash of the bits, not of rounded numbers: neighbouring boxes then draw independently.
    words = jax.lax.bitcast_convert_type(boxes.astype(jnp.float32), jnp.uint32)
    words = jnp.where(words == jnp.uint32(0x80000000), 0, words)  # -0.0 equals 0.0
    for word in jnp.moveaxis(words, -1, 0):
        state = state ^ word
        state = (state ^ (state >> 16)) * jnp.uint32(0x85EBCA6B)
        state = (state ^ (state >> 13)) * jnp.uint32(0xC2B2AE35)
        state = state ^ (state >> 16)
    return (state % number).astype(jnp.int32)
