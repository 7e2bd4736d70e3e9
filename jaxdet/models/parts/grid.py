"""Boxes of the detections from grids of points: Grid R-CNN (Lu et al. 2019, arXiv 1811.12030).

Letters in shapes: B images, N boxes, S samples, h rows and columns of a heat map, s those of a crop, P points, C
channels.
"""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.features import Losses
from jaxdet.models.parts.part import Found, Seen, Setting
from jaxdet.models.roi.masks import candidates
from jaxdet.nn.blocks.remat import rematerialized
from jaxdet.nn.extractors.single_level import crops_as_batch
from jaxdet.nn.heads.grid import GridHead
from jaxdet.ops.boxes import clip, iou, safe
from jaxdet.ops.grids import Jitter, grid_boxes, grid_targets
from jaxdet.ops.losses import binary_cross_entropy, masked_sum
from jaxdet.ops.sampling import choose
from jaxdet.ranges import DETECTIONS, WEIGHT, Range, check_ranges
from jaxdet.structures import Features, Samples, Targets

_TWO_STAGES = (
    "GridBoxes learns from what the stages of a two-stage model sample, a one-stage model has none: take it out of "
    "model.parts, or put it among those of a TwoStage"
)


class GridBoxes(nn.Module):
    """Puts the box of each detection where ``head`` sees the points of a grid; its class and score stay.

    Behind a `ClassHead` it is Grid R-CNN, in which nothing else moves a box; behind a head with deltas it moves what
    these have moved.  Parts that look at boxes stand behind it, `MaskPrediction` for one; before it stands what
    suppresses anew (`Refine`).

    It trains on the positives of the last stage, displaced by ``jitter`` (None: where they are), at most ``limit`` of
    an image; which of them, is drawn, or with ``order="first"`` the first.  Cells up to ``radius`` from that of a point
    are what its heat map should show; ``weight`` is that of the loss.  ``clipped`` boxes are cut to the image; the
    reference means to and does not, since its clamp works on a copy.  ``remat``: as in `BoxBranch`.
    """

    place: ClassVar[str] = "grid"
    on_given: ClassVar[str] = "left out"

    extractor: nn.Module
    head: GridHead
    jitter: Jitter | None = Jitter()
    limit: int = 96
    order: Literal["random", "first"] = "random"
    radius: int = 1
    weight: float = 15.0
    clipped: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, limit=DETECTIONS, radius=Range(0, 100), weight=WEIGHT)
        super().__post_init__()

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        _check(setting)
        before = found.detections
        logits = self._on_boxes(self.head(self._crops(features, before.boxes, before.valid)), before.valid)
        moved = self._moved(before.boxes, logits, features.image_hw)
        boxes = jnp.where(before.valid[..., None], moved, before.boxes)
        return dataclasses.replace(found, detections=dataclasses.replace(before, boxes=boxes))

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_grid``: of the heat maps with and without fusion, mean over cells, points and boxes, the two added.

        Metrics ``grid.iou_before`` and ``grid.iou_after``: the mean IoU of the boxes with their objects, as they are
        given and where the grid puts them.
        """
        _check(setting)
        if seen.boxes is None:
            raise ValueError(_TWO_STAGES)
        samples, hw = candidates(seen.boxes, setting.stages[-1]), features.image_hw
        boxes, gt_index, counts = self._given(samples, hw, key)
        truth = safe(jnp.take_along_axis(targets.boxes, gt_index[..., None], axis=1), counts)
        both = [self._on_boxes(maps, counts) for maps in self._both(features, boxes, counts)]
        make = partial(grid_targets, points=self.head.points, side=both[0].shape[2], radius=self.radius)
        wanted = jax.vmap(make)(boxes, truth)
        cells = jnp.maximum(counts.sum(), 1) * math.prod(wanted.shape[2:])
        terms = [masked_sum(binary_cross_entropy(x, wanted), counts[..., None, None, None]) for x in both]
        found = self._moved(boxes, both[0], hw)
        metrics = {
            f"grid.iou_{name}": masked_sum(_overlap(its, truth), counts) / jnp.maximum(counts.sum(), 1)
            for name, its in (("before", boxes), ("after", found))
        }
        seen = dataclasses.replace(seen, metrics=seen.metrics | jax.lax.stop_gradient(metrics))
        return {"loss_grid": self.weight * (terms[0] + terms[1]) / cells}, seen

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """``grid/crops [B * N, s, s, C]`` and ``grid/logits [B * N, h, h, P]`` of the given boxes."""
        boxes = found.detections.boxes
        crops = self._crops(features, boxes, jnp.ones(boxes.shape[:2], bool))
        return {"grid/crops": crops, "grid/logits": self.head(crops)}

    def _given(self, samples: Samples, hw: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The positives that are trained on: boxes ``[B, S, 4]``, the object of each, and which slots count."""
        jitter_key, choice_key = jax.random.split(key)
        boxes, images = samples.boxes, len(samples.boxes)
        if self.jitter is not None:
            boxes = jax.vmap(self.jitter)(boxes, hw, jax.random.split(jitter_key, images))
        keys = jax.random.split(choice_key, images) if self.order == "random" else None
        limit = min(self.limit, boxes.shape[1])
        index, counts = jax.vmap(lambda positive, key: choose(positive, limit, key))(samples.positive, keys)
        boxes = safe(jnp.take_along_axis(boxes, index[..., None], axis=1), counts)
        return boxes, jnp.take_along_axis(samples.gt_index, index, axis=1), counts

    def _crops(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        return crops_as_batch(self.extractor(features, boxes, valid))

    @rematerialized
    def _both(self, features: Features, boxes: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.head.both(self._crops(features, boxes, valid))

    def _on_boxes(self, maps: jax.Array, valid: jax.Array) -> jax.Array:
        """Heat maps ``[B * N, h, h, P]`` as ``[B, N, h, h, P]``, float32 whatever they were computed in."""
        return maps.reshape(*valid.shape, *maps.shape[1:]).astype(jnp.float32)

    def _moved(self, boxes: jax.Array, logits: jax.Array, hw: jax.Array) -> jax.Array:
        """Boxes ``[B, N, 4]`` where their grids are; no gradient."""
        moved = jax.vmap(grid_boxes)(boxes, logits)
        return jax.lax.stop_gradient(jax.vmap(clip)(moved, hw) if self.clipped else moved)


def _check(setting: Setting) -> None:
    if not setting.stages:
        raise ValueError(_TWO_STAGES)


def _overlap(boxes: jax.Array, truth: jax.Array) -> jax.Array:
    """IoU ``[B, N]`` of each box with its own object, both ``[B, N, 4]``."""
    pairs = jax.vmap(iou)(boxes.reshape(-1, 1, 4), truth.reshape(-1, 1, 4))
    return pairs.reshape(boxes.shape[:2])
