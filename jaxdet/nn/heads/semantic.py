"""The semantic branch of Hybrid Task Cascade (Chen et al. 2019, section 3.3 and fig. 2): the class of each pixel.

Letters in shapes: B images, H W canvas, N boxes, C channels.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv
from jaxdet.ops.bilinear import resize
from jaxdet.ops.roi_align import Method, roi_align, sa_roi_align
from jaxdet.ranges import CHANNELS, LAYERS, LEVELS, WEIGHT, Range, check_ranges
from jaxdet.structures import Features

_LEVEL = 3
"""Where the branch works: all levels are brought to the size of this one, and semantic targets have it."""

_CROP = 14  # pixels; smaller crops are means of these


class SemanticHead(nn.Module):
    """All levels summed at the size of level 3, then convolutions.

    Adds to the features ``semantic_logits [B, H/8, W/8, num_classes]``, float32, and ``semantic [B, H/8, W/8,
    channels]``, the embedding that box and mask branches may look at (`PlusSemantic`).  ``weight`` is that of the
    loss, ``channels`` are also those of the pyramid.  The 183 classes are COCO's things and stuff by their ids in
    COCO-stuff's maps.
    """

    num_classes: int = 183
    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    channels: int = 256
    convs: int = 4
    weight: float = 0.2

    def __post_init__(self) -> None:
        # Maps are of 8 bits, of which 255 says that a pixel is not known.
        check_ranges(self, num_classes=Range(1, 255), levels=LEVELS, channels=CHANNELS, convs=LAYERS, weight=WEIGHT)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> Features:
        maps = features.select((_LEVEL, *self.levels), "the semantic branch")
        # Level 3 gives the size; it enters the sum as one of ``levels``.
        hw, x = (maps[0].shape[1], maps[0].shape[2]), jnp.zeros((), maps[0].dtype)
        for level, source in zip(self.levels, maps[1:], strict=True):
            # Resized first, then convolved: the reference's order, and with a ReLU in between the other one differs.
            x += nn.relu(Conv(self.channels, 1, name=f"lateral{level}")(resize(source, hw, "corners")))
        for i in range(1, self.convs + 1):
            x = nn.relu(Conv(self.channels, 3, name=f"conv{i}")(x))
        logits = Conv(self.num_classes, 1, name="logits")(x)
        embedding = nn.relu(Conv(self.channels, 1, name="embedding")(x))
        # Logits go to a loss, which is float32; the embedding joins the features in their dtype.
        return dataclasses.replace(features, semantic=embedding, semantic_logits=logits.astype(jnp.float32))


class PlusSemantic(nn.Module):
    """What ``extractor`` crops from the pyramid, plus the same boxes' crops of the semantic embedding."""

    extractor: nn.Module

    @property
    def method(self) -> Method | None:
        """How crops are sampled, of the embedding as of the pyramid."""
        method: Method | None = getattr(self.extractor, "method", None)
        return method

    def __call__(
        self, features: Features, boxes: jax.Array, valid: jax.Array, guide: jax.Array | None = None
    ) -> jax.Array:
        """Crops ``[B, N, size, size, C]`` of ``boxes [B, N, 4]``, both by ``guide [B, N, Hp, Wp]``."""
        if features.semantic is None:
            raise ValueError("PlusSemantic needs the semantic branch: set semantic=SemanticHead() in the model")
        guides = () if guide is None else (guide,)
        crops = self.extractor(features, boxes, valid, *guides)
        return crops + semantic_crops(features.semantic, boxes, valid, crops.shape[2], *guides, method=self.method)


def semantic_crops(
    embedding: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    size: int,
    guide: jax.Array | None = None,
    *,
    method: Method | None = None,
) -> jax.Array:
    """Crops ``[B, N, size, size, C]`` of the embedding, to be added to those of the box (7) or mask branch (14).

    ``embedding [B, H/8, W/8, C]``, ``boxes [B, N, 4]``, ``valid [B, N]``; invalid ones are 0.  Crops of 14 pixels by
    aligned, adaptive RoIAlign, by a ``guide [B, N, Hp, Wp]`` if there is one; smaller ones their means, as in the
    reference.  ``method`` is that of `jaxdet.ops.roi_align.sample_average`.
    """
    if size < 1 or _CROP % size:
        raise ValueError(f"semantic crops: expected a size that divides {_CROP}, got {size}; change the extractor's")
    level = jnp.zeros(valid.shape, jnp.int32)
    align = roi_align if guide is None else partial(sa_roi_align, prob=guide)
    crops = align([embedding], [2.0**-_LEVEL], boxes, level, valid, size=(_CROP, _CROP), method=method)
    block = _CROP // size
    # [B, N, size, block, size, block, C]: the mean over a block is adaptive average pooling from 14 to ``size``.
    return crops.reshape(*valid.shape, size, block, size, block, -1).mean((3, 5))
