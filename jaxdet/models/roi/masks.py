"""One stage of masks: crops, passes of mask heads over them, logits, loss.

Where heads are linked, a pass gets what the one before it saw: HTC's mask information flow (Chen et al. 2019, eq. 5)
and the inner loop of R3-CNN (Rossi et al. 2021, eq. 6).
"""

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
    """What the last pass of a mask branch saw and said."""

    crops: jax.Array  #: ``[B * N, s, s, C]``
    logits: jax.Array  #: ``[B, N, m, m]`` of one class for each box


@struct.dataclass
class TrainedMasks:
    """What the mask branch of a stage of training hands on."""

    samples: Samples  #: ``[B, P]``
    view: MaskPass  #: of the samples, with the logits of their true class
    bitmaps: jax.Array  #: ``[B, P, m, m]`` float32, 0 or 1, what the logits should say
    losses: Losses


@struct.dataclass
class PredictedMasks:
    """What the mask branch says about detections."""

    probabilities: jax.Array  #: ``[B, D, m, m]``, averaged over the passes
    view: MaskPass  #: of the last pass


def candidates(samples: Samples, stage: Stage) -> Samples:
    """The slots that may hold a positive, with harmless boxes and labels where they do not: what a mask loss needs."""
    few = jax.tree.map(lambda a: a[:, : stage.sampler.max_positive], samples)
    labels = jnp.where(few.positive, few.labels, 0)
    return few.replace(boxes=safe(few.boxes, few.positive), labels=labels)


def judge_masks(
    branch: MaskBranch,
    stage: Stage,
    samples: Samples,
    crops: jax.Array,
    features: jax.Array,
    targets: Targets,
    num_classes: int,
) -> TrainedMasks:
    """Logits from the features of a stage's last pass, and their loss.

    Args:
        samples: ``[B, P]``, as `candidates` gives them.
        crops: ``[B * P, s, s, C]``.
        features: ``[B * P, s, s, C']``.
    """
    logits = branch.logits(features, samples.labels, num_classes)
    bitmaps = mask_targets(targets.masks, samples.boxes, samples.gt_index, samples.positive, size=logits.shape[-1])
    losses = stage.weigh({"loss_mask": mask_loss(logits, bitmaps, samples.positive)})
    return TrainedMasks(samples, MaskPass(crops, logits), bitmaps, losses)


def mask_loss(logits: jax.Array, bitmaps: jax.Array, positive: jax.Array) -> jax.Array:
    """Binary cross entropy of bitmaps ``[B, P, m, m]``, mean over all pixels of all positives of the batch."""
    total = masked_sum(binary_cross_entropy(logits, bitmaps), positive[..., None, None])
    return total / (jnp.maximum(positive.sum(), 1) * logits.shape[-1] ** 2)


def mean_probabilities(passes: list[jax.Array]) -> jax.Array:
    """The mean of the probabilities of several passes, from their logits ``[B, D, m, m]``."""
    return jax.nn.sigmoid(jnp.stack(passes)).mean(0)


def check_masks(targets: Targets) -> None:
    """ValueError for ground truth without masks."""
    if 0 in targets.masks.values.shape[2:]:
        raise ValueError(
            "the mask branch needs masks, the batch has none: set data.masks=true, or take a model without mask branch"
        )
