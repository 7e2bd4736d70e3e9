"""The loop over heads: one step in Mask R-CNN, several with rising IoU in its descendants.

What varies by *head* (extractors, layers, delta scale) lives in ``Head``; what varies by *step* (matching, sampling,
loss weight, mask passes) lives in ``Step``, together with the index of the head that the step uses.  Cascade R-CNN
(Cai and Vasconcelos 2018) has as many heads as steps, R3-CNN (Rossi et al. 2021, section III) one head for all.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.branches import Head, Losses, box_losses, mask_loss, of_class
from jaxdet.models.finish import Finished
from jaxdet.models.repeat import Repeat
from jaxdet.models.samples import as_proposals, pad, positives, sample
from jaxdet.models.schedule import Step
from jaxdet.ops.boxes import clip, iou, safe
from jaxdet.ops.masks import mask_targets
from jaxdet.structures import Features, Proposals, Samples, Targets


@struct.dataclass
class MaskPass:
    """The mask branch's last pass over the positives of a step."""

    crops: jax.Array  #: ``[B * P, s, s, C]``
    logits: jax.Array  #: ``[B, P, m, m]`` of the true class
    truth: jax.Array  #: ``[B, P, m, m]`` float32, 0 or 1
    samples: Samples  #: ``[B, P]``


@struct.dataclass
class FoundMasks:
    """What the mask branch says about detections."""

    probabilities: jax.Array  #: ``[B, D, m, m]``, averaged over the passes
    crops: jax.Array  #: ``[B * D, s, s, C]`` that the last head looked at
    logits: jax.Array  #: ``[B, D, m, m]`` of the last pass


def train_steps(
    repeat: Repeat,
    features: Features,
    proposals: Proposals,
    targets: Targets,
    true_hw: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> tuple[Losses, Losses, MaskPass | None]:
    """Losses and metrics of all steps, and the mask pass of the last; each step trains on what the one before moved."""
    slots = max(proposals.valid.shape[1], *(step.sampler.number for step in repeat.schedule))

    def body(head: Head, step: Step, t: jax.Array | int, proposals: Proposals) -> tuple[Proposals, Any, Any]:
        box_key, mask_key = jax.random.split(jax.random.fold_in(key, t))
        samples = sample(step, proposals, targets, num_classes, box_key)
        logits, deltas = head.boxes(features, samples.boxes, samples.valid, num_classes)
        terms = box_losses(head, logits, deltas, samples, targets)
        metrics = _metrics(logits, samples, targets)
        moved = as_proposals(samples, refine(head, samples.boxes, logits, deltas, true_hw), slots)
        last = None
        if head.mask_head is not None:
            if step.interleaved:
                samples = sample(step, moved, targets, num_classes, mask_key)
            last = mask_pass(repeat, head, step, features, positives(samples, step), targets, num_classes)
            terms["loss_mask"] = mask_loss(last.logits, last.truth, last.samples.positive)
        return moved, ({name: value * step.weight for name, value in terms.items()}, metrics), last

    outs, last = repeat.fold(body, pad(proposals, slots))
    return _named([terms for terms, _ in outs]), _named([metrics for _, metrics in outs]), last


def mask_pass(
    repeat: Repeat, head: Head, step: Step, features: Features, samples: Samples, targets: Targets, num_classes: int
) -> MaskPass:
    """The passes of earlier heads, then that of the step's own, whose bitmaps are compared with the truth."""
    if 0 in targets.masks.shape[2:]:
        raise ValueError(
            "the mask branch needs masks, the batch has none: set data.masks=true, or take a model without mask branch"
        )
    labels = jnp.where(samples.positive, samples.labels, 0)
    boxes = safe(samples.boxes, samples.positive)
    crops = head.mask_crops(features, boxes, samples.positive)
    before = head.no_mask_features(crops)
    if head.linked:
        before = repeat.chain(crops, step.mask_passes, before)
    logits = head.mask_logits(head.mask_features(crops, before), labels, num_classes)
    truth = mask_targets(
        targets.masks, targets.frames, boxes, samples.gt_index, samples.positive, size=logits.shape[-1]
    )
    return MaskPass(crops, logits, truth, samples)


def test_steps(
    repeat: Repeat, features: Features, proposals: Proposals, true_hw: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Logits ``[B, N, K + 1]``, averaged over the steps, and boxes ``[B, N, K or 1, 4]`` of the last step."""

    def body(head: Head, step: Step, t: jax.Array | int, boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits, deltas = head.boxes(features, boxes, proposals.valid, num_classes)
        by_class = jax.vmap(clip)(head.coder.decode(boxes[:, :, None], deltas), true_hw)
        return refine(head, boxes, logits, deltas, true_hw), logits, by_class

    logits, by_class = repeat.fold(body, proposals.boxes)
    return jnp.stack(logits).mean(0), by_class


def test_masks(repeat: Repeat, features: Features, found: Finished, num_classes: int) -> FoundMasks:
    """Masks of detections.

    Linked heads look at the crops of the last step's head one after the other, each at what the one before saw;
    others look at their own crops.
    """
    last = repeat.heads[repeat.schedule[-1].head]
    shared = last.mask_crops(features, found.boxes, found.valid)
    is_shared = last.linked or len(repeat.heads) == 1

    def body(head: Head, step: Step, t: jax.Array | int, before: jax.Array) -> tuple[jax.Array, jax.Array, None]:
        crops = shared if is_shared else head.mask_crops(features, found.boxes, found.valid)
        seen = head.mask_features(crops, before)
        return seen, head.mask_logits(seen, found.labels, num_classes), None

    outs, _ = repeat.fold(body, last.no_mask_features(shared))
    return FoundMasks(jax.nn.sigmoid(jnp.stack(outs)).mean(0), shared, outs[-1])


def refine(head: Head, boxes: jax.Array, logits: jax.Array, deltas: jax.Array, true_hw: jax.Array) -> jax.Array:
    """Boxes ``[B, N, 4]`` moved by the deltas of their likeliest class, cut to the image; no gradient."""
    deltas = of_class(deltas, logits[..., :-1].argmax(-1))
    return jax.lax.stop_gradient(jax.vmap(clip)(head.coder.decode(boxes, deltas), true_hw))


def _metrics(logits: jax.Array, samples: Samples, targets: Targets) -> Losses:
    """Accuracy, positives an image, and how many of these, ground truth left out, overlap it by 50 to 60 %, ..."""
    correct = (logits.argmax(-1) == samples.labels) & samples.valid
    images = jnp.maximum(samples.valid.any(1).sum(), 1)
    all_overlaps = jax.vmap(iou)(samples.boxes, targets.boxes)
    overlap = jnp.take_along_axis(all_overlaps, samples.gt_index[..., None], axis=2)[..., 0]
    tenth = jnp.where(samples.positive & ~samples.truth, jnp.minimum(jnp.floor(overlap * 10), 9), 0)
    return {
        "accuracy": correct.sum() / jnp.maximum(samples.valid.sum(), 1),
        "positives": samples.positive.sum() / images,
        **{f"positives_iou{10 * t}": (tenth == t).sum() / images for t in range(5, 10)},
    }


def _named(steps: list[Losses]) -> Losses:
    """Terms of all steps in one dictionary, told apart by a prefix where there are several steps."""
    if len(steps) == 1:
        return steps[0]
    return {f"s{t}.{name}": value for t, terms in enumerate(steps) for name, value in terms.items()}
