"""The loop over heads: one step in Mask R-CNN, several with rising IoU in its descendants.

What varies by *head* (extractors, layers, delta scale) lives in ``Head``; what varies by *step* (matching, sampling,
loss weight) lives in ``Step``, together with the index of the head that the step uses.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdet.models.branches import Head, Losses, box_losses, mask_losses, of_class
from jaxdet.models.finish import Finished
from jaxdet.ops.boxes import clip
from jaxdet.ops.matching import Match, Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Features, Proposals, Samples, Targets


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass: which head, and how its training boxes are matched and sampled."""

    head: int = 0
    matcher: Matcher = Matcher(positive_iou=0.5, negative_iou=0.5, min_positive_iou=0.5)
    sampler: Sampler = Sampler(number=512, positive_fraction=0.25)
    weight: float = 1.0


def check_schedule(schedule: Sequence[Step], heads: Sequence[Head]) -> None:
    """ValueError where a step names a head that is not there, a head is never used, or stands there twice."""
    used = {step.head for step in schedule}
    if used != set(range(len(heads))):
        raise ValueError(
            f"the schedule uses heads {sorted(used)}, the model has heads {list(range(len(heads)))}: "
            "each step needs a head and each head a step"
        )
    if len({id(head) for head in heads}) != len(heads):
        raise ValueError("the same head instance is listed twice; to share weights name one head in several steps")


def train_steps(
    heads: Sequence[Head],
    schedule: Sequence[Step],
    features: Features,
    proposals: Proposals,
    targets: Targets,
    true_hw: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> tuple[Losses, Losses]:
    """Losses and metrics of all steps; each step trains on the boxes that the step before moved."""
    terms: Losses = {}
    metrics: Losses = {}
    for t, step in enumerate(schedule):
        head = heads[step.head]
        samples = sample(step, proposals, targets, num_classes, jax.random.fold_in(key, t))
        logits, deltas = head.boxes(features, samples.boxes, samples.valid, num_classes)
        found = box_losses(head, logits, deltas, samples, targets)
        if head.mask_head is not None:
            front = jax.tree.map(lambda a, n=step.sampler.max_positive: a[:, :n], samples)
            found |= mask_losses(head, features, front, targets, num_classes)
        prefix = f"s{t}." if len(schedule) > 1 else ""
        terms |= {prefix + name: value * step.weight for name, value in found.items()}
        metrics |= {prefix + name: value for name, value in _metrics(logits, samples).items()}
        moved = refine(head, samples.boxes, logits, deltas, true_hw)
        proposals = Proposals(moved, jnp.zeros(moved.shape[:2]), samples.valid & ~samples.truth)
    return terms, metrics


def test_steps(
    heads: Sequence[Head],
    schedule: Sequence[Step],
    features: Features,
    proposals: Proposals,
    true_hw: jax.Array,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Logits ``[B, N, K + 1]``, averaged over the steps, and boxes ``[B, N, K or 1, 4]`` of the last step."""
    boxes, total = proposals.boxes, jnp.float32(0.0)
    for t, step in enumerate(schedule):
        head = heads[step.head]
        logits, deltas = head.boxes(features, boxes, proposals.valid, num_classes)
        total += logits
        if t < len(schedule) - 1:
            boxes = refine(head, boxes, logits, deltas, true_hw)
    final = jax.vmap(clip)(head.coder.decode(boxes[:, :, None], deltas), true_hw)
    return total / len(schedule), final


def sample(step: Step, proposals: Proposals, targets: Targets, num_classes: int, key: jax.Array) -> Samples:
    """Boxes to train a step on.

    Every ground truth is a candidate too, standing for itself, so that there are good boxes from the start.
    """

    def one(proposals: Proposals, targets: Targets, key: jax.Array) -> Samples:
        match = step.matcher(proposals.boxes, proposals.valid, targets.boxes, targets.valid, targets.crowd)
        match = _prepend_ground_truth(match, targets.valid & ~targets.crowd)
        choice = step.sampler(match, key)
        gt_index = jnp.where(choice.positive, match.gt_index[choice.index], 0)
        labels = jnp.where(choice.positive, targets.labels[gt_index], num_classes).astype(jnp.int32)
        boxes = jnp.concatenate([targets.boxes, proposals.boxes])[choice.index]
        truth = choice.valid & (choice.index < len(targets.boxes))
        return Samples(boxes, gt_index, labels, choice.positive, truth, choice.valid)

    return jax.vmap(one)(proposals, targets, jax.random.split(key, proposals.valid.shape[0]))


def refine(head: Head, boxes: jax.Array, logits: jax.Array, deltas: jax.Array, true_hw: jax.Array) -> jax.Array:
    """Boxes ``[B, N, 4]`` moved by the deltas of their likeliest class, cut to the image; no gradient."""
    deltas = of_class(deltas, logits[..., :-1].argmax(-1))
    return jax.lax.stop_gradient(jax.vmap(clip)(head.coder.decode(boxes, deltas), true_hw))


def _prepend_ground_truth(match: Match, real: jax.Array) -> Match:
    return Match(
        gt_index=jnp.concatenate([jnp.arange(len(real), dtype=jnp.int32), match.gt_index]),
        positive=jnp.concatenate([real, match.positive]),
        negative=jnp.concatenate([jnp.zeros_like(real), match.negative]),
        max_iou=jnp.concatenate([real.astype(jnp.float32), match.max_iou]),
    )


def _metrics(logits: jax.Array, samples: Samples) -> Losses:
    correct = (logits.argmax(-1) == samples.labels) & samples.valid
    return {
        "accuracy": correct.sum() / jnp.maximum(samples.valid.sum(), 1),
        "positives": samples.positive.sum() / samples.positive.shape[0],
    }


def test_masks(
    heads: Sequence[Head],
    schedule: Sequence[Step],
    features: Features,
    found: Finished,
    num_classes: int,
) -> jax.Array | None:
    """Mask probabilities ``[B, D, m, m]`` of detections, averaged over the steps; None without mask branches."""
    if heads[0].mask_head is None:
        return None
    passes = [
        jax.nn.sigmoid(heads[step.head].masks(features, found.boxes, found.labels, found.valid, num_classes))
        for step in schedule
    ]
    return jnp.stack(passes).mean(0)
