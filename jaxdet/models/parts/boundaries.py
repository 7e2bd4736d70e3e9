"""Sides of the detections' boxes from their masks: RDSNet's boundary refinement (Wang et al. 2020), behind any masks.

Letters in shapes: B images, N instances, G ground-truth slots, s the reach of the kernel.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.models.features import Losses
from jaxdet.models.parts.part import Found, Instances, Seen, Setting
from jaxdet.ops.boundaries import boundary_loss, covered_pixels, refine, to_boxes, to_pixels
from jaxdet.ops.boxes import iou
from jaxdet.ops.losses import masked_sum
from jaxdet.ops.profiles import Profiles, bitmap_extent, enclosing, mask_profiles
from jaxdet.ranges import Range, check_ranges, positive
from jaxdet.structures import Detections, Features, Masks, Targets

BoxesFrom: TypeAlias = Literal["regression", "mask", "mbrm"]
Start: TypeAlias = Literal["published", "edge", "zeros"]

PUBLISHED = (-0.2968, -0.2892, -0.2635, -3.2545, -0.1874, 2.5041, 0.0196, 0.0651, 0.0917), -1.9536
"""Weights and bias of the released RDSNet, whose reach is 4."""

MATCHED_IOU = 0.5

_NO_MASKS = (
    "BoundaryRefinement reads masks, but nothing before it draws any: put MaskPrediction, or InstanceMasks, before it "
    "among the parts"
)


class BoundaryRefinement(nn.Module):
    """Moves each side of a detection's box to where its mask ends; masks, classes and scores stay as they are.

    ``boxes_from`` are ``"mbrm"``; ``"mask"``, the smallest rectangle around the pixels of the mask, or the regressed
    box where there are none; and ``"regression"``, the boxes as they come.  All have the same 2s + 2 parameters, so
    that one checkpoint serves them.  Where these ``start``: at the published values, as an edge detector, or at 0, with
    which the mask says nothing.  ``gamma`` and ``reach`` (s) are those of the paper.

    Training concerns these parameters alone: no gradient flows on to boxes and masks.  They learn from the positives
    that the masks were trained on, or from the detections that match an object of their class by an IoU of 0.5
    (``learn_from``).  Where a box should end is taken from the object's bitmap, or from its box (``targets_from``);
    ``train_stride`` are the pixels of the image, along each axis, in one of those that training looks at: 1 as at
    test, or 4 as in the released code.
    """

    place: ClassVar[str] = "boundaries"
    on_given: ClassVar[str] = "left out"

    boxes_from: BoxesFrom = "mbrm"
    start: Start = "published"
    gamma: float = 0.05
    reach: int = 4
    learn_from: Literal["positives", "detections"] = "positives"
    targets_from: Literal["bitmap", "box"] = "bitmap"
    train_stride: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, gamma=positive(10), reach=Range(1, 100), train_stride=Range(1, 64))
        super().__post_init__()

    def setup(self) -> None:
        weights, bias = _start(self.start, self.reach)
        self.weights = self.param("weights", lambda _: jnp.asarray(weights, jnp.float32))
        self.bias = self.param("bias", lambda _: jnp.asarray([bias], jnp.float32))

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        before = found.detections
        if self.boxes_from == "regression":
            return found
        if before.masks is None:
            raise ValueError(_NO_MASKS)
        moved = jax.vmap(self.moved)(
            _profiles(before.masks, features.canvas_hw, features.true_hw), before.boxes, before.masks
        )
        boxes = jnp.where(before.valid[..., None], moved, before.boxes)
        return dataclasses.replace(found, detections=dataclasses.replace(before, boxes=boxes))

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_boundaries``, on the boxes and masks that it learns from.

        The metric ``boundaries_left_out`` is the share of sides that are out of reach.
        """
        if self.boxes_from != "mbrm":
            return {}, seen
        instances = seen.instances
        if self.learn_from == "detections" and seen.found is not None:
            instances = _matched(seen.found().detections, targets)
        if instances is None:
            raise ValueError(_NO_MASKS)
        loss, left_out = self.instance_loss(instances, targets, features.canvas_hw, features.true_hw)
        metrics = seen.metrics | {"boundaries_left_out": left_out}
        return {"loss_boundaries": loss}, dataclasses.replace(seen, metrics=metrics)

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """Nothing: detections show what becomes of their boxes, and `ops.boundaries.log_posteriors` says why."""
        return {}

    def moved(self, profiles: Profiles, boxes: jax.Array, masks: Masks) -> jax.Array:
        """Boxes ``[N, 4]`` of one image where ``boxes_from`` puts them; ``masks`` are those of the profiles."""
        pixels = to_pixels(boxes)
        if self.boxes_from == "mask":
            around, some = enclosing(profiles, masks.threshold)
            pixels = jnp.where(some[..., None], around, pixels)
        if self.boxes_from == "mbrm":
            pixels = refine(profiles, pixels, self.weights, self.bias, self.gamma)
        return to_boxes(pixels)

    def instance_loss(
        self, instances: Instances, targets: Targets, canvas_hw: tuple[int, int], true_hw: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The loss, mean over all sides that can be reached, and the share of those that cannot and are left out."""
        stride = self.train_stride
        boxes, masks = jax.lax.stop_gradient((instances.boxes, instances.masks))
        frames = [None if box is None else box / stride for box in (masks.frames, masks.crop)]
        masks = dataclasses.replace(masks, frames=frames[0], crop=frames[1])
        grid_hw = -(-canvas_hw[0] // stride), -(-canvas_hw[1] // stride)
        boxes = to_boxes(to_pixels(boxes)) / stride
        limit = None if true_hw is None else jnp.ceil(true_hw / stride)
        truth = jnp.take_along_axis(self._true_boxes(targets) / stride, instances.gt_index[..., None], axis=1)
        side_loss = partial(boundary_loss, weights=self.weights, bias=self.bias, gamma=self.gamma)
        values, counted = jax.vmap(side_loss)(
            _profiles(masks, grid_hw, limit), to_pixels(boxes), covered_pixels(truth), instances.counts
        )
        sides = 4 * instances.counts.sum()
        number = counted.sum()
        return masked_sum(values, counted) / jnp.maximum(number, 1), (sides - number) / jnp.maximum(sides, 1)

    def _true_boxes(self, targets: Targets) -> jax.Array:
        """Boxes ``[B, G, 4]`` of the objects."""
        if self.targets_from == "box":
            return targets.boxes
        if 0 in targets.masks.values.shape[2:]:
            raise ValueError(
                "BoundaryRefinement learns from the bitmaps of objects, the batch has none: set data.masks=true, "
                "or targets_from='box' in it"
            )
        extent, some = bitmap_extent(targets.masks)
        return jnp.where(some[..., None], to_boxes(extent), targets.boxes)


def _matched(found: Detections, targets: Targets) -> Instances | None:
    """The detections with the objects of their class that they overlap most; None where they have no masks."""
    if found.masks is None:
        return None
    same = found.labels[..., None] == targets.labels[:, None]
    counts = same & (targets.valid & ~targets.crowd)[:, None]
    overlaps = jnp.where(counts, jax.vmap(iou)(found.boxes, targets.boxes), 0.0)
    matched = found.valid & (overlaps.max(-1) >= MATCHED_IOU)
    return Instances(found.boxes, found.masks, overlaps.argmax(-1), matched)


def _profiles(masks: Masks, canvas_hw: tuple[int, int], true_hw: jax.Array | None) -> Profiles:
    def one_image(masks: Masks, hw: jax.Array | None) -> Profiles:
        return mask_profiles(masks, canvas_hw, true_hw=hw)

    return jax.vmap(one_image)(masks, true_hw)


def _start(start: Start, reach: int) -> tuple[tuple[float, ...] | np.ndarray, float]:
    """Weights ``[2s + 1]`` and bias before training."""
    if start == "published":
        if 2 * reach + 1 != len(PUBLISHED[0]):
            raise ValueError(
                f"BoundaryRefinement: the published weights are of reach=4, got reach={reach}: "
                "set start to edge or zeros in it (model.parts.1.start=edge, say) and train"
            )
        return PUBLISHED
    if start == "zeros":
        return np.zeros(2 * reach + 1), 0.0
    # The greatest where all pixels before are 0 and all behind are 1; -1 where nothing changes.
    return np.sign(np.arange(-reach, reach + 1)) / 2, -1.0
