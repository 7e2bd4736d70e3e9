"""The images of a batch and the boxes in them that a step trains on."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdet.models.schedule import Step
from jaxdet.ops.matching import Match
from jaxdet.structures import Batch, Proposals, Samples, Targets


def without_fillers(batch: Batch) -> Batch:
    """Slots that only fill the batch as images of no size: no anchors, no ground truth, so no part in any loss.

    Their semantic maps have no known pixel, as `jaxdet.data` makes them.
    """
    hw = jnp.where(batch.valid[:, None], batch.true_hw, 0.0)
    targets = batch.targets
    if targets is not None:
        targets = dataclasses.replace(targets, valid=targets.valid & batch.valid[:, None])
    return dataclasses.replace(batch, true_hw=hw, targets=targets)


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


def positives(samples: Samples, step: Step) -> Samples:
    """The slots that may hold a positive: those that a mask branch has to look at."""
    return jax.tree.map(lambda a: a[:, : step.sampler.max_positive], samples)


def as_proposals(samples: Samples, moved: jax.Array, slots: int) -> Proposals:
    """The samples at the places ``moved [B, S, 4]`` as proposals of the next step, in ``slots`` slots.

    Ground truth that stood for itself is left out: each step adds it anew.
    """
    spare = slots - moved.shape[1]
    valid = jnp.pad(samples.valid & ~samples.truth, ((0, 0), (0, spare)))
    return Proposals(jnp.pad(moved, ((0, 0), (0, spare), (0, 0))), jnp.zeros(valid.shape), valid)


def pad(proposals: Proposals, slots: int) -> Proposals:
    """Proposals in at least that many slots."""
    spare = max(slots - proposals.valid.shape[1], 0)
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, spare), *[(0, 0)] * (a.ndim - 2))), proposals)


def _prepend_ground_truth(match: Match, real: jax.Array) -> Match:
    return Match(
        gt_index=jnp.concatenate([jnp.arange(len(real), dtype=jnp.int32), match.gt_index]),
        positive=jnp.concatenate([real, match.positive]),
        negative=jnp.concatenate([jnp.zeros_like(real), match.negative]),
        max_iou=jnp.concatenate([real.astype(jnp.float32), match.max_iou]),
    )
