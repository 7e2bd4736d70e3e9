"""The loop over heads: one step in Mask R-CNN, several with rising IoU in its descendants.

What varies by *head* (extractors, layers, delta scale) lives in ``Head``; what varies by *step* (matching, sampling,
loss weight, mask passes) lives in ``Step``, together with the index of the head that the step uses.  Cascade R-CNN
(Cai and Vasconcelos 2018) has as many heads as steps, R3-CNN (Rossi et al. 2021, section III) one head for all.
Boxes go from step to step; masks never come back to them, and so have a loop of their own (`mask_loop`).
"""

import jax
import jax.numpy as jnp

from jaxdet.models.branches import Head, Losses, box_losses, of_class
from jaxdet.models.repeat import EachStep, Repeat, by_name
from jaxdet.models.samples import as_proposals, pad, positives, sample
from jaxdet.models.schedule import Step
from jaxdet.ops.boxes import clip, iou
from jaxdet.structures import Features, Proposals, Samples, Targets


def train_boxes(
    repeat: Repeat,
    features: Features,
    proposals: Proposals,
    targets: Targets,
    true_hw: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> tuple[Losses, Losses, EachStep]:
    """Losses and metrics of all steps, each of which trains on what the one before moved.

    And, of each step, what its mask branch is to train on: `Samples` ``[B, P]`` that may be positive.
    """
    slots = max(proposals.valid.shape[1], *(step.sampler.number for step in repeat.schedule))

    def body(
        head: Head, step: Step, t: jax.Array | int, proposals: Proposals
    ) -> tuple[Proposals, tuple[Losses, Losses, Samples]]:
        box_key, mask_key = jax.random.split(jax.random.fold_in(key, t))
        samples = sample(step, proposals, targets, num_classes, box_key)
        logits, deltas = head.boxes(features, samples.boxes, samples.valid, num_classes)
        terms = box_losses(head, logits, deltas, samples, targets)
        metrics = _metrics(logits, samples, targets)
        moved = as_proposals(samples, refine(head, samples.boxes, logits, deltas, true_hw), slots)
        if step.interleaved and head.mask_head is not None:
            samples = sample(step, moved, targets, num_classes, mask_key)
        return moved, (step.weigh(terms), metrics, positives(samples, step))

    terms, metrics, samples = repeat.fold(body, pad(proposals, slots))
    return by_name(repeat, terms), by_name(repeat, metrics), samples


def test_boxes(
    repeat: Repeat, features: Features, proposals: Proposals, true_hw: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Logits ``[B, N, K + 1]``, averaged over the steps, and boxes ``[B, N, K or 1, 4]`` of the last step."""

    def body(
        head: Head, step: Step, t: jax.Array | int, boxes: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits, deltas = head.boxes(features, boxes, proposals.valid, num_classes)
        by_class = jax.vmap(clip)(head.coder.decode(boxes[:, :, None], deltas), true_hw)
        return refine(head, boxes, logits, deltas, true_hw), (logits, by_class)

    logits, by_class = repeat.fold(body, proposals.boxes)
    return jnp.stack(repeat.listed(logits)).mean(0), repeat.listed(by_class)[-1]


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
