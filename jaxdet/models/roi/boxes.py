"""One stage of boxes: proposals, samples, crops, box head, losses or decoded boxes, proposals of the next stage.

Letters in shapes: B images, N proposals, S samples, G ground-truth slots, K classes.  Boxes are in pixels of the
resized image.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.features import Losses
from jaxdet.models.roi.heads import BoxBranch
from jaxdet.models.roi.schedule import Stage
from jaxdet.ops.boxes import clip, iou, safe
from jaxdet.ops.losses import masked_sum
from jaxdet.ops.matching import Match, Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Features, Proposals, Samples, Targets


@struct.dataclass
class Candidates:
    """What box stages say of boxes that nothing was suppressed among."""

    logits: jax.Array  #: ``[B, N, K + 1]`` float32
    boxes: jax.Array  #: ``[B, N, K or 1, 4]``, moved by the deltas of each class; no gradient
    valid: jax.Array  #: ``[B, N]`` bool

    @property
    def likeliest(self) -> jax.Array:
        """The class ``[B, N]`` int32 that each of them is most likely of, if it is not background."""
        return self.logits[..., :-1].argmax(-1).astype(jnp.int32)


@struct.dataclass
class TrainedStage:
    """What a stage of training hands on."""

    proposals: Proposals  #: ``[B, N]``, the samples as this stage has moved them: where the next one begins
    boxes: Samples  #: ``[B, S]``, what the box branch has trained on
    candidates: Candidates  #: ``[B, S]``, what it has made of them
    samples: Samples  #: ``[B, S]``, what the mask branch of this stage is to train on
    losses: Losses
    metrics: Losses


@struct.dataclass
class PredictedStage:
    """What a stage at test hands on."""

    logits: jax.Array  #: ``[B, N, K + 1]`` float32
    boxes: jax.Array  #: ``[B, N, 4]``, moved by the deltas of the likeliest class: where the next stage begins
    by_class: jax.Array  #: ``[B, N, K or 1, 4]``, moved by the deltas of each class


def train_stage(
    branch: BoxBranch,
    stage: Stage,
    features: Features,
    proposals: Proposals,
    targets: Targets,
    true_hw: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> TrainedStage:
    """Match and sample the proposals, classify the samples, compute their losses, and move them.

    No gradient flows through the moved boxes.
    """
    # Split even if only one is used: the samples of the boxes do not depend on ``interleaved``.
    box_key, mask_key = jax.random.split(key)
    samples = sample(stage, proposals, targets, num_classes, box_key)
    logits, deltas = branch(features, samples.boxes, samples.valid, num_classes)
    losses = box_losses(branch, logits, deltas, samples, targets)
    metrics = _metrics(logits, samples, targets)
    moved = as_proposals(samples, move(branch, samples.boxes, logits, deltas, true_hw), proposals.valid.shape[1])
    candidates = Candidates(logits, move_by_class(branch, samples.boxes, deltas, true_hw), samples.valid)
    # Moved boxes overlap better, so that they are matched anew, by the same thresholds, for the masks.
    for_masks = sample(stage, moved, targets, num_classes, mask_key) if stage.interleaved else samples
    return TrainedStage(moved, samples, candidates, for_masks, stage.weigh(losses), metrics)


def predict_stage(
    branch: BoxBranch, features: Features, boxes: jax.Array, valid: jax.Array, true_hw: jax.Array, num_classes: int
) -> PredictedStage:
    """Classify ``boxes [B, N, 4]`` and move them."""
    logits, deltas = branch(features, boxes, valid, num_classes)
    by_class = move_by_class(branch, boxes, deltas, true_hw)
    return PredictedStage(logits, move(branch, boxes, logits, deltas, true_hw), by_class)


def sample(stage: Stage, proposals: Proposals, targets: Targets, num_classes: int, key: jax.Array) -> Samples:
    """Boxes to train a stage on, as `draw` chooses them."""
    return draw(stage.matcher, stage.sampler, proposals, targets, num_classes, key)[0]


def draw(
    matcher: Matcher, sampler: Sampler, proposals: Proposals, targets: Targets, num_classes: int, key: jax.Array
) -> tuple[Samples, jax.Array]:
    """Samples, and which box each of them was: ``[B, S]`` int32 among ground-truth slots and proposals behind these.

    Every ground truth is a candidate too, standing for itself, so that there are good boxes from the start.
    """

    def one_image(proposals: Proposals, targets: Targets, key: jax.Array) -> tuple[Samples, jax.Array]:
        match = matcher(proposals.boxes, proposals.valid, targets.boxes, targets.valid, targets.crowd)
        # In front: "first" samplers then take ground truth before proposals, as the reference does.
        match = _prepend_ground_truth(match, targets.valid & ~targets.crowd)
        choice = sampler(match, key)
        gt_index = jnp.where(choice.positive, match.gt_index[choice.index], 0)
        labels = jnp.where(choice.positive, targets.labels[gt_index], num_classes).astype(jnp.int32)
        boxes = jnp.concatenate([targets.boxes, proposals.boxes])[choice.index]
        is_truth = choice.valid & (choice.index < len(targets.boxes))
        return Samples(boxes, gt_index, labels, choice.positive, is_truth, choice.valid), choice.index

    return jax.vmap(one_image)(proposals, targets, jax.random.split(key, proposals.valid.shape[0]))


def box_losses(
    branch: BoxBranch, logits: jax.Array, deltas: jax.Array | None, samples: Samples, targets: Targets
) -> Losses:
    """Class and box loss over the samples, both divided by the number of all samples in the batch.

    Without deltas there is no box loss.
    """
    number = jnp.maximum(samples.valid.sum(), 1)
    terms = {"loss_cls": masked_sum(branch.class_loss(logits, samples.labels), samples.valid) / number}
    if deltas is None:
        return terms
    # The box loss too is divided by all samples, not by the positives (Fast R-CNN's equal weights, and the reference).
    boxes = jnp.take_along_axis(targets.boxes, samples.gt_index[..., None], axis=1)
    references, boxes = safe(samples.boxes, samples.positive), safe(boxes, samples.positive)
    distance = branch.box_loss(branch.coder, references, of_class(deltas, samples.labels), boxes)
    return terms | {"loss_bbox": masked_sum(distance, samples.positive) / number}


def of_class(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """Deltas ``[B, N, 4]`` of the class ``labels [B, N]``; class-agnostic ones have a single column."""
    # The background label K has no column: it reads the last one, and the mask of positives leaves it out.
    column = jnp.minimum(labels, deltas.shape[2] - 1)
    return jnp.take_along_axis(deltas, column[..., None, None], axis=2)[:, :, 0]


def move(
    branch: BoxBranch, boxes: jax.Array, logits: jax.Array, deltas: jax.Array | None, true_hw: jax.Array
) -> jax.Array:
    """Boxes ``[B, N, 4]`` moved by the deltas of their likeliest class, cut to the image; no gradient."""
    # Without the background, whose logit is the last: a box has to go somewhere even if it is likely none.
    if deltas is not None:
        deltas = of_class(deltas, logits[..., :-1].argmax(-1))[:, :, None]
    return move_by_class(branch, boxes, deltas, true_hw)[:, :, 0]


def move_by_class(branch: BoxBranch, boxes: jax.Array, deltas: jax.Array | None, true_hw: jax.Array) -> jax.Array:
    """Boxes ``[B, N, K or 1, 4]`` moved by the deltas of each class, cut to the image; no gradient.

    Without deltas they stay, one for all classes.
    """
    # Every class's boxes start from the boxes that the head was given, as its deltas were trained.
    moved = boxes[:, :, None] if deltas is None else branch.coder.decode(boxes[:, :, None], deltas)
    return jax.lax.stop_gradient(jax.vmap(clip)(moved, true_hw))


def pad(proposals: Proposals, slots: int) -> Proposals:
    """Proposals in at least that many slots."""
    # Zeros are False in ``valid``: the new slots do not count.
    spare = max(slots - proposals.valid.shape[1], 0)
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, spare), *[(0, 0)] * (a.ndim - 2))), proposals)


def as_proposals(samples: Samples, moved: jax.Array, slots: int) -> Proposals:
    """The samples at the places ``moved [B, S, 4]`` as proposals of the next stage, in ``slots`` slots.

    Ground truth that stood for itself is left out: each stage adds it anew.
    """
    valid = samples.valid & ~samples.is_truth
    return pad(Proposals(moved, jnp.zeros(valid.shape), valid), slots)


def _prepend_ground_truth(match: Match, real: jax.Array) -> Match:
    # Each matches itself with IoU 1; index 0 .. G - 1 is the place in ``targets``.
    return Match(
        gt_index=jnp.concatenate([jnp.arange(len(real), dtype=jnp.int32), match.gt_index]),
        positive=jnp.concatenate([real, match.positive]),
        negative=jnp.concatenate([jnp.zeros_like(real), match.negative]),
        max_iou=jnp.concatenate([real.astype(jnp.float32), match.max_iou]),
    )


def _metrics(logits: jax.Array, samples: Samples, targets: Targets) -> Losses:
    """Accuracy, positives an image, and how many positives, ground truth left out, have an IoU of 0.5 to 0.6, ..."""
    correct = (logits.argmax(-1) == samples.labels) & samples.valid
    images = jnp.maximum(samples.valid.any(1).sum(), 1)
    all_overlaps = jax.vmap(iou)(samples.boxes, targets.boxes)
    overlap = jnp.take_along_axis(all_overlaps, samples.gt_index[..., None], axis=2)[..., 0]
    # Tenth 0 collects what is not counted; an IoU of exactly 1 belongs to the last tenth.
    tenth = jnp.where(samples.positive & ~samples.is_truth, jnp.minimum(jnp.floor(overlap * 10), 9), 0)
    return {
        "accuracy": correct.sum() / jnp.maximum(samples.valid.sum(), 1),
        "positives": samples.positive.sum() / images,
        **{f"positives_iou{10 * t}": (tenth == t).sum() / images for t in range(5, 10)},
    }
