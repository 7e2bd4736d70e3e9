"""Region proposals (Faster R-CNN, Ren et al. 2015): where objects may be, whatever they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.ops import losses
from jaxdet.ops.anchors import Anchors, inside, on_image
from jaxdet.ops.boxes import DeltaCoder, clip, safe
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Choice, Sampler
from jaxdet.ops.suppression import nms, offset_by_group
from jaxdet.ops.top_k import top_k
from jaxdet.structures import Features, Proposals, Targets, select_levels

Losses = dict[str, jax.Array]


@struct.dataclass
class Dense:
    """What the head says about every anchor of every level, in anchor order."""

    anchors: list[jax.Array]  #: per level ``[n_l, 4]``
    on_image: list[jax.Array]  #: per level ``[B, n_l]`` bool, the cell is not padding
    objectness: list[jax.Array]  #: per level ``[B, n_l]`` float32 logits
    deltas: list[jax.Array]  #: per level ``[B, n_l, 4]`` float32


class RPN(nn.Module):
    """Anchors are scored and moved by ``head``; the best become proposals.

    ``border`` admits anchors that far outside the image to training, negative: all.  ``beta`` turns the L1 box loss
    into smooth L1.  At most ``pre_nms`` boxes a level enter suppression and ``post_nms`` leave it, over all levels.
    Anchors in the padding beyond ``true_hw`` rounded up to ``pad_multiple`` do not exist, so that proposals do not
    depend on the canvas.
    """

    head: RPNHead
    anchors: Anchors = Anchors()
    coder: DeltaCoder = DeltaCoder()
    matcher: Matcher = Matcher(positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3)
    sampler: Sampler = Sampler(number=256, positive_fraction=0.5)
    border: float = -1.0
    beta: float | None = None
    nms_iou: float = 0.7
    pre_nms_train: int = 2000
    post_nms_train: int = 1000
    pre_nms_test: int = 1000
    post_nms_test: int = 1000
    pad_multiple: int = 32

    def dense(self, features: Features, true_hw: jax.Array) -> Dense:
        """Head outputs on all levels of the anchors."""
        maps = select_levels(features, self.anchors.levels, "the RPN")
        padded = jnp.ceil(true_hw / self.pad_multiple) * self.pad_multiple
        dense = Dense([], [], [], [])
        for level, features_of_level in zip(self.anchors.levels, maps, strict=True):
            objectness, deltas = self.head(features_of_level)
            batch, height, width, per_cell = objectness.shape
            if per_cell != self.anchors.per_cell:
                raise ValueError(
                    f"the RPN head scores {per_cell} anchors a cell, the anchors have {self.anchors.per_cell} "
                    "(scales times ratios): set anchors of the head to that"
                )
            dense.anchors.append(jnp.asarray(self.anchors.grid(level, height, width)))
            dense.on_image.append(on_image(padded / 2**level, height, width, per_cell))
            dense.objectness.append(objectness.reshape(batch, -1).astype(jnp.float32))
            dense.deltas.append(deltas.reshape(batch, -1, 4).astype(jnp.float32))
        return dense

    def losses(
        self, features: Features, true_hw: jax.Array, targets: Targets, key: jax.Array
    ) -> tuple[Losses, Proposals]:
        """Objectness and box losses, and proposals for training the heads."""
        dense = self.dense(features, true_hw)
        anchors = jnp.concatenate(dense.anchors)
        exists = jnp.concatenate(dense.on_image, 1)
        keys = jax.random.split(key, true_hw.shape[0])
        choice, target = jax.vmap(lambda *image: self._targets(anchors, *image))(exists, true_hw, targets, keys)
        objectness = jnp.take_along_axis(jnp.concatenate(dense.objectness, 1), choice.index, axis=1)
        deltas = jnp.take_along_axis(jnp.concatenate(dense.deltas, 1), choice.index[..., None], axis=1)
        score_loss = losses.binary_cross_entropy(objectness, choice.positive)
        box_loss = losses.l1(deltas, target) if self.beta is None else losses.smooth_l1(deltas, target, self.beta)
        # The reference counts at least one positive and one negative an image; a slot without an image has no anchors.
        counts = jnp.stack([choice.positive.sum(1), (choice.valid & ~choice.positive).sum(1)])
        number = jnp.maximum(jnp.where(exists.any(1), jnp.maximum(counts, 1), 0).sum(), 1)
        terms = {
            "loss_rpn_cls": losses.masked_sum(score_loss, choice.valid) / number,
            "loss_rpn_bbox": losses.masked_sum(box_loss, choice.positive[..., None]) / number,
        }
        return terms, self._select(dense, true_hw, self.pre_nms_train, self.post_nms_train)

    def proposals(self, features: Features, true_hw: jax.Array) -> Proposals:
        """Proposals at test time, ``post_nms_test`` slots."""
        return self._select(self.dense(features, true_hw), true_hw, self.pre_nms_test, self.post_nms_test)

    def _targets(
        self, anchors: jax.Array, exists: jax.Array, true_hw: jax.Array, targets: Targets, key: jax.Array
    ) -> tuple[Choice, jax.Array]:
        """One image: chosen anchors and the deltas ``[S, 4]`` they should predict."""
        usable = exists & inside(anchors, true_hw, self.border)
        match = self.matcher(anchors, usable, targets.boxes, targets.valid, targets.crowd)
        choice = self.sampler(match, key)
        boxes = safe(targets.boxes[match.gt_index[choice.index]], choice.positive)
        return choice, self.coder.encode(safe(anchors[choice.index], choice.positive), boxes)

    def _select(self, dense: Dense, true_hw: jax.Array, pre_nms: int, post_nms: int) -> Proposals:
        """The best boxes of each level, decoded, clipped and thinned out by suppression within levels."""
        dense = jax.lax.stop_gradient(dense)

        def one(
            exists: list[jax.Array], objectness: list[jax.Array], deltas: list[jax.Array], hw: jax.Array
        ) -> Proposals:
            found = [
                self._best(*level, hw, pre_nms) for level in zip(dense.anchors, exists, objectness, deltas, strict=True)
            ]
            groups = jnp.concatenate([jnp.full(len(s), i, jnp.int32) for i, (_, s, _) in enumerate(found)])
            boxes, scores, valid = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
            apart = offset_by_group(boxes, groups, valid)
            kept = nms(apart, scores, valid, threshold=self.nms_iou, limit=post_nms)
            return Proposals(boxes[kept.index], scores[kept.index], kept.valid)

        return jax.vmap(one)(dense.on_image, dense.objectness, dense.deltas, true_hw)

    def _best(
        self, anchors: jax.Array, exists: jax.Array, objectness: jax.Array, deltas: jax.Array, hw: jax.Array, limit: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Boxes, scores and validity of the ``limit`` highest anchors of one level of one image."""
        scores = jnp.where(exists & jnp.isfinite(objectness), jax.nn.sigmoid(objectness), -1.0)
        scores, index = top_k(scores, min(limit, len(scores)))
        boxes = clip(self.coder.decode(anchors[index], deltas[index]), hw)
        return boxes, scores, scores >= 0.0
