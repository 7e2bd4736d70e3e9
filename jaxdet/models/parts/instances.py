"""Masks of one-stage models: what the head says of a place, its code, against a map of all pixels of the image.

Letters in shapes: B images, N places or detections, h w cells of the map, y x cells of the grid of masks, K classes.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.features import Losses
from jaxdet.models.parts.part import Found, Instances, Seen, Setting
from jaxdet.models.roi.masks import check_masks
from jaxdet.nn.blocks.layers import Conv, xavier_uniform
from jaxdet.ops.boxes import safe
from jaxdet.ops.instances import InstanceLoss, MaskMaker, Size
from jaxdet.ops.losses import binary_cross_entropy, masked_sum
from jaxdet.ops.masks import masks_on_grid
from jaxdet.ops.sampling import choose
from jaxdet.ranges import DETECTIONS, LEVELS, WEIGHT, Range, check_ranges
from jaxdet.structures import Features, Masks, Targets


class InstanceMasks(nn.Module):
    """Draws the mask of each detection of a one-stage model (YOLACT, CondInst, RDSNet).

    ``pixels`` makes the map, ``maker`` masks of it and of the codes of the dense head, ``loss`` trains both.  Trained
    are at most ``limit`` places of an image among those that have an object of more than ``least_area`` pixels; which
    of them, is drawn, or with ``order="first"`` the first.  Parts behind learn from these masks cut as at test, around
    the predicted boxes, or around those of the objects (``crop_by="truth"``).
    """

    place: ClassVar[str] = "masks"

    pixels: nn.Module
    maker: MaskMaker
    loss: InstanceLoss
    limit: int = 100
    least_area: float = 0.0
    order: Literal["random", "first"] = "random"
    crop_by: Literal["predicted", "truth"] = "predicted"

    def __post_init__(self) -> None:
        check_ranges(self, limit=DETECTIONS, least_area=Range(0, 1e12))
        super().__post_init__()

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        codes, places = self._origins(found)
        detections, canvas = found.detections, features.canvas_hw
        logits = self._logits(self.pixels(features), codes, places, canvas)
        masks = self._masks(logits, detections.boxes, canvas)
        return dataclasses.replace(found, detections=dataclasses.replace(detections, masks=masks))

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_mask``: of the chosen places, against the masks of their objects."""
        if seen.dense is None:
            raise ValueError(_ONE_STAGE)
        check_masks(targets)  # shapes tell, so this is an error while tracing
        outputs, assigned = seen.dense.outputs, seen.dense.assigned
        large = jnp.take_along_axis(_areas(targets.masks) > self.least_area, assigned.gt_index, axis=1)
        keys = jax.random.split(key, len(assigned.index)) if self.order == "random" else None
        # [B, S] -> [B, limit]: slots among the places that were assigned.
        chosen, valid = jax.vmap(lambda candidate, key: choose(candidate, self.limit, key))(
            assigned.positive & large, keys
        )
        index, gt_index = (jnp.take_along_axis(x, chosen, axis=1) for x in (assigned.index, assigned.gt_index))
        origins = outputs.origins(index)
        if origins.codes is None:
            raise ValueError(self._no_codes())
        canvas = features.canvas_hw
        logits = self._logits(self.pixels(features), origins.codes, origins.places, canvas)
        grid = logits.shape[2], logits.shape[3]
        # The masks of the objects on the grid, once each, whatever the number of places that have them.
        bitmaps = (masks_on_grid(targets.masks, canvas, grid, self.maker.shift) > 0.5).astype(jnp.float32)
        bitmaps = jnp.take_along_axis(bitmaps, gt_index[..., None, None], axis=1)
        boxes = safe(jnp.take_along_axis(targets.boxes, gt_index[..., None], axis=1), valid)
        losses = jax.vmap(lambda x, truth, its: self.loss(x, truth, its, canvas))(logits, bitmaps, boxes)
        total = masked_sum(losses, valid) / jnp.maximum(valid.sum() + self.loss.spare, 1)
        predicted = jnp.take_along_axis(assigned.boxes, chosen[..., None], axis=1)
        masks = self._masks(logits, predicted if self.crop_by == "predicted" else boxes, canvas)
        return {"loss_mask": total}, dataclasses.replace(seen, instances=Instances(predicted, masks, gt_index, valid))

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """``masks/pixels [B, h, w, c]``, the map, and ``masks/logits [B, N, y, x]`` of the given places."""
        codes, places = self._origins(found)
        pixels = self.pixels(features)
        return {"masks/pixels": pixels, "masks/logits": self._logits(pixels, codes, places, features.canvas_hw)}

    def _masks(self, logits: jax.Array, boxes: jax.Array, canvas: Size) -> Masks:
        return jax.vmap(lambda x, its: self.maker.masks(x, its, canvas))(logits, boxes)

    def _logits(self, pixels: jax.Array, codes: jax.Array, places: jax.Array, canvas: Size) -> jax.Array:
        """Logits ``[B, N, y, x]`` of instances with ``codes [B, N, c]`` from ``places [B, N, 4]``."""
        if codes.shape[-1] != self.maker.code:
            raise ValueError(
                f"the dense head gives {codes.shape[-1]} numbers a place, {type(self.maker).__name__} needs "
                f"{self.maker.code}: set model.dense.head.code={self.maker.code}"
            )
        # Geometry and masks are float32 whatever the map was computed in.
        return jax.vmap(lambda x, c, p: self.maker.logits(x, c, p, canvas))(pixels, codes, places)

    def _origins(self, found: Found) -> tuple[jax.Array, jax.Array]:
        """Codes and places of the detections."""
        if found.origins is None:
            raise ValueError(_ONE_STAGE)
        if found.origins.codes is None:
            raise ValueError(self._no_codes())
        return found.origins.codes, found.origins.places

    def _no_codes(self) -> str:
        return f"InstanceMasks needs codes, the dense head gives none: set model.dense.head.code={self.maker.code}"


_ONE_STAGE = (
    "InstanceMasks reads what a dense head says of its places: it is for one-stage models; two-stage ones have "
    "MaskPrediction"
)


class PixelClasses(nn.Module):
    """Trains the pyramid to know the class of each cell of a level; at test it does nothing.

    YOLACT's semantic loss (Bolya et al. 2019, section 3.6): a single convolution, a sigmoid for each class.
    """

    place: ClassVar[str] = "pixel_classes"

    level: int = 3
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, level=LEVELS, weight=WEIGHT)
        super().__post_init__()

    @nn.compact
    def logits(self, features: Features, num_classes: int) -> jax.Array:
        """``[B, h, w, K]`` float32 at the size of the level."""
        (x,) = features.select((self.level,), "the semantic loss")
        return Conv(num_classes, 1, kernel_init=xavier_uniform, name="logits")(x).astype(jnp.float32)

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        if self.is_initializing():
            self.logits(features, setting.num_classes)
        return found

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """``loss_segm``: cross entropy of each class in each cell, summed over classes, mean over cells of images."""
        check_masks(targets)
        logits = self.logits(features, setting.num_classes)
        grid = logits.shape[1], logits.shape[2]
        bitmaps = masks_on_grid(targets.masks, features.canvas_hw, grid) > 0.5
        counts = targets.valid & ~targets.crowd
        # A class is where any of its objects is.  [B, G, h, w] and [B, G, K] -> [B, h, w, K].
        classes = jax.nn.one_hot(targets.labels, setting.num_classes) * counts[..., None]
        truth = jnp.einsum("bghw,bgk->bhwk", jnp.where(counts[..., None, None], bitmaps, 0.0), classes) > 0
        cells = binary_cross_entropy(logits, truth).sum(-1).mean((1, 2))
        return {"loss_segm": self.weight * masked_sum(cells, seen.images) / jnp.maximum(seen.images.sum(), 1)}, seen

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """``pixel_classes/logits [B, h, w, K]``."""
        return {"pixel_classes/logits": self.logits(features, setting.num_classes)}


def _areas(masks: Masks) -> jax.Array:
    """Area ``[B, G]`` of masks in pixels of the image."""
    cells = masks.values.sum((-2, -1), dtype=jnp.float32)
    size = masks.frames[..., 2:] - masks.frames[..., :2]
    return cells * jnp.prod(size, -1) / (masks.values.shape[-2] * masks.values.shape[-1])
