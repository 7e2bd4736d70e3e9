"""Two-stage detection as one reads it: backbone, neck, proposals, heads, finish."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.branches import Head, Losses
from jaxdet.models.finish import Finish
from jaxdet.models.loop import test_boxes, train_boxes
from jaxdet.models.mask_loop import test_masks, train_masks
from jaxdet.models.proposals import RPN
from jaxdet.models.repeat import Repeat, Rolled, Unrolled, is_faster_unrolled, why_not_rolled
from jaxdet.models.samples import without_fillers
from jaxdet.models.schedule import Step, check_schedule, check_test_heads, check_unshared
from jaxdet.models.scoring import mask_iou_losses, rate_masks
from jaxdet.models.semantic import semantic_losses
from jaxdet.nn.backbones.resnet import normalize
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.semantic import SEMANTIC_LOGITS, SemanticHead
from jaxdet.structures import Batch, Detections, Features, Proposals, Targets

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class TwoStage(nn.Module):
    """Faster R-CNN (Ren et al. 2015), and Mask R-CNN (He et al. 2017) where the head has a mask branch.

    ``schedule`` says which head works at which step of training: several heads make a Cascade or HTC, one head at
    several steps R3-CNN.  ``test_heads`` are the heads of the steps at test, if those differ.  ``unroll``: the steps
    are written out in the program, not rolled into a scan; None: whatever was measured to be faster on the backend.
    ``mask_iou`` rates masks (Mask Scoring R-CNN, SBR-CNN); ``semantic`` is HTC's branch, whose embedding the
    extractors of the heads may add (``PlusSemantic``).  ``pixel_mean`` and ``pixel_std`` normalise RGB images of
    0..255.  ``dtype`` is the dtype of computation; parameters, geometry and losses stay float32.
    """

    num_classes: int
    backbone: nn.Module
    neck: nn.Module
    rpn: RPN
    heads: tuple[Head, ...]
    schedule: tuple[Step, ...] = (Step(),)
    test_heads: tuple[int, ...] | None = None
    unroll: bool | None = None
    mask_iou: MaskIoUHead | None = None
    semantic: SemanticHead | None = None
    finish: Finish = Finish()
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    dtype: Literal["float32", "bfloat16"] = "float32"

    def setup(self) -> None:
        check_schedule(self.schedule, self.heads)
        check_test_heads(self.test_heads, self.heads)
        check_unshared({f"heads[{i}]": head for i, head in enumerate(self.heads)} | {"mask_iou": self.mask_iou})
        if self.mask_iou is not None and self.heads[0].mask_head is None:
            raise ValueError("mask_iou rates masks, but the heads have no mask branch: give them one, or drop mask_iou")

    def losses(self, batch: Batch, key: jax.Array) -> tuple[Losses, Losses]:
        """Loss terms by name, whose sum is minimised, and metrics; ``key`` drives the samplers."""
        if batch.targets is None:
            raise ValueError("losses need ground truth, got a batch without targets; predict works without")
        rpn_key, head_key = jax.random.split(key)
        features = self.features(batch)
        batch = without_fillers(batch)
        targets = jax.tree.map(jnp.asarray, batch.targets)
        rpn_losses, proposals = self.rpn.losses(features, batch.true_hw, targets, rpn_key)
        head_losses, metrics = self.head_losses(features, proposals, targets, batch.true_hw, head_key)
        terms = {**rpn_losses, **head_losses}
        if self.semantic is not None:
            terms |= semantic_losses(features[SEMANTIC_LOGITS], targets, self.semantic.weight)
        return terms, metrics

    def predict(self, batch: Batch) -> Detections:
        """Detections of a batch, in coordinates of the resized images."""
        features = self.features(batch)
        proposals = self.rpn.proposals(features, batch.true_hw)
        return self.detect(features, proposals, batch.true_hw)

    def features(self, batch: Batch) -> Features:
        """The pyramid of a batch of images, and the maps of the semantic branch if there is one."""
        mean, std = jnp.asarray(self.pixel_mean), jnp.asarray(self.pixel_std)
        image = normalize(jnp.asarray(batch.image), batch.true_hw, mean, std)
        pyramid: Features = self.neck(self.backbone(image.astype(self.dtype)))
        return pyramid if self.semantic is None else pyramid | self.semantic(pyramid)

    def head_losses(
        self, features: Features, proposals: Proposals, targets: Targets, true_hw: jax.Array, key: jax.Array
    ) -> tuple[Losses, Losses]:
        """Losses and metrics of the heads on given proposals."""
        repeat = self.repeat(self.schedule, features)
        terms, metrics, samples = train_boxes(repeat, features, proposals, targets, true_hw, self.num_classes, key)
        if self.heads[0].mask_head is not None:
            mask_terms, last = train_masks(repeat, features, samples, targets, self.num_classes)
            terms |= mask_terms
            if self.mask_iou is not None:
                terms |= mask_iou_losses(self.mask_iou, last, targets, self.num_classes)
        return terms, metrics

    def detect(self, features: Features, proposals: Proposals, true_hw: jax.Array) -> Detections:
        """Detections from given proposals."""
        repeat = self.repeat(self.test_schedule(), features)
        logits, boxes = test_boxes(repeat, features, proposals, true_hw, self.num_classes)
        found = jax.vmap(self.finish)(boxes, jax.nn.softmax(logits)[..., :-1], proposals.valid)
        masks, mask_scores = None, found.scores
        if self.heads[0].mask_head is not None:
            seen = test_masks(repeat, features, found, self.num_classes)
            masks = seen.probabilities
            if self.mask_iou is not None:
                mask_scores *= rate_masks(self.mask_iou, seen.crops, seen.logits, found.labels, self.num_classes)
        return Detections(found.boxes, found.scores, found.labels, masks, mask_scores, found.valid)

    def test_schedule(self) -> tuple[Step, ...]:
        """The steps at test; only their heads matter."""
        if self.test_heads is None:
            return self.schedule
        return tuple(Step(head) for head in self.test_heads)

    def repeat(self, schedule: tuple[Step, ...], features: Features) -> Repeat:
        """The way in which steps are run; the parameter tree is the same in both."""
        if self.is_initializing():  # some steps leave out a head, or a part of one; parameters are made of all parts
            for head in self.heads:
                head.use_all_parts(features, self.num_classes)
        unroll = self.unroll
        if unroll is None:
            unroll = is_faster_unrolled(len(schedule)) or why_not_rolled(self.heads, schedule) is not None
        return (Unrolled if unroll else Rolled)(self.heads, schedule)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path is not trained (stem and first stages of the backbone)."""
        return path[0] == "backbone" and bool(self.backbone.is_frozen(path[1:]))
