"""RoI feature extractors: boxes and a pyramid in, one crop a box out.

Any of them takes a *guide*, a map for each box by which what is sampled in the box is multiplied
(`jaxdet.ops.roi_align.sa_roi_align`).

Letters in shapes: B images, N boxes in pixels of the resized image, h w and ``size`` rows and columns, Hp Wp those of a
guide, C channels.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.ops.boxes import area
from jaxdet.ops.roi_align import Method, roi_align, sa_roi_align
from jaxdet.ranges import CROP, LEVELS, SAMPLES, check_ranges, positive
from jaxdet.structures import Features


class SingleLevel(nn.Module):
    """Each box reads the level that suits its size (FPN, Lin et al. 2017, eq. 1); no parameters.

    A box of area below ``(2 * finest) ** 2`` reads the first level, each doubling of its side the next one.  ``finest``
    is the reference's 56 pixels: an object of ImageNet's 224 pixels reads P4, as its features came from C4.  ``method``
    is that of `jaxdet.ops.roi_align.sample_average`.
    """

    size: int = 7
    sampling_ratio: int = 0
    aligned: bool = True
    levels: tuple[int, ...] = (2, 3, 4, 5)
    finest: float = 56.0
    method: Method | None = None

    def __post_init__(self) -> None:
        check_ranges(self, size=CROP, sampling_ratio=SAMPLES, levels=LEVELS, finest=positive(1e5))
        super().__post_init__()

    def __call__(
        self, features: Features, boxes: jax.Array, valid: jax.Array, guide: jax.Array | None = None
    ) -> jax.Array:
        """Crops ``[B, N, size, size, C]`` of ``boxes [B, N, 4]``, by ``guide [B, N, Hp, Wp]``; invalid ones are 0."""
        align = roi_align if guide is None else partial(sa_roi_align, prob=guide)
        return align(
            features.select(self.levels, "the extractor"),
            # pixels of a map per image pixel
            [2.0**-level for level in self.levels],
            boxes,
            self.level_of(boxes),
            valid,
            size=(self.size, self.size),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            method=self.method,
        )

    def level_of(self, boxes: jax.Array) -> jax.Array:
        """Position in ``levels`` ``[...]`` int32 for ``boxes [..., 4]``.

        It is ``floor(log2(sqrt(area) / finest + 1e-6))``, bounded by what levels there are; the 1e-6 is the
        reference's.  Areas are compared, because root and logarithm differ in their last bit between backends.
        """
        # The squared sides from which on the second, third, .. level is read: the level is the number of those reached.
        least = [(self.finest * (2.0**level - 1e-6)) ** 2 for level in range(1, len(self.levels))]
        return (area(boxes)[..., None] >= jnp.asarray(least, jnp.float32)).sum(-1, dtype=jnp.int32)


def crops_as_batch(crops: jax.Array) -> jax.Array:
    """``[B, N, h, w, C]`` -> ``[B * N, h, w, C]``: heads treat each crop alone."""
    return crops.reshape(math.prod(crops.shape[:2]), *crops.shape[2:])
