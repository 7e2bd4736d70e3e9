"""One-stage detection as one reads it: features, a dense detector, parts."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.dense import DenseDetector, DenseOutputs
from jaxdet.models.features import (
    Dtype,
    Losses,
    Normalization,
    extract_features,
    feature_intermediates,
    in_frozen_backbone,
    targets_of,
    without_fillers,
)
from jaxdet.models.parts.part import Found, Part, Seen, Setting, TrainedPlaces, with_places
from jaxdet.models.roi.schedule import check_unshared
from jaxdet.ranges import CLASSES, check_ranges
from jaxdet.structures import Batch, Detections, Features


class OneStage(nn.Module):
    """RetinaNet (Lin et al. 2017), and with ``parts`` behind it detectors that also predict masks and the like.

    ``dense`` predicts class and box of every place of the pyramid.  ``normalization`` and ``dtype`` are as
    in `TwoStage`.
    """

    num_classes: int
    backbone: nn.Module
    neck: nn.Module
    dense: DenseDetector
    parts: tuple[Part, ...] = ()
    normalization: Normalization = Normalization()
    dtype: Dtype = "float32"
    preserve_adopted_names: ClassVar[bool] = True
    suppression_key: ClassVar[str] = "dense.test.suppression"

    def __post_init__(self) -> None:
        check_ranges(self, num_classes=CLASSES)
        # Linen modules are frozen dataclasses; the names must be there before linen adopts the parts.
        object.__setattr__(self, "parts", with_places(self.parts))
        super().__post_init__()

    def setup(self) -> None:
        check_unshared({"dense": self.dense, "parts": self.parts})

    def losses(self, batch: Batch, key: jax.Array) -> tuple[Losses, Losses]:
        """Loss terms by name, whose sum is minimised, and metrics; ``key`` drives what is sampled."""
        targets_of(batch)  # fails before the features are computed
        features = self.features(batch)
        # Behind the features: fillers have no loss, but their images pass the backbone as all others do.
        batch = without_fillers(batch)
        targets = targets_of(batch)
        outputs = self.dense(features, batch.true_hw, self.num_classes)
        dense_key, *part_keys = jax.random.split(key, 1 + len(self.parts))
        terms, assigned = self.dense.losses(outputs, batch.true_hw, targets, dense_key)
        seen = Seen([], TrainedPlaces(outputs, assigned))
        for place, (part, part_key) in enumerate(zip(self.parts, part_keys, strict=True)):
            seen = dataclasses.replace(
                seen, found=partial(self._found, features, outputs, batch.true_hw, self.parts[:place])
            )
            more, seen = part.losses(features, seen, targets, Setting(self.num_classes, ()), part_key)
            terms |= more
        return terms, seen.metrics

    def predict(self, batch: Batch) -> Detections:
        """Detections of a batch, in coordinates of the resized images."""
        features = self.features(batch)
        outputs = self.dense(features, batch.true_hw, self.num_classes)
        return self._found(features, outputs, batch.true_hw, self.parts).detections

    def _found(self, features: Features, outputs: DenseOutputs, true_hw: jax.Array, parts: Sequence[Part]) -> Found:
        """The detections, with what these parts add to them."""
        detections = self.dense.detections(outputs, true_hw, self.dense.test)
        found = Found(detections, outputs.origins(detections.index))
        for part in parts:
            found = part(features, found, Setting(self.num_classes, ()))
        return found

    def intermediates(self, batch: Batch, index: jax.Array | None = None) -> dict[str, Any]:
        """What is computed on the way to the detections, by name.

        Args:
            batch: images.
            index: ``[B, N]`` int32, places counted over all levels; None: those of the model's own detections.

        Returns:
            ``backbone/{level}`` and ``pyramid/{level}`` (`feature_intermediates`); ``dense/{level}/logits`` and
            ``deltas`` (`DenseDetector.intermediates`); and what the parts compute for the places
            (`InstanceMasks.intermediates`).
        """
        named = feature_intermediates(
            batch, self.backbone, self.neck, normalization=self.normalization, dtype=self.dtype
        )
        features = self.features(batch)
        outputs = self.dense(features, batch.true_hw, self.num_classes)
        named |= self.dense.intermediates(outputs, "dense")
        found = self.dense.detections(outputs, batch.true_hw, self.dense.test)
        if index is not None:
            # A place as it stands: its box is not moved, and its class is the first.
            boxes, zeros = outputs.origins(index).places, jnp.zeros_like(index)
            found = Detections(boxes, jnp.ones(index.shape), zeros, jnp.ones(index.shape, bool), index)
        for part in self.parts:
            given = Found(found, outputs.origins(found.index))
            named |= part.intermediates(features, given, Setting(self.num_classes, ()), named)
        return named

    def features(self, batch: Batch) -> Features:
        """The pyramid of a batch of images."""
        return extract_features(batch, self.backbone, self.neck, normalization=self.normalization, dtype=self.dtype)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path is not trained (stem and first stages of the backbone)."""
        return in_frozen_backbone(self.backbone, path)
