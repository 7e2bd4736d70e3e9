"""What all detectors share: from a batch of images to features, and which parameters are not trained.

Letters in shapes: B images, H W canvas, h w a map, C channels, K classes.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.ops import losses
from jaxdet.ranges import Range, check_ranges, positive
from jaxdet.structures import Batch, Features, Levels, Targets

Losses: TypeAlias = dict[str, jax.Array]
"""Loss terms, or metrics, by name: scalars."""

Dtype: TypeAlias = Literal["float32", "bfloat16"]

IGNORED = 255
"""In semantic targets: the class of this pixel is not known (`jaxdet.data.pipeline.transforms.IGNORED`)."""


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What is subtracted from the pixels of an RGB image (0..255) and what they are divided by: ImageNet's numbers.

    Pretrained weights come with the numbers of their training; these are torchvision's, times 255.  ``channels``: the
    order in which the network wants the colours, which is also that of ``mean`` and ``std``; weights from Caffe, and
    ResNeXt-101 32x8d from Caffe2, want ``"bgr"``.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        check_ranges(self, mean=Range(-1e4, 1e4), std=positive(1e4))

    @property
    def rgb_mean(self) -> tuple[float, float, float]:
        """The colour that becomes 0, red first whatever ``channels`` are: what data have, which are RGB."""
        first, second, third = self.mean
        return self.mean if self.channels == "rgb" else (third, second, first)

    def __call__(self, image: jax.Array, true_hw: jax.Array) -> jax.Array:
        """``[B, H, W, 3]`` float32 of uint8 images, and 0 outside ``true_hw [B, 2]``.

        The padding is set after the normalisation, so that it is the mean colour, as in the reference.
        """
        # [B, H, W] bool by broadcasting; ``true_hw`` differs from image to image.
        rows, columns = jnp.arange(image.shape[1]), jnp.arange(image.shape[2])
        inside = (rows[None, :, None] < true_hw[:, 0, None, None]) & (columns[None, None] < true_hw[:, 1, None, None])
        image = image if self.channels == "rgb" else image[..., ::-1]
        # float32 up to the result: bfloat16 would round after each operation.
        normalized = (image.astype(jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return jnp.where(inside[..., None], normalized, 0.0)


def extract_features(
    batch: Batch,
    backbone: nn.Module,
    neck: nn.Module,
    *,
    normalization: Normalization,
    dtype: Dtype,
    semantic: nn.Module | None = None,
) -> Features:
    """The pyramid of a batch of images, and the maps of the semantic branch if there is one.

    ``dtype`` is that of the image that enters the backbone, and so of all that is computed from it: layers compute in
    the dtype of their input.
    """
    image = normalization(jnp.asarray(batch.image), batch.true_hw)
    levels: Levels = neck(backbone(image.astype(dtype)))
    features = Features(levels, hw=(batch.image.shape[1], batch.image.shape[2]), true_hw=jnp.asarray(batch.true_hw))
    return features if semantic is None else semantic(features)


def feature_intermediates(
    batch: Batch, backbone: nn.Module, neck: nn.Module, *, normalization: Normalization, dtype: Dtype
) -> dict[str, Any]:
    """``backbone/{level}`` and ``pyramid/{level}``, the maps ``[B, h, w, C]`` that `extract_features` makes."""
    image = normalization(jnp.asarray(batch.image), batch.true_hw).astype(dtype)
    maps: Levels = backbone(image)
    named = {f"backbone/{level}": x for level, x in maps.items()}
    return named | {f"pyramid/{level}": x for level, x in neck(maps).items()}


def in_frozen_backbone(backbone: nn.Module, path: tuple[str, ...]) -> bool:
    """Whether the parameter at this path of a detector belongs to a part of its backbone that is not trained."""
    return path[0] == "backbone" and bool(backbone.is_frozen(path[1:]))


def without_fillers(batch: Batch) -> Batch:
    """Slots that only fill the batch become images of no size: without anchors or ground truth they have no loss.

    Their semantic maps have no known pixel already, as `jaxdet.data` makes them.
    """
    # Size 0: no cell of any level is on the image, so that no anchor is sampled.
    hw = jnp.where(batch.valid[:, None], batch.true_hw, 0.0)
    targets = batch.targets
    if targets is not None:
        targets = dataclasses.replace(targets, valid=targets.valid & batch.valid[:, None])
        targets = jax.tree.map(jnp.asarray, targets)
    return dataclasses.replace(batch, true_hw=hw, targets=targets)


def targets_of(batch: Batch) -> Targets:
    """The ground truth that losses need; ValueError for a batch without."""
    if batch.targets is None:
        raise ValueError("losses need ground truth, got a batch without targets; predict works without")
    targets: Targets = batch.targets
    return targets


def semantic_losses(logits: jax.Array, targets: Targets, weight: float) -> Losses:
    """Weighted cross entropy of ``logits [B, H/8, W/8, K]``, mean over the pixels of the batch whose class is known.

    A class from K on that is not ``IGNORED`` makes the loss NaN.  Without any known pixel it is 0.

    Raises:
        ValueError: targets without semantic maps, or with maps of another size.
    """
    if targets.semantic is None:
        raise ValueError(
            "the semantic branch needs semantic maps, the batch has none: set data.train.stuff of a CocoFolder, or "
            "data.train.semantic of Scenes (Tfds has no maps), or take the branch out of the model"
        )
    if targets.semantic.shape != logits.shape[:3]:
        raise ValueError(
            f"semantic targets: expected {logits.shape[:3]} as the logits, got {targets.semantic.shape}: "
            "both must be an eighth of the canvas"
        )
    known = targets.semantic != IGNORED
    # Class 0 stands in for unknown pixels: an index of 255 into the logits would make NaN of them.
    labels = jnp.where(known, targets.semantic, 0).astype(jnp.int32)
    total = losses.masked_sum(losses.cross_entropy(logits, labels), known)
    return {"loss_semantic_seg": weight * total / jnp.maximum(known.sum(), 1)}
