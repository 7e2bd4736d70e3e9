"""MR R-CNN's refining step: boxes, scores and masks once more, by what the masks of a first look show.

Ding et al. 2019, *Shape-aware Feature Extraction for Instance Segmentation* (arXiv 1911.11263), section 3.

Letters in shapes: B images, N boxes, D detections, S samples, P of them that may hold a positive, s rows and columns of
a crop, m those of a mask, C channels, K classes.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.features import Losses
from jaxdet.models.parts.masks import check_branches, instances_of, make_branches
from jaxdet.models.parts.part import Found, Seen, Setting
from jaxdet.models.roi.boxes import Candidates, box_losses, move_by_class, of_class
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.loop import by_stage, passes_at_test
from jaxdet.models.roi.masks import (
    MaskPass,
    TrainedMasks,
    check_masks,
    harmless,
    mask_loss,
    mask_stage_losses,
    mean_probabilities,
)
from jaxdet.models.roi.refining import RefineTraining
from jaxdet.models.roi.scan import choose
from jaxdet.ops.boxes import iou
from jaxdet.ops.losses import masked_sum
from jaxdet.ops.masks import mask_targets
from jaxdet.ops.selection import top_k
from jaxdet.ranges import DETECTIONS, Range, check_ranges
from jaxdet.structures import Detections, Features, Masks, Samples, Targets


@struct.dataclass
class Glance:
    """What the mask branches of the model see in boxes, before these are refined."""

    features: jax.Array  #: ``[B, N, s, s, C]``, of the last pass
    logits: jax.Array  #: ``[B, N, m, m]``, of the last pass
    probabilities: jax.Array  #: ``[B, N, m, m]``, averaged over the passes


class Refine(nn.Module):
    """Predicts masks, and by them boxes, scores and masks anew; stands in the place of `MaskPrediction`.

    The boxes that the stages predict are looked at by the mask branches ``heads``, as `MaskPrediction` would.  What
    these see guides ``refine_box``, whose crops are dark where the mask is (Shape-aware RoIAlign), and which moves the
    boxes and says their class again.  ``refine_mask`` looks at the boxes that have moved; if it is ``linked``, it adds
    the features of the first look.  All three have weights of their own, which may start as copies
    (``run.init_copy``).

    ``guided`` False: boxes are refined by plain crops ("RM" in the paper's Table 3).  ``residual``: crops are
    multiplied by one plus the mask, as in the authors' next paper, so that nothing is dark.  ``alpha``: scores are the
    softmax of the logits ``(base + alpha * refined) / (1 + alpha)`` (section 3.3).  ``boxes``: ``"base"`` leaves them
    where the stages put them, and only scores and masks are refined.

    ``input_from``: what is refined are all ``"proposals"``, and suppression follows once, on what they become; with a
    ``limit`` those that are most likely an object.  Or the ``"detections"`` that suppression leaves of the stages'
    predictions, which compete a second time, in all classes.

    What a test does not use is not trained: boxes with ``boxes="base"``, classes with ``alpha=0``.  How the rest is
    trained says ``training``.
    """

    place: ClassVar[str] = "masks"

    heads: tuple[MaskBranch, ...]
    refine_box: BoxBranch
    refine_mask: MaskBranch
    guided: bool = True
    residual: bool = False
    alpha: float = 1.0
    boxes: Literal["refined", "base"] = "refined"
    input_from: Literal["proposals", "detections"] = "proposals"
    limit: int | None = None
    training: RefineTraining = RefineTraining()

    def __post_init__(self) -> None:
        check_ranges(self, alpha=Range(0, 1e6), limit=DETECTIONS)
        if self.limit is not None and self.input_from == "detections":
            raise ValueError(
                f"Refine.limit: of detections all are refined, got {self.limit}: set limit=none, and "
                "model.suppression.max_detections for fewer; or input_from='proposals'"
            )
        if self.residual and not self.guided:
            raise ValueError("Refine.residual: without a guide there is nothing to add to 1: set guided=true as well")
        super().__post_init__()

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        self._check(setting)
        candidates, given = self._candidates(found), self._given(found)
        boxes, valid = given.boxes, given.valid
        self._make_parameters(features, setting)
        base = jax.tree.map(lambda rows: _pick(rows, given.index), (candidates.logits, candidates.boxes))
        seen = self._glance(features, boxes, valid, given.labels, setting)
        logits, deltas = self._refine_boxes(features, boxes, valid, seen, setting)
        moved = base[1] if self.boxes == "base" else move_by_class(self.refine_box, boxes, deltas, features.image_hw)
        scores = jax.nn.softmax(self.combined(base[0], logits))[..., :-1]
        assert setting.suppression is not None  # a model with stages has one
        detections = jax.vmap(setting.suppression)(moved, scores, valid)
        # The row among those that were refined; parts behind this one get that of the candidate.
        row, index = detections.index, jnp.take_along_axis(given.index, detections.index, axis=1)
        crops, passed = self._look_again(features, detections.boxes, detections.valid, _pick(seen.features, row))
        mask_logits = self.refine_mask.logits(passed, detections.labels, setting.num_classes)
        masks = Masks(jax.nn.sigmoid(mask_logits), frames=detections.boxes)
        detections = dataclasses.replace(detections, index=index, masks=masks)
        return dataclasses.replace(found, detections=detections, view=MaskPass(crops, mask_logits))

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_mask`` of each stage, and ``refine.loss_cls``, ``refine.loss_bbox`` and ``refine.loss_mask``.

        Metrics: ``refine.positives`` an image after the second matching; ``refine.iou_before`` and ``iou_after``, the
        mean IoU of these, ground truth left out, with their objects as they come and as they leave; and
        ``refine.guide_inside`` and ``guide_outside``, the mean of their guides inside and outside of the objects.
        """
        self._check(setting, training=True)
        check_masks(targets)  # shapes tell, so this is an error while tracing
        if seen.boxes is None or seen.candidates is None:
            raise ValueError(_NO_CANDIDATES)
        self._make_parameters(features, setting)
        classes = setting.num_classes
        samples, labels = self.training.samples(seen.boxes, seen.candidates, targets, classes, key)
        glance = self._glance(features, samples.boxes, samples.valid, labels, setting)
        terms, bitmaps = self._first_mask_losses(features, seen, samples, glance, targets, setting)
        logits, deltas = self._refine_boxes(features, samples.boxes, samples.valid, glance, setting)
        refined = box_losses(self.refine_box, logits, deltas, samples, targets)
        unused = {"loss_bbox"} if self.boxes == "base" else {"loss_cls"} if self.alpha == 0 else set()
        refined = {name: value for name, value in refined.items() if name not in unused}
        moved = self._moved_samples(features, samples, deltas)
        masks = self._refined_masks(features, moved, glance, targets, setting)
        terms |= self.training.weigh(refined | masks.losses)
        metrics = seen.metrics | _metrics(samples, moved, glance, bitmaps, targets)
        return terms, dataclasses.replace(seen, masks=masks, instances=instances_of(masks), metrics=metrics)

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """What the step computes for all candidates, in their order.

        ``refine/labels [B, N]``, ``boxes [B, N, 4]``, of the first look ``glance/crops [B * N, s, s, C]``,
        ``glance/stage{t}/features`` and ``logits [B * N, m, m, K]`` and ``guide [B, N, m, m]``; ``crops``,
        ``plain_crops``, ``logits [B, N, K + 1]``, ``plain_logits`` and ``deltas`` of the box branch; ``moved
        [B, N, 4]`` by the likeliest class ``final_labels [B, N]``; ``masks/crops [B * N, s, s, C]`` there, ``joined``
        with the link, and ``masks/stage{last}/logits [B * N, m, m, K]``.
        """
        candidates, classes = self._candidates(found), setting.num_classes
        valid, labels = candidates.valid, candidates.likeliest
        boxes = of_class(candidates.boxes, labels)
        crops, passes = passes_at_test(self.heads, setting.stages, features, boxes, valid)
        named: dict[str, Any] = {"labels": labels, "boxes": boxes, "glance/crops": crops}
        for t, (stage, passed) in enumerate(zip(setting.stages, passes, strict=True)):
            logits = self.heads[stage.head].head.classify(passed, classes)
            named |= {f"glance/stage{t}/features": passed, f"glance/stage{t}/logits": logits}
        glance = self._glance(features, boxes, valid, labels, setting)
        logits, deltas = self._refine_boxes(features, boxes, valid, glance, setting)
        final = self.combined(candidates.logits, logits)[..., :-1].argmax(-1).astype(jnp.int32)
        moved = of_class(move_by_class(self.refine_box, boxes, deltas, features.image_hw), final)
        plain_logits, _ = self.refine_box(features, boxes, valid, classes)
        crops, passed = self._look_again(features, moved, valid, glance.features)
        named |= {
            "guide": self._guide(glance),
            "crops": self.refine_box.crops(features, boxes, valid, *self._guides(glance)),
            "plain_crops": self.refine_box.crops(features, boxes, valid),
            "logits": logits,
            "plain_logits": plain_logits,
            "deltas": deltas,
            "final_labels": final,
            "moved": moved,
            "joined": self.refine_mask.head.join(crops, glance.features.reshape(-1, *glance.features.shape[2:])),
        }
        # Parts behind this one read the masks of the last pass under the names that `MaskPrediction` gives them.
        last = f"masks/stage{len(setting.stages) - 1}"
        own = {f"{last}/features": passed, f"{last}/logits": self.refine_mask.head.classify(passed, classes)}
        return {f"refine/{name}": value for name, value in named.items()} | {"masks/crops": crops} | own

    def _given(self, found: Found) -> Detections:
        """What is refined: boxes of one class each, whose ``index`` is that of the candidate."""
        if self.input_from == "detections":
            return found.detections
        candidates = self._candidates(found)
        number = candidates.valid.shape[1]
        labels = candidates.likeliest
        scores = jnp.take_along_axis(jax.nn.softmax(candidates.logits), labels[..., None], axis=2)[..., 0]
        every = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32), labels.shape)
        given = Detections(of_class(candidates.boxes, labels), scores, labels, candidates.valid, every)
        if self.limit is None or self.limit >= number:
            return given
        _, best = jax.vmap(partial(top_k, k=self.limit))(jnp.where(candidates.valid, scores, -1.0))
        # In the order that they had, so that a limit which drops no detection changes nothing.
        kept: Detections = jax.tree.map(lambda rows: _pick(rows, jnp.sort(best, axis=1)), given)
        return kept

    def _glance(
        self, features: Features, boxes: jax.Array, valid: jax.Array, labels: jax.Array, setting: Setting
    ) -> Glance:
        """The masks of class ``labels [B, N]`` in ``boxes [B, N, 4]``."""
        stages = setting.stages
        _, passes = passes_at_test(self.heads, stages, features, boxes, valid)
        logits = [
            self.heads[stage.head].logits(passed, labels, setting.num_classes)
            for stage, passed in zip(stages, passes, strict=True)
        ]
        last = passes[-1].reshape(*valid.shape, *passes[-1].shape[1:])
        return Glance(last, logits[-1], mean_probabilities(logits))

    def _guide(self, glance: Glance) -> jax.Array:
        """By what the crops are multiplied: ``[B, N, m, m]`` float32."""
        guide = glance.probabilities
        if not self.training.guide_gradient:
            guide = jax.lax.stop_gradient(guide)
        return 1 + guide if self.residual else guide

    def _guides(self, glance: Glance) -> tuple[jax.Array, ...]:
        """The last argument of the box branch, if it has one."""
        return (self._guide(glance),) if self.guided else ()

    def _refine_boxes(
        self, features: Features, boxes: jax.Array, valid: jax.Array, glance: Glance, setting: Setting
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits ``[B, N, K + 1]`` and deltas ``[B, N, K or 1, 4]`` of the refining box branch."""
        refined: tuple[jax.Array, jax.Array | None] = self.refine_box(
            features, boxes, valid, setting.num_classes, *self._guides(glance)
        )
        return refined

    def combined(self, base: jax.Array, refined: jax.Array) -> jax.Array:
        """The logits of the stages and of the step as one."""
        return (base + self.alpha * refined) / (1 + self.alpha)

    def _look_again(
        self, features: Features, boxes: jax.Array, valid: jax.Array, before: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Crops ``[B * N, s, s, C]`` of refined boxes, and the mask features with those of the first look ``before``.

        The first look was at other boxes, and its features are not moved to these (eq. 6 is a plain sum).
        """
        crops = self.refine_mask.crops(features, boxes, valid)
        before = before.reshape(-1, *before.shape[2:])
        if self.refine_mask.linked and before.shape[1:3] != crops.shape[1:3]:
            raise ValueError(
                f"Refine: the link adds the features of the first look, {before.shape[1:3]} a box, to crops of "
                f"{crops.shape[1:3]}: give both extractors the same size, or set refine_mask.head.linked=false"
            )
        return crops, self.refine_mask.features(crops, before)

    def _first_mask_losses(
        self,
        features: Features,
        seen: Seen,
        samples: Samples,
        glance: Glance,
        targets: Targets,
        setting: Setting,
    ) -> tuple[Losses, jax.Array]:
        """``loss_mask`` of each stage, and what the masks of ``samples`` should be, ``[B, S, m, m]``."""
        size = glance.logits.shape[-1]
        boxes, index = samples.boxes, samples.gt_index
        bitmaps = mask_targets(targets.masks, boxes, index, samples.positive, size=size)
        on_guides = self.training.mask_loss_on == "predicted"
        # The last stage learns from the first look, in place of a pass over its own samples.
        stages = setting.stages[:-1] if on_guides else setting.stages
        terms: list[Losses] = []
        if stages:
            loop = choose(self.heads, stages, setting.unroll)
            own = loop.train_masks(
                self.heads, stages, features, seen.samples[: len(stages)], targets, setting.num_classes
            )
            terms = [stage.losses for stage in own]
        if on_guides:
            loss = mask_loss(glance.logits, bitmaps, samples.positive)
            terms.append(setting.stages[-1].weigh({"loss_mask": loss}))
        return by_stage(terms), bitmaps

    def _moved_samples(self, features: Features, samples: Samples, deltas: jax.Array | None) -> Samples:
        """Samples as the step moves them by the deltas of their class; no gradient, and ground truth stays."""
        if self.boxes == "base":
            return samples
        moved = of_class(move_by_class(self.refine_box, samples.boxes, deltas, features.image_hw), samples.labels)
        return dataclasses.replace(samples, boxes=jnp.where(samples.is_truth[..., None], samples.boxes, moved))

    def _refined_masks(
        self, features: Features, samples: Samples, glance: Glance, targets: Targets, setting: Setting
    ) -> TrainedMasks:
        few, index = self.training.first_masks(samples)
        few = harmless(few)
        crops, passed = self._look_again(features, few.boxes, few.positive, _pick(glance.features, index))
        return mask_stage_losses(self.refine_mask, 1.0, few, crops, passed, targets, setting.num_classes)

    def _candidates(self, found: Found) -> Candidates:
        if found.candidates is None:
            raise ValueError(_NO_CANDIDATES)
        candidates: Candidates = found.candidates
        return candidates

    def _check(self, setting: Setting, *, training: bool = False) -> None:
        if not self.heads:
            raise ValueError(
                "Refine looks at the masks of the model first, and has no branch for these: give it heads, those of "
                "MaskPrediction, whose place it takes"
            )
        check_branches(self.heads, setting, training=training)

    def _make_parameters(self, features: Features, setting: Setting) -> None:
        make_branches(self, features, setting)
        if self.is_initializing():
            for branch in (self.refine_box, self.refine_mask):
                branch.make_parameters(features, setting.num_classes)


_NO_CANDIDATES = (
    "Refine reads what the stages of a two-stage model predict before suppression: it stands in the place of "
    "MaskPrediction, among the parts of a TwoStage"
)


def _pick(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Rows ``[B, M, ..]`` of ``rows [B, N, ..]`` at ``index [B, M]``."""
    picked: jax.Array = jax.vmap(lambda rows, at: rows[at])(rows, index)
    return picked


def _metrics(before: Samples, after: Samples, glance: Glance, bitmaps: jax.Array, targets: Targets) -> Losses:
    """As `Refine.losses` says."""
    images = jnp.maximum(before.valid.any(1).sum(), 1)
    moved = before.positive & ~before.is_truth
    terms = {"refine.positives": before.positive.sum() / images}
    for name, samples in (("before", before), ("after", after)):
        overlaps = jax.vmap(iou)(samples.boxes, targets.boxes)
        overlap = jnp.take_along_axis(overlaps, before.gt_index[..., None], axis=2)[..., 0]
        terms[f"refine.iou_{name}"] = masked_sum(overlap, moved) / jnp.maximum(moved.sum(), 1)
    counts = before.positive[..., None, None]
    for name, pixels in (("inside", bitmaps > 0), ("outside", bitmaps == 0)):
        pixels = pixels & counts
        terms[f"refine.guide_{name}"] = masked_sum(glance.probabilities, pixels) / jnp.maximum(pixels.sum(), 1)
    return {name: jax.lax.stop_gradient(value) for name, value in terms.items()}
