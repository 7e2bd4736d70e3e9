"""A head pair: what looks at RoI features and says class, box and mask; and the losses of each branch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.remat import rematerialized
from jaxdet.nn.extractors.single_level import crops_as_batch
from jaxdet.ops import losses
from jaxdet.ops.boxes import DeltaCoder, safe
from jaxdet.structures import Features, Samples, Targets

Losses = dict[str, jax.Array]


class Head(nn.Module):
    """Box branch and optional mask branch, each an extractor and a head.

    ``coder`` scales the deltas that ``box_head`` predicts.  ``beta`` turns the L1 box loss into smooth L1.
    ``remat``: in training, what the branches compute is not kept but computed again for their gradients.
    """

    box_extractor: nn.Module
    box_head: nn.Module
    mask_extractor: nn.Module | None = None
    mask_head: nn.Module | None = None
    coder: DeltaCoder = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
    beta: float | None = None
    remat: bool = False

    @property
    def linked(self) -> bool:
        """Whether the mask branch looks at the features of the pass before."""
        return self.mask_head is not None and bool(self.mask_head.linked)

    @rematerialized
    def boxes(
        self, features: Features, boxes: jax.Array, valid: jax.Array, num_classes: int
    ) -> tuple[jax.Array, jax.Array]:
        """Logits ``[B, N, K + 1]`` and deltas ``[B, N, K or 1, 4]``, float32, for ``boxes [B, N, 4]``."""
        logits, deltas = self.box_head(crops_as_batch(self.box_extractor(features, boxes, valid)), num_classes)
        lead = valid.shape
        return (
            logits.reshape(*lead, logits.shape[-1]).astype(jnp.float32),
            deltas.reshape(*lead, *deltas.shape[1:]).astype(jnp.float32),
        )

    @rematerialized
    def mask_crops(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        """What the mask branch sees of ``boxes [B, N, 4]``: ``[B * N, s, s, C]``."""
        if self.mask_extractor is None or self.mask_head is None:
            raise ValueError("this head has no mask branch; give it mask_extractor and mask_head")
        return crops_as_batch(self.mask_extractor(features, boxes, valid))

    def no_mask_features(self, crops: jax.Array) -> jax.Array:
        """What stands for the features of an earlier pass in the first one: zeros ``[B * N, s, s, C']``."""
        return self.mask_head.nothing(crops)  # type: ignore[union-attr]

    @rematerialized
    def mask_features(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        """One pass over the crops: features ``[B * N, s, s, C']``; ``previous`` are those of the pass before."""
        return self.mask_head.features(crops, previous)  # type: ignore[union-attr]

    @rematerialized
    def mask_logits(self, features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
        """Logits ``[B, N, m, m]``, float32, of the bitmap of class ``labels [B, N]`` inside each box."""
        own = self.mask_head.classify(features, num_classes, labels.reshape(-1))  # type: ignore[union-attr]
        return own.reshape(*labels.shape, *own.shape[1:]).astype(jnp.float32)

    def use_all_parts(self, features: Features, num_classes: int) -> None:
        """Run all layers on a box of each image: what makes their parameters, which linen does at their first use."""
        images = len(next(iter(features.values())))
        boxes, valid, labels = jnp.zeros((images, 1, 4)), jnp.ones((images, 1), bool), jnp.zeros((images, 1), jnp.int32)
        self.boxes(features, boxes, valid, num_classes)
        if self.mask_head is not None:
            crops = self.mask_crops(features, boxes, valid)
            self.mask_logits(self.mask_features(crops, self.no_mask_features(crops)), labels, num_classes)


def of_class(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """Deltas ``[B, N, 4]`` of the class ``labels [B, N]``; class-agnostic ones have a single column."""
    column = jnp.minimum(labels, deltas.shape[2] - 1)
    return jnp.take_along_axis(deltas, column[..., None, None], axis=2)[:, :, 0]


def box_losses(head: Head, logits: jax.Array, deltas: jax.Array, samples: Samples, targets: Targets) -> Losses:
    """Class and box loss over the samples, both divided by the number of all samples in the batch."""
    number = jnp.maximum(samples.valid.sum(), 1)
    truth = jnp.take_along_axis(targets.boxes, samples.gt_index[..., None], axis=1)
    target = head.coder.encode(safe(samples.boxes, samples.positive), safe(truth, samples.positive))
    own = of_class(deltas, samples.labels)
    distance = losses.l1(own, target) if head.beta is None else losses.smooth_l1(own, target, head.beta)
    return {
        "loss_cls": losses.masked_sum(losses.cross_entropy(logits, samples.labels), samples.valid) / number,
        "loss_bbox": losses.masked_sum(distance, samples.positive[..., None]) / number,
    }


def mask_loss(logits: jax.Array, truth: jax.Array, positive: jax.Array) -> jax.Array:
    """Binary cross entropy of bitmaps ``[B, P, m, m]``, mean over all pixels of all positives of the batch."""
    total = losses.masked_sum(losses.binary_cross_entropy(logits, truth), positive[..., None, None])
    return total / (jnp.maximum(positive.sum(), 1) * logits.shape[-1] ** 2)
