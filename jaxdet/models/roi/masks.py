"""One stage of masks: crops, passes of mask heads over them, logits, loss.

Where heads are linked, a pass gets the features of the one before it: HTC's mask information flow (Chen et al. 2019,
eq. 5) and the inner loop of R3-CNN (Rossi et al. 2021, eq. 6).

Letters in shapes: B images, N boxes, P slots that may hold a positive, D detections, s rows and columns of a crop, m
those of a mask, C and C' channels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.features import Losses
from jaxdet.models.roi.heads import MaskBranch
from jaxdet.models.roi.schedule import Stage
from jaxdet.ops.boxes import safe
from jaxdet.ops.losses import binary_cross_entropy, masked_sum
from jaxdet.ops.masks import mask_targets
from jaxdet.structures import Samples, Targets


@struct.dataclass
class MaskPass:
    """Input and output of the last pass of a mask branch."""

    crops: jax.Array  #: ``[B * N, s, s, C]``
    logits: jax.Array  #: ``[B, N, m, m]`` of one class for each box


@struct.dataclass
class TrainedMasks:
    """What the mask branch of a stage of training hands on."""

    samples: Samples  #: ``[B, P]``
    view: MaskPass  #: the pass over the samples, with the logits of their true class
    bitmaps: jax.Array  #: ``[B, P, m, m]`` float32, 0 or 1, what the logits should say
    losses: Losses


@struct.dataclass
class PredictedMasks:
    """What the mask branch predicts for detections."""

    probabilities: jax.Array  #: ``[B, D, m, m]``, averaged over the passes
    view: MaskPass  #: the last pass


def candidates(samples: Samples, stage: Stage) -> Samples:
    """The slots that may hold a positive, with harmless boxes and labels where they do not: what a mask loss needs."""
    # Samplers put positives first, and at most ``max_positive``: no other slot needs a mask, or its cost.
    return harmless(jax.tree.map(lambda a: a[:, : stage.sampler.max_positive], samples))


def harmless(samples: Samples) -> Samples:
    """Samples with boxes and labels that do no harm where they are not positive."""
    # Label K of negatives has no mask channel.
    labels = jnp.where(samples.positive, samples.labels, 0)
    return dataclasses.replace(samples, boxes=safe(samples.boxes, samples.positive), labels=labels)


def mask_stage_losses(
    branch: MaskBranch,
    weight: float | jax.Array,
    samples: Samples,
    crops: jax.Array,
    features: jax.Array,
    targets: Targets,
    num_classes: int,
) -> TrainedMasks:
    """Logits from the features of a stage's last pass, and their loss.

    Args:
        branch: the stage's own.
        weight: of its loss.
        samples: ``[B, P]``, as `candidates` gives them.
        crops: ``[B * P, s, s, C]``.
        features: ``[B * P, s, s, C']``.
    """
    # The logits of the true class alone have a loss, so that classes do not compete (He et al. 2017, section 3).
    logits = branch.logits(features, samples.labels, num_classes)
    boxes, index, size = samples.boxes, samples.gt_index, logits.shape[-1]
    bitmaps = mask_targets(targets.masks, boxes, index, samples.positive, size=size)
    losses = {"loss_mask": weight * mask_loss(logits, bitmaps, samples.positive)}
    return TrainedMasks(samples, MaskPass(crops, logits), bitmaps, losses)


def mask_loss(logits: jax.Array, bitmaps: jax.Array, positive: jax.Array) -> jax.Array:
    """Binary cross entropy of bitmaps ``[B, P, m, m]``, mean over all pixels of all positives of the batch."""
    total = masked_sum(binary_cross_entropy(logits, bitmaps), positive[..., None, None])
    return total / (jnp.maximum(positive.sum(), 1) * logits.shape[-1] ** 2)


def mean_probabilities(passes: list[jax.Array]) -> jax.Array:
    """The mean of the probabilities (not of the logits) of several passes, from their logits ``[B, D, m, m]``."""
    return jax.nn.sigmoid(jnp.stack(passes)).mean(0)


def check_masks(targets: Targets) -> None:
    """ValueError for ground truth without masks."""
    if 0 in targets.masks.values.shape[2:]:
        raise ValueError(
            "the mask branch needs masks, the batch has none: set data.masks=true, or take a model without mask branch"
        )
