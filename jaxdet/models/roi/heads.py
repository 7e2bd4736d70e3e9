"""Branches of the second stage: an extractor that crops features, and a head that reads the crops.

Letters in shapes: B images, N boxes, s rows and columns of a crop, m those of a mask, Hp and Wp those of a guide, C and
C' channels, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.remat import rematerialized
from jaxdet.nn.extractors.single_level import crops_as_batch
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.losses import BoxLoss, CrossEntropy, SmoothL1
from jaxdet.structures import Features


class BoxBranch(nn.Module):
    """Predicts class and box of regions.

    ``coder`` scales the deltas that ``head`` predicts, ``box_loss`` compares them with the truth, and ``class_loss``
    the class.  ``remat``: in training, what the branch computes is not kept but computed again for its gradients.
    """

    extractor: nn.Module
    head: nn.Module
    coder: DeltaCoder = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
    box_loss: BoxLoss = SmoothL1()
    class_loss: CrossEntropy = CrossEntropy()
    remat: bool = False

    @rematerialized
    def __call__(
        self,
        features: Features,
        boxes: jax.Array,
        valid: jax.Array,
        num_classes: int,
        guide: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits ``[B, N, K + 1]`` and deltas ``[B, N, K or 1, 4]``, float32, for ``boxes [B, N, 4]``.

        Deltas are None where the head says the class alone.
        A ``guide [B, N, Hp, Wp]`` multiplies what the extractor samples in each box.
        """
        logits, deltas = self.head(self.crops(features, boxes, valid, guide), num_classes)
        # Heads work on [B * N, ..]; logits and deltas go on in float32, for softmax and geometry.
        lead = valid.shape
        logits = logits.reshape(*lead, logits.shape[-1]).astype(jnp.float32)
        if deltas is None:
            return logits, None
        return logits, deltas.reshape(*lead, *deltas.shape[1:]).astype(jnp.float32)

    def crops(
        self, features: Features, boxes: jax.Array, valid: jax.Array, guide: jax.Array | None = None
    ) -> jax.Array:
        """What the head reads: ``[B * N, s, s, C]``."""
        # An extractor of your own need not know of guides to be used without.
        guides = () if guide is None else (guide,)
        return crops_as_batch(self.extractor(features, boxes, valid, *guides))

    def make_parameters(self, features: Features, num_classes: int) -> None:
        """Run all layers on a box of each image: linen makes parameters where a layer is first used."""
        images = len(next(iter(features.levels.values())))
        self(features, jnp.zeros((images, 1, 4)), jnp.ones((images, 1), bool), num_classes)


class MaskBranch(nn.Module):
    """Predicts masks inside regions, whatever these are: positives in training, detections, or all samples of a stage.

    A branch whose head is ``linked`` makes several passes over its crops, each with the features of the one before.
    """

    extractor: nn.Module
    head: nn.Module
    remat: bool = False

    @property
    def linked(self) -> bool:
        """Whether a pass reads the features of the pass before."""
        return bool(self.head.linked)

    @rematerialized
    def crops(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        """What the head reads of ``boxes [B, N, 4]``: ``[B * N, s, s, C]``."""
        return crops_as_batch(self.extractor(features, boxes, valid))

    def empty_features(self, crops: jax.Array) -> jax.Array:
        """What stands for the features of an earlier pass in the first one: zeros ``[B * N, s, s, C']``."""
        empty: jax.Array = self.head.empty_features(crops)
        return empty

    @rematerialized
    def features(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        """One pass over the crops: features ``[B * N, s, s, C']``; ``previous`` are those of the pass before."""
        passed: jax.Array = self.head.features(crops, previous)
        return passed

    @rematerialized
    def logits(self, features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
        """Logits ``[B, N, m, m]``, float32, of the bitmap of class ``labels [B, N]`` inside each box."""
        # One class for each box: all classes would be K times as many numbers.
        own = self.head.classify(features, num_classes, labels.reshape(-1))
        return own.reshape(*labels.shape, *own.shape[1:]).astype(jnp.float32)

    def make_parameters(self, features: Features, num_classes: int) -> None:
        """As `BoxBranch.make_parameters`."""
        images = len(next(iter(features.levels.values())))
        crops = self.crops(features, jnp.zeros((images, 1, 4)), jnp.ones((images, 1), bool))
        passed = self.features(crops, self.empty_features(crops))
        self.logits(passed, jnp.zeros((images, 1), jnp.int32), num_classes)
