"""Two-stage detection as one reads it: features, proposals, stages, suppression, parts.

Letters in shapes: B images, N proposals, s rows and columns of a crop, C channels, K classes.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.dense import DenseDetector
from jaxdet.models.features import (
    Dtype,
    Losses,
    Normalization,
    extract_features,
    feature_intermediates,
    in_frozen_backbone,
    semantic_losses,
    targets_of,
    without_fillers,
)
from jaxdet.models.parts.part import Found, Part, Seen, Setting, with_places
from jaxdet.models.roi.boxes import Candidates, PredictedStage, move, move_by_class
from jaxdet.models.roi.heads import BoxBranch
from jaxdet.models.roi.loop import by_stage
from jaxdet.models.roi.scan import choose
from jaxdet.models.roi.schedule import Stage, check_stages, check_test_heads, check_unshared
from jaxdet.nn.heads.semantic import SemanticHead
from jaxdet.ops.suppression import NMS, Suppression
from jaxdet.ranges import CLASSES, HEADS, check_ranges
from jaxdet.structures import Batch, Detections, Features, Proposals, Targets


class TwoStage(nn.Module):
    """Faster R-CNN (Ren et al. 2015), and with parts behind it Mask R-CNN (He et al. 2017) and its descendants.

    ``stages`` say which head works when in training: several heads make a Cascade or HTC, one head at several stages
    R3-CNN.  ``test_heads`` are the heads of the stages at test, if those differ.  ``suppression`` makes detections of
    what the stages predict; ``parts`` add to these, one after the other: their masks (`MaskPrediction`), the
    scores of their masks (`MaskScoring`).  ``semantic`` is HTC's branch, whose embedding the extractors of the heads
    may add (`PlusSemantic`).  ``unroll``: the stages are written out in the program, not rolled into a scan; None:
    whatever was measured to be faster on the backend.  ``dtype`` is that of computation; parameters, geometry and
    losses stay float32.
    """

    num_classes: int
    backbone: nn.Module
    neck: nn.Module
    rpn: DenseDetector
    heads: tuple[BoxBranch, ...]
    stages: tuple[Stage, ...] = (Stage(),)
    test_heads: tuple[int, ...] | None = None
    suppression: Suppression = NMS()
    parts: tuple[Part, ...] = ()
    semantic: SemanticHead | None = None
    unroll: bool | None = None
    normalization: Normalization = Normalization()
    dtype: Dtype = "float32"

    preserve_adopted_names: ClassVar[bool] = True
    suppression_key: ClassVar[str] = "suppression"

    def __post_init__(self) -> None:
        check_ranges(self, num_classes=CLASSES, test_heads=HEADS)
        # Linen modules are frozen dataclasses; the names must be there before linen adopts the parts.
        object.__setattr__(self, "parts", with_places(self.parts))
        super().__post_init__()

    def setup(self) -> None:
        check_stages(self.stages, self.heads)
        check_test_heads(self.test_heads, self.heads)
        check_unshared({"heads": self.heads, "parts": self.parts})

    def losses(self, batch: Batch, key: jax.Array, proposals: Proposals | None = None) -> tuple[Losses, Losses]:
        """Loss terms by name, whose sum is minimised, and metrics; ``key`` drives the samplers.

        ``proposals`` are what the stages begin with, in place of the model's own.
        """
        targets_of(batch)  # fails before the features are computed
        rpn_key, stage_key = jax.random.split(key)
        features = self.features(batch)
        # Behind the features: fillers have no loss, but their images pass the backbone as all others do.
        batch = without_fillers(batch)
        targets = targets_of(batch)
        outputs = self.rpn(features, batch.true_hw)
        # The RPN names its losses as any dense detector; here they share a dictionary with those of the stages.
        own, _ = self.rpn.losses(outputs, batch.true_hw, targets, rpn_key)
        terms = {f"loss_rpn_{name.removeprefix('loss_')}": value for name, value in own.items()}
        if proposals is None:
            proposals = self.rpn.proposals(outputs, batch.true_hw, self.rpn.train)
        more, metrics = self.stage_losses(features, proposals, targets, batch.true_hw, stage_key)
        terms |= more
        # Weighted once for the batch; stages have weights of their own.
        if self.semantic is not None and features.semantic_logits is not None:
            terms |= semantic_losses(features.semantic_logits, targets, self.semantic.weight)
        return terms, metrics

    def stage_losses(
        self, features: Features, proposals: Proposals, targets: Targets, true_hw: jax.Array, key: jax.Array
    ) -> tuple[Losses, Losses]:
        """Losses and metrics of the stages and parts, on given features and proposals."""
        if self.is_initializing():
            self._make_parameters(features)
        loop = choose(self.heads, self.stages, self.unroll)
        box_key, *part_keys = jax.random.split(key, 1 + len(self.parts))
        stages = loop.train_boxes(
            self.heads, self.stages, features, proposals, targets, true_hw, self.num_classes, box_key
        )
        terms = by_stage([stage.losses for stage in stages])
        last = stages[-1]
        seen = Seen([stage.samples for stage in stages], boxes=last.boxes, candidates=last.candidates)
        for place, (part, part_key) in enumerate(zip(self.parts, part_keys, strict=True)):
            seen = dataclasses.replace(
                seen, found=partial(self._found, features, proposals, true_hw, self.parts[:place])
            )
            more, seen = part.losses(features, seen, targets, self._setting(self.stages), part_key)
            terms |= more
        return terms, by_stage([stage.metrics for stage in stages]) | seen.metrics

    def predict(self, batch: Batch, proposals: Proposals | None = None) -> Detections:
        """Detections of a batch, in coordinates of the resized images.

        ``proposals`` are what the stages begin with, in place of the model's own.
        """
        features = self.features(batch)
        # While parameters are made the RPN runs in any case, or it would have none.
        if proposals is None or self.is_initializing():
            outputs = self.rpn(features, batch.true_hw)
            proposals = self.rpn.proposals(outputs, batch.true_hw, self.rpn.test)
        return self.detect(features, proposals, batch.true_hw)

    @property
    def describes_given(self) -> bool:
        """Whether `describe` can be asked: what the parts say follows from boxes alone (`Part`)."""
        return all(getattr(part, "on_given", None) in ("asked", "left out") for part in self.parts)

    def describe(self, batch: Batch, given: Detections) -> Detections:
        """Given detections ``[B, D]`` with their masks and the scores of these; boxes, classes and scores stay.

        ValueError where a part finds detections of its own (`describes_given`).
        """
        if not self.describes_given:
            raise ValueError("describe: expected parts that can be asked about given boxes, see Part.on_given")
        features, found = self.features(batch), Found(given)
        for part in self.parts:
            if part.on_given == "asked":  # type: ignore[attr-defined]
                found = part(features, found, self._setting(self._test_stages()))
        return found.detections

    def detect(self, features: Features, proposals: Proposals, true_hw: jax.Array) -> Detections:
        """Detections from given features and proposals."""
        if self.is_initializing():
            self._make_parameters(features)
        return self._found(features, proposals, true_hw, self.parts).detections

    def _found(self, features: Features, proposals: Proposals, true_hw: jax.Array, parts: Sequence[Part]) -> Found:
        """The detections among the proposals, with what these parts add to them."""
        stages = self.predict_stages(features, proposals, true_hw)
        # As the reference: the mean of the logits of all stages, then softmax; boxes of the last stage.
        logits = jnp.stack([stage.logits for stage in stages]).mean(0)
        candidates = Candidates(logits, stages[-1].by_class, proposals.valid)
        scores = jax.nn.softmax(logits)[..., :-1]
        detections = jax.vmap(self.suppression)(candidates.boxes, scores, candidates.valid)
        found = Found(detections, candidates=candidates)
        for part in parts:
            found = part(features, found, self._setting(self._test_stages()))
        return found

    def predict_stages(self, features: Features, proposals: Proposals, true_hw: jax.Array) -> list[PredictedStage]:
        """What each stage at test predicts for the boxes that the one before has moved."""
        stages = self._test_stages()
        loop = choose(self.heads, stages, self.unroll)
        predicted: list[PredictedStage] = loop.predict_boxes(
            self.heads, stages, features, proposals, true_hw, self.num_classes
        )
        return predicted

    def intermediates(
        self, batch: Batch, boxes: jax.Array | None = None, labels: jax.Array | None = None
    ) -> dict[str, Any]:
        """What is computed on the way to the detections, by name.

        Args:
            batch: images.
            boxes: ``[B, N, 4]``, what stages and parts are given; None: the model's own proposals, all slots of them.
            labels: ``[B, N]``, the class of the masks that are rated; None: the likeliest of the last stage.

        Returns:
            ``backbone/{level}`` and ``pyramid/{level}`` (`feature_intermediates`); ``rpn/{level}/logits`` and
            ``deltas`` (`DenseDetector.intermediates`); ``proposals`` (`Proposals`); of each stage at test
            ``stage{t}/boxes [B, N, 4]`` that it is given, ``crops [B * N, s, s, C]``, ``logits [B, N, K + 1]`` and
            ``deltas [B, N, K or 1, 4]``, if its head has any; and what the parts compute for the boxes
            (`MaskPrediction.intermediates`).
        """
        named = feature_intermediates(
            batch, self.backbone, self.neck, normalization=self.normalization, dtype=self.dtype
        )
        features = self.features(batch)
        outputs = self.rpn(features, batch.true_hw)
        proposals = self.rpn.proposals(outputs, batch.true_hw, self.rpn.test)
        named |= self.rpn.intermediates(outputs, "rpn") | {"proposals": proposals}
        boxes = proposals.boxes if boxes is None else boxes
        return named | self.stage_intermediates(features, boxes, labels, batch.true_hw)

    def stage_intermediates(
        self, features: Features, boxes: jax.Array, labels: jax.Array | None, true_hw: jax.Array
    ) -> dict[str, Any]:
        """Those of `intermediates` that stages and parts compute, on given features."""
        named: dict[str, Any] = {}
        # All boxes that are given count, also what the RPN left invalid: comparisons want every slot.
        first, valid = boxes, jnp.ones(boxes.shape[:2], bool)
        all_logits = []
        for t, stage in enumerate(self._test_stages()):
            head = self.heads[stage.head]
            logits, deltas = head(features, boxes, valid, self.num_classes)
            values = {"boxes": boxes, "crops": head.crops(features, boxes, valid), "logits": logits, "deltas": deltas}
            named |= {f"stage{t}/{name}": value for name, value in values.items() if value is not None}
            all_logits.append(logits)
            by_class = move_by_class(head, boxes, deltas, true_hw)
            # Parts get the boxes that were given, not these.
            boxes = move(head, boxes, logits, deltas, true_hw)
        labels = logits[..., :-1].argmax(-1) if labels is None else labels
        given = Detections(first, jnp.ones_like(first[..., 0]), labels, valid, jnp.zeros_like(labels))
        found = Found(given, candidates=Candidates(jnp.stack(all_logits).mean(0), by_class, valid))
        for part in self.parts:
            named |= part.intermediates(features, found, self._setting(self._test_stages()), named)
        return named

    def features(self, batch: Batch) -> Features:
        """The pyramid of a batch of images, and the maps of the semantic branch if there is one."""
        return extract_features(
            batch,
            self.backbone,
            self.neck,
            normalization=self.normalization,
            dtype=self.dtype,
            semantic=self.semantic,
        )

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path is not trained (stem and first stages of the backbone)."""
        return in_frozen_backbone(self.backbone, path)

    def _test_stages(self) -> tuple[Stage, ...]:
        """The stages at test; only their heads matter: there is nothing to match, sample or weigh."""
        return self.stages if self.test_heads is None else tuple(Stage(head) for head in self.test_heads)

    def _setting(self, stages: tuple[Stage, ...]) -> Setting:
        return Setting(self.num_classes, stages, self.unroll, self.suppression)

    def _make_parameters(self, features: Features) -> None:
        """Make the parameters of all heads: the stages that are traced may leave out one."""
        for head in self.heads:
            head.make_parameters(features, self.num_classes)
