"""The mask branch, behind the box loop: each step's pass over its crops, after the passes of earlier steps.

Where heads are linked, a pass gets what the one before it saw: HTC's mask information flow (Chen et al. 2019, eq. 5)
and the inner loop of R3-CNN (Rossi et al. 2021, eq. 6).
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.branches import Head, Losses, mask_loss
from jaxdet.models.finish import Finished
from jaxdet.models.repeat import EachStep, Repeat, by_name
from jaxdet.models.schedule import Step
from jaxdet.ops.boxes import safe
from jaxdet.ops.masks import mask_targets
from jaxdet.structures import Features, Samples, Targets


@struct.dataclass
class MaskPass:
    """The mask branch's own pass over the positives of a step."""

    samples: Samples  #: ``[B, P]``
    crops: jax.Array  #: ``[B * P, s, s, C]``
    logits: jax.Array  #: ``[B, P, m, m]`` of the true class
    truth: jax.Array  #: ``[B, P, m, m]`` float32, 0 or 1


@struct.dataclass
class FoundMasks:
    """What the mask branch says about detections."""

    probabilities: jax.Array  #: ``[B, D, m, m]``, averaged over the passes
    crops: jax.Array  #: ``[B * D, s, s, C]`` that the last head looked at
    logits: jax.Array  #: ``[B, D, m, m]`` of the last pass


def train_masks(
    repeat: Repeat, features: Features, samples: EachStep, targets: Targets, num_classes: int
) -> tuple[Losses, MaskPass]:
    """Losses of all steps on their own ``samples``, and the pass of the last."""
    if 0 in targets.masks.shape[2:]:
        raise ValueError(
            "the mask branch needs masks, the batch has none: set data.masks=true, or take a model without mask branch"
        )

    def look(head: Head, step: Step, samples: Samples) -> tuple[jax.Array]:
        return (head.mask_crops(features, safe(samples.boxes, samples.positive), samples.positive),)

    def judge(head: Head, step: Step, samples: Samples, seen: jax.Array) -> tuple[Losses, jax.Array, jax.Array]:
        labels, boxes = jnp.where(samples.positive, samples.labels, 0), safe(samples.boxes, samples.positive)
        logits = head.mask_logits(seen, labels, num_classes)
        truth = mask_targets(
            targets.masks, targets.frames, boxes, samples.gt_index, samples.positive, size=logits.shape[-1]
        )
        return step.weigh({"loss_mask": mask_loss(logits, truth, samples.positive)}), logits, truth

    (crops,) = repeat.each(look, samples)
    terms, logits, truth = repeat.each(judge, samples, repeat.mask_passes(crops))
    last = {"samples": samples, "crops": crops, "logits": logits, "truth": truth}
    return by_name(repeat, terms), MaskPass(**{name: repeat.listed(values)[-1] for name, values in last.items()})


def test_masks(repeat: Repeat, features: Features, found: Finished, num_classes: int) -> FoundMasks:
    """Masks of detections.

    Linked heads look at the crops of the last step's head one after the other, each at what the one before saw;
    others look at their own crops.
    """
    last = repeat.heads[repeat.schedule[-1].head]
    shared = last.mask_crops(features, found.boxes, found.valid)
    is_shared = last.linked or len(repeat.heads) == 1

    def body(head: Head, step: Step, t: jax.Array | int, before: jax.Array) -> tuple[jax.Array, tuple[jax.Array]]:
        crops = shared if is_shared else head.mask_crops(features, found.boxes, found.valid)
        seen = head.mask_features(crops, before)
        return seen, (head.mask_logits(seen, found.labels, num_classes),)

    (logits,) = repeat.fold(body, last.no_mask_features(shared))
    by_step = repeat.listed(logits)
    return FoundMasks(jax.nn.sigmoid(jnp.stack(by_step)).mean(0), shared, by_step[-1])
