"""The stages, one after the other: one in Mask R-CNN, several with rising IoU in its descendants.

What varies by *head* (extractor, layers, delta scale) lives in its branch; what varies by *stage* (matching, sampling,
loss weight, mask passes) lives in `Stage`, together with the index of the head that the stage uses.  Cascade R-CNN (Cai
and Vasconcelos 2018) has as many heads as stages, R3-CNN (Rossi et al. 2021, section III) one head for all.
"""

from collections.abc import Sequence

import jax

from jaxdet.models.features import Losses
from jaxdet.models.roi.boxes import PredictedStage, TrainedStage, pad, predict_stage, train_stage
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.masks import (
    MaskPass,
    PredictedMasks,
    TrainedMasks,
    candidates,
    mask_stage_losses,
    mean_probabilities,
)
from jaxdet.models.roi.schedule import Stage, heads_of_passes
from jaxdet.structures import Detections, Features, Proposals, Samples, Targets


def train_boxes(
    heads: Sequence[BoxBranch],
    stages: Sequence[Stage],
    features: Features,
    proposals: Proposals,
    targets: Targets,
    true_hw: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> list[TrainedStage]:
    """All stages of boxes, each trained on what the one before has moved."""
    # One shape for the proposals of all stages, as in `scan`, so that both draw the same samples.
    proposals = pad(proposals, slots_of(stages))
    trained = []
    for t, stage in enumerate(stages):
        # By number, so that a stage draws the same whatever stages follow it.
        key_of_stage = jax.random.fold_in(key, t)
        trained.append(
            train_stage(heads[stage.head], stage, features, proposals, targets, true_hw, num_classes, key_of_stage)
        )
        proposals = trained[-1].proposals
    return trained


def predict_boxes(
    heads: Sequence[BoxBranch],
    stages: Sequence[Stage],
    features: Features,
    proposals: Proposals,
    true_hw: jax.Array,
    num_classes: int,
) -> list[PredictedStage]:
    """All stages of boxes at test, each beginning where the one before has moved the boxes."""
    boxes, predicted = proposals.boxes, []
    for stage in stages:
        predicted.append(predict_stage(heads[stage.head], features, boxes, proposals.valid, true_hw, num_classes))
        boxes = predicted[-1].boxes
    return predicted


def train_masks(
    branches: Sequence[MaskBranch],
    stages: Sequence[Stage],
    features: Features,
    samples: Sequence[Samples],
    targets: Targets,
    num_classes: int,
) -> list[TrainedMasks]:
    """The mask branch of each stage on that stage's ``samples``, after the passes of earlier mask heads."""
    trained = []
    for t, stage in enumerate(stages):
        own, branch = candidates(samples[t], stage), branches[stage.head]
        crops = branch.crops(features, own.boxes, own.positive)
        # All passes read the crops of this stage's own branch; features chain from pass to pass, gradients included.
        passed = branch.empty_features(crops)
        for head in heads_of_passes(stages, t):
            passed = branches[head].features(crops, passed)
        trained.append(mask_stage_losses(branch, stage.weight, own, crops, passed, targets, num_classes))
    return trained


def predict_masks(
    branches: Sequence[MaskBranch],
    stages: Sequence[Stage],
    features: Features,
    found: Detections,
    num_classes: int,
) -> PredictedMasks:
    """Masks of detections, from `passes_at_test`."""
    crops, passes = passes_at_test(branches, stages, features, found.boxes, found.valid)
    logits = [
        branches[stage.head].logits(passed, found.labels, num_classes)
        for stage, passed in zip(stages, passes, strict=True)
    ]
    return PredictedMasks(mean_probabilities(logits), MaskPass(crops, logits[-1]))


def passes_at_test(
    branches: Sequence[MaskBranch], stages: Sequence[Stage], features: Features, boxes: jax.Array, valid: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """Crops ``[B * N, s, s, C]`` of the last stage's branch, and the mask features of a pass of each stage's branch.

    Linked branches read these crops one after the other, each with the features of the one before; others read their
    own crops of ``boxes [B, N, 4]``.
    """
    last = branches[stages[-1].head]
    crops = last.crops(features, boxes, valid)
    before, passes = last.empty_features(crops), []
    for stage in stages:
        branch = branches[stage.head]
        own = crops if branch is last or last.linked else branch.crops(features, boxes, valid)
        before = branch.features(own, before)
        passes.append(before)
    return crops, passes


def slots_of(stages: Sequence[Stage]) -> int:
    """Slots in which the samples of every stage have room, so that all stages hand on the same shape."""
    return max(stage.sampler.number for stage in stages)


def by_stage(terms: Sequence[Losses]) -> Losses:
    """Terms of all stages in one dictionary, told apart by a prefix where there are several stages."""
    if len(terms) == 1:
        return dict(terms[0])
    return {f"s{t}.{name}": value for t, its in enumerate(terms) for name, value in its.items()}
