"""Which ground truth, if any, each box is assigned to.  N boxes, G ground-truth slots, boxes in pixels."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.ops.boxes import area, coverage, iou
from jaxdet.ops.masks import centroids
from jaxdet.ranges import SHARE, check_ranges, positive
from jaxdet.structures import Masks


@struct.dataclass
class Match:
    """Result of matching N boxes; a box is positive, negative, or neither (ignored)."""

    gt_index: jax.Array  #: ``[N]`` int32, 0 where not positive
    positive: jax.Array  #: ``[N]`` bool
    negative: jax.Array  #: ``[N]`` bool
    max_iou: jax.Array  #: ``[N]`` float32, best overlap with a valid ground truth


class Assigner(Protocol):
    """Assigns places ``[N, 4]`` of one image to ground truths ``[G, 4]``; a value in a config."""

    def __call__(
        self,
        boxes: jax.Array,
        valid: jax.Array,
        gt_boxes: jax.Array,
        gt_valid: jax.Array,
        crowd: jax.Array,
        masks: Masks | None = None,
    ) -> Match: ...


@dataclasses.dataclass(frozen=True)
class Matcher:
    """The max-IoU rule of Faster R-CNN (Ren et al. 2015, section 3.1.2).

    A box is positive from ``positive_iou`` on, else negative below ``negative_iou``.  With ``low_quality`` each
    ground truth whose best overlap is at least ``min_positive_iou`` also takes every box that reaches exactly
    that overlap, overriding what those boxes were; among several such ground truths the last one takes it.
    With ``ties`` False it takes the first of them alone (YOLACT).  ``ignore_cover`` drops boxes that lie in a crowd
    region by more than that share, as if they were invalid (None: crowds have no effect, the reference's setting).
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.5
    min_positive_iou: float = 0.5
    low_quality: bool = True
    ties: bool = True
    ignore_cover: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, positive_iou=SHARE, negative_iou=SHARE, min_positive_iou=SHARE, ignore_cover=SHARE)

    def __call__(
        self,
        boxes: jax.Array,
        valid: jax.Array,
        gt_boxes: jax.Array,
        gt_valid: jax.Array,
        crowd: jax.Array,
        masks: Masks | None = None,
    ) -> Match:
        """Match ``boxes [N, 4]`` with ``gt_boxes [G, 4]``; the ``masks`` of these do not matter here.

        ``valid [N]`` and ``gt_valid [G]`` mark real slots, ``crowd [G]`` those ground truths that are crowd regions
        and match nothing.  An invalid slot may hold anything; an invalid box is neither positive nor negative.
        Without any ground truth all valid boxes are negative; there must be a slot for one, though (G >= 1).
        """
        _check_slots(gt_boxes)
        if self.ignore_cover is not None:
            cover = jnp.where((gt_valid & crowd)[None], coverage(boxes, gt_boxes), 0.0)
            valid = valid & (cover.max(1) <= self.ignore_cover)
        usable = gt_valid & ~crowd
        # -1 is below any threshold and any true IoU, also below one of exactly 0.
        overlap = jnp.where(usable[:, None] & valid, iou(gt_boxes, boxes), -1.0)  # [G, N]
        # argmax takes the first of equal overlaps, as the reference does.
        best, gt_index = overlap.max(0), overlap.argmax(0).astype(jnp.int32)
        positive = (best >= self.positive_iou) & valid & usable.any()
        negative = (best < self.negative_iou) & valid & ~positive
        # Last, because it overrides: an anchor below every threshold is positive if no other fits an object better.
        if self.low_quality:
            forced, forced_index = self._low_quality(overlap)
            gt_index = jnp.where(forced, forced_index, gt_index)
            positive, negative = positive | forced, negative & ~forced
        return Match(jnp.where(positive, gt_index, 0), positive, negative, jnp.maximum(best, 0.0))

    def _low_quality(self, overlap: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Boxes ``[N]`` that are the best a ground truth can get, and which ground truth (the last).

        ``overlap [G, N]`` is -1 where either side does not count.
        """
        best = overlap.max(1, keepdims=True, initial=-1.0)
        # Exact equality, as in the reference: all anchors that tie count, and `iou` is reproducible to the bit.
        takes = (overlap == best) & (best >= jnp.maximum(self.min_positive_iou, 0.0)) & (overlap >= 0.0)
        if not self.ties:
            takes &= jnp.arange(overlap.shape[1]) == overlap.argmax(1)[:, None]
        # The reference walks the ground truths in order and overwrites, so that the last one stays.
        last = overlap.shape[0] - 1 - takes[::-1].argmax(0)
        return takes.any(0), last.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class CentreSampling:
    """FCOS's rule (Tian et al. 2019, section 3.2): a cell is positive near the centre of an object of its level's size.

    Near is within ``radius`` sides of the cell, along both axes, and inside the object's box.  The centre is that of
    mass of the object's mask where there is one, as in CondInst, else that of its box.  The size of an object is its
    largest distance from the cell's centre to a side of the box; a level of cells of side s takes sizes from ``4 s`` to
    ``8 s``, the finest everything below, the coarsest everything above.  Of several objects the smallest box counts,
    and of equal ones the first.  All other cells are negative.
    """

    radius: float = 1.5

    def __post_init__(self) -> None:
        check_ranges(self, radius=positive(1e3))

    def __call__(
        self,
        boxes: jax.Array,
        valid: jax.Array,
        gt_boxes: jax.Array,
        gt_valid: jax.Array,
        crowd: jax.Array,
        masks: Masks | None = None,
    ) -> Match:
        """Match cells ``boxes [N, 4]`` (`anchors.Points`); other arguments and the result as `Matcher`."""
        _check_slots(gt_boxes)
        centre = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2 if masks is None else centroids(masks)
        side = boxes[:, 2] - boxes[:, 0]
        reach = (self.radius * side)[:, None]
        near, size = jnp.asarray(True), jnp.asarray(-jnp.inf)
        # Axis by axis, as in `boxes.intersection`: of N x G pairs a last axis of two would be most of the work.
        for axis in range(2):
            point = ((boxes[:, axis] + boxes[:, axis + 2]) / 2)[:, None]
            low, high = gt_boxes[:, axis], gt_boxes[:, axis + 2]
            # [N, G]: the square around the centre, cut to the box of the object.
            near &= point > jnp.maximum(centre[:, axis] - reach, low)
            near &= point < jnp.minimum(centre[:, axis] + reach, high)
            size = jnp.maximum(size, jnp.maximum(point - low, high - point))
        finest, coarsest = (side == side.min())[:, None], (side == side.max())[:, None]
        fits = ((size >= 4 * side[:, None]) | finest) & ((size <= 8 * side[:, None]) | coarsest)
        takes = near & fits & valid[:, None] & (gt_valid & ~crowd)
        gt_index = jnp.where(takes, area(gt_boxes), jnp.inf).argmin(1).astype(jnp.int32)
        positive = takes.any(1)
        return Match(jnp.where(positive, gt_index, 0), positive, valid & ~positive, positive.astype(jnp.float32))


def _check_slots(gt_boxes: jax.Array) -> None:
    if gt_boxes.shape[0] == 0:
        raise ValueError("matching needs at least one ground-truth slot, got 0: pad with an invalid one")
