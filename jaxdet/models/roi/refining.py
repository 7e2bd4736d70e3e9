"""What MR R-CNN's refining step trains on: the samples of the last stage where that has moved them, matched anew.

Ding et al. 2019, *Shape-aware Feature Extraction for Instance Segmentation* (arXiv 1911.11263), section 3.3.  The paper
leaves much of the training open; `RefineTraining` has a setting for what is not certain, and begins with what its
authors' next paper does (Ding et al. 2021, *Deeply Shape-guided Cascade*).

Letters in shapes: B images, S samples, K classes.  Boxes are in pixels of the resized image.
"""

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxdet.models.features import Losses
from jaxdet.models.roi.boxes import Candidates, as_proposals, draw, of_class
from jaxdet.models.roi.schedule import Stage
from jaxdet.ops.boxes import area
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler, choose
from jaxdet.ranges import DETECTIONS, SHARE, WEIGHT, check_ranges
from jaxdet.structures import Samples, Targets

Matching: TypeAlias = Literal["anew", "carried", "sampled"]


@dataclasses.dataclass(frozen=True)
class RefineTraining:
    """How the refining step is trained; what `Stage` is to a stage of boxes.

    ``train_boxes``: the step looks at the samples of the last stage as this has moved them (``"predicted"``), or where
    they were, with their labels (``"proposal"``).  ``matching`` of moved samples: ``"anew"`` by their IoU with the
    objects, positive from ``positive_iou`` on, every sample stays; ``"carried"``, the labels from before; or
    ``"sampled"``, matched so too, and then ``sampler`` chooses among them and the ground truth once more, as HTC does.

    ``mask_loss_on``: the mask branch of the last stage learns from the masks that guide the step (``"predicted"``), or
    from its own samples, by a pass of its own (``"proposal"``); then the guide has no loss but that of the step.
    ``guide_gradient``: the loss of the step reaches the mask branch through the guide.  ``max_masks``: so many
    positives of an image train the refined masks, the first ones; None: all.  ``weight`` is that of the step's losses.
    """

    train_boxes: Literal["predicted", "proposal"] = "predicted"
    matching: Matching = "anew"
    positive_iou: float = 0.5
    sampler: Sampler = Stage.sampler
    mask_loss_on: Literal["predicted", "proposal"] = "predicted"
    guide_gradient: bool = True
    max_masks: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, positive_iou=SHARE, max_masks=DETECTIONS, weight=WEIGHT)
        if self.train_boxes == "proposal" and self.matching == "sampled":
            raise ValueError(
                "RefineTraining.matching: with train_boxes='proposal' the samples stay as they are, got 'sampled': "
                "set train_boxes='predicted' to sample anew, or leave matching at 'anew'"
            )

    def samples(
        self, before: Samples, candidates: Candidates, targets: Targets, num_classes: int, key: jax.Array
    ) -> tuple[Samples, jax.Array]:
        """The samples of the step, and the class ``[B, S]`` int32 whose mask guides each of them.

        That is their own; of background it is the pseudo label, the likeliest class of an object (section 3.3).

        Args:
            before: ``[B, S]``, what the last stage trained on.
            candidates: ``[B, S]``, what that stage makes of them.
            targets: ground truth.
            num_classes: K.
            key: for what is drawn, with ``matching="sampled"``.
        """
        likeliest = candidates.likeliest
        if self.train_boxes == "proposal":
            return before, _own_or(likeliest, before)
        moved = _moved(before, candidates)
        if self.matching == "sampled":
            matcher, slots = self._matcher(), targets.valid.shape[1]
            drawn, index = draw(matcher, self.sampler, as_proposals(moved, moved.boxes, 0), targets, num_classes, key)
            # An index below ``slots`` is that of a ground truth, which has a class of its own.
            drawn_from = jnp.maximum(index - slots, 0)
            return drawn, _own_or(jnp.take_along_axis(likeliest, drawn_from, axis=1), drawn)
        samples = self._match(moved, targets, num_classes) if self.matching == "anew" else _with_extent(moved)
        return samples, _own_or(likeliest, samples)

    def first_masks(self, samples: Samples) -> tuple[Samples, jax.Array]:
        """Samples ``[B, P]`` that hold the positives which train refined masks, and which of ``[B, S]`` they are."""
        if self.max_masks is None:
            index = jnp.arange(samples.valid.shape[1], dtype=jnp.int32)
            return samples, jnp.broadcast_to(index, samples.valid.shape)
        limit = min(self.max_masks, samples.valid.shape[1])
        # Positives are not in front any more: one that has moved may have become background, and the other way round.
        index, chosen = jax.vmap(lambda positive: choose(positive, limit, None))(samples.positive)
        few = jax.tree.map(lambda leaf: jax.vmap(lambda rows, at: rows[at])(leaf, index), samples)
        return dataclasses.replace(few, positive=few.positive & chosen, valid=few.valid & chosen), index

    def weigh(self, terms: Losses) -> Losses:
        """Loss terms of the step times its weight, by the names that they have among those of the model."""
        return {f"refine.{name}": value * self.weight for name, value in terms.items()}

    def _matcher(self) -> Matcher:
        return Matcher(self.positive_iou, self.positive_iou, low_quality=False)

    def _match(self, samples: Samples, targets: Targets, num_classes: int) -> Samples:
        """The same samples with the objects that they overlap now."""
        match = jax.vmap(self._matcher())(samples.boxes, samples.valid, targets.boxes, targets.valid, targets.crowd)
        # A ground truth stands for itself, also beside another of the same box.
        positive = match.positive | (samples.is_truth & samples.valid)
        gt_index = jnp.where(samples.is_truth, samples.gt_index, match.gt_index)
        labels = jnp.where(positive, jnp.take_along_axis(targets.labels, gt_index, axis=1), num_classes)
        return dataclasses.replace(samples, gt_index=gt_index, labels=labels.astype(jnp.int32), positive=positive)


def _own_or(likeliest: jax.Array, samples: Samples) -> jax.Array:
    """The samples' own class, or the likeliest one of those that are background."""
    return jnp.where(samples.positive, samples.labels, likeliest)


def _moved(samples: Samples, candidates: Candidates) -> Samples:
    """Samples where the deltas of their own class move them, or those of the likeliest; ground truth stays."""
    moved = of_class(candidates.boxes, _own_or(candidates.likeliest, samples))
    boxes = jnp.where(samples.is_truth[..., None], samples.boxes, moved)
    return dataclasses.replace(samples, boxes=jax.lax.stop_gradient(boxes))


def _with_extent(samples: Samples) -> Samples:
    """Samples with those left out that were moved to where nothing is left of them: no deltas lead back from there."""
    valid = samples.valid & (area(samples.boxes) > 0)
    return dataclasses.replace(samples, valid=valid, positive=samples.positive & valid)
