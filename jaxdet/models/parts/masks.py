"""Masks of the detections (He et al. 2017), and how good each of them is (Huang et al. 2019).

Letters in shapes: B images, N boxes, s rows and columns of a crop, m those of a mask, C channels, K classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.features import Losses
from jaxdet.models.parts.part import Found, Instances, Seen, Setting
from jaxdet.models.roi.heads import MaskBranch
from jaxdet.models.roi.loop import by_stage, passes_at_test
from jaxdet.models.roi.masks import MaskPass, TrainedMasks, check_masks
from jaxdet.models.roi.scan import choose
from jaxdet.ops import losses
from jaxdet.ops.masks import mask_iou_targets
from jaxdet.structures import Features, Masks, Targets

_NO_MASKS = "MaskScoring rates masks, but nothing before it draws any: put MaskPrediction before it among the parts"


class MaskPrediction(nn.Module):
    """Predicts the mask of each detection inside its box; a branch for each head of the box stages.

    At test the branch of each stage predicts masks of the detections, and their probabilities are averaged.
    ``snapped`` masks are painted into frames of whole pixels, as torchvision does.
    """

    place: ClassVar[str] = "masks"
    on_given: ClassVar[str] = "asked"

    heads: tuple[MaskBranch, ...]
    snapped: bool = False

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        check_branches(self.heads, setting)
        make_branches(self, features, setting)
        boxes = found.detections
        loop = choose(self.heads, setting.stages, setting.unroll)
        # At test only the heads of the stages matter; masks are predicted in the final boxes, not in those of a stage.
        predicted = loop.predict_masks(self.heads, setting.stages, features, boxes, setting.num_classes)
        masks = Masks(predicted.probabilities, frames=boxes.boxes, snapped=self.snapped)
        detections = dataclasses.replace(boxes, masks=masks)
        return dataclasses.replace(found, detections=detections, view=predicted.view)

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_mask`` of each stage, on the positives among its samples."""
        check_branches(self.heads, setting, training=True)
        check_masks(targets)  # shapes tell, so this is an error while tracing
        make_branches(self, features, setting)
        loop = choose(self.heads, setting.stages, setting.unroll)
        trained = loop.train_masks(self.heads, setting.stages, features, seen.samples, targets, setting.num_classes)
        seen = dataclasses.replace(seen, masks=trained[-1], instances=instances_of(trained[-1]))
        return by_stage([stage.losses for stage in trained]), seen

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """``masks/crops [B * N, s, s, C]`` of the last head; of each stage ``masks/stage{t}/features`` and ``logits``.

        Passes are those of the test (`passes_at_test`); logits ``[B * N, m, m, K]`` have all classes.
        """
        boxes = found.detections.boxes
        valid = jnp.ones(boxes.shape[:2], bool)
        crops, passes = passes_at_test(self.heads, setting.stages, features, boxes, valid)
        named = {"masks/crops": crops}
        for t, (stage, passed) in enumerate(zip(setting.stages, passes, strict=True)):
            logits = self.heads[stage.head].head.classify(passed, setting.num_classes)
            named |= {f"masks/stage{t}/features": passed, f"masks/stage{t}/logits": logits}
        return named


def instances_of(trained: TrainedMasks) -> Instances:
    """What a mask branch was trained on, with the masks that it predicts."""
    samples = trained.samples
    masks = Masks(jax.nn.sigmoid(trained.view.logits), frames=samples.boxes)
    # A ground truth among the samples is no prediction.
    return Instances(samples.boxes, masks, samples.gt_index, samples.positive & ~samples.is_truth)


def make_branches(part: Any, features: Features, setting: Setting) -> None:
    """Make the parameters of all mask branches of a part.

    Stages may leave out one, or a part, and rolled stages need them all.
    """
    if part.is_initializing():
        for branch in part.heads:
            branch.make_parameters(features, setting.num_classes)


def check_branches(heads: Sequence[MaskBranch], setting: Setting, *, training: bool = False) -> None:
    """ValueError where mask branches do not fit the stages of the model."""
    if not setting.stages:
        raise ValueError(
            "MaskPrediction and Refine have a branch for the stages of a two-stage model; a one-stage model has none"
        )
    used = {stage.head for stage in setting.stages}
    # At test a branch may be left out; in training it would never learn.
    if not used <= set(range(len(heads))) or (training and len(heads) > len(used)):
        raise ValueError(
            f"the stages use heads {sorted(used)}, the mask branch has {len(heads)}: give it one for each box head"
        )
    for t, stage in enumerate(setting.stages):
        if stage.mask_passes and not heads[stage.head].linked:
            raise ValueError(
                f"stage {t} wants {stage.mask_passes} mask passes before its own, but mask head {stage.head} is "
                "not linked: set linked=True in it, or mask_passes to 0 (make_stages: mask_passes='none')"
            )


class MaskScoring(nn.Module):
    """Predicts the IoU of each mask with its object; the score of a mask is that times the score of its box.

    Trained on the last stage's masks.  Gradients flow on into mask head and features, as in the reference; the weight
    of the stage has no part in it.
    """

    place: ClassVar[str] = "mask_scores"
    on_given: ClassVar[str] = "asked"

    head: nn.Module

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        if found.view is None:
            raise ValueError(_NO_MASKS)
        boxes = found.detections
        # Of the last pass, as the reference has it, not of the averaged masks.
        rated = self.rate(found.view, boxes.labels, setting.num_classes)
        return dataclasses.replace(found, detections=dataclasses.replace(boxes, mask_scores=boxes.scores * rated))

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_mask_iou``: how far the predicted IoU of each positive's mask is from the true one."""
        if seen.masks is None:
            raise ValueError(_NO_MASKS)
        # Positives of the last stage only, with the logits of their true class (Huang et al. 2019, section 3.3).
        masks, samples = seen.masks, seen.masks.samples
        truth = mask_iou_targets(
            targets.masks, samples.boxes, samples.gt_index, samples.positive, masks.view.logits, masks.bitmaps
        )
        return {
            "loss_mask_iou": losses.mask_iou(self.rate(masks.view, samples.labels, setting.num_classes), truth)
        }, seen

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """``mask_scores/rated [B * N, K]``, of the last stage's masks of the given labels."""
        logits = before[f"masks/stage{len(setting.stages) - 1}/logits"]
        own = jnp.take_along_axis(logits, found.detections.labels.reshape(-1, 1, 1, 1), axis=3)[..., 0]
        return {"mask_scores/rated": self.head(before["masks/crops"], own, setting.num_classes)}

    def rate(self, view: MaskPass, labels: jax.Array, num_classes: int) -> jax.Array:
        """Predicted IoU ``[B, N]``, float32, not bounded, of the masks in view, of class ``labels [B, N]``."""
        logits = view.logits
        rated = self.head(view.crops, logits.reshape(-1, *logits.shape[2:]), num_classes)
        # [B * N, K] -> the column of each box's class.
        own = jnp.take_along_axis(rated, labels.reshape(-1, 1), axis=1)
        return own.reshape(labels.shape).astype(jnp.float32)
