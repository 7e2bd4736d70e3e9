"""Limits of one prediction: the threshold of suppression and the number of detections as values of the program.

Both are settings of a model, and another setting is another program.  Here they are replaced, inside the program, by
values that come with each call, so that any number of them compiles once.
"""

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdet.ops.suppression import Suppression
from jaxdet.structures import Detections

_M = TypeVar("_M")


@struct.dataclass
class Limits:
    """What a call asks of suppression."""

    iou_threshold: Any  #: ``[]`` float32, IoU above which the better box of a class suppresses the other
    max_detections: Any  #: ``[]`` int32, detections of an image, at most those of the model


@dataclasses.dataclass(frozen=True)
class Limited:
    """A `Suppression` that is another one but for these limits; what it leaves has as many slots as before."""

    suppression: Any
    limits: Limits

    @property
    def max_detections(self) -> int:
        """The number of slots."""
        slots: int = self.suppression.max_detections
        return slots

    def __call__(
        self,
        boxes: jax.Array,
        scores: jax.Array,
        valid: jax.Array,
        level: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> Detections:
        suppression = dataclasses.replace(self.suppression, iou_threshold=self.limits.iou_threshold)
        found: Detections = suppression(boxes, scores, valid, level, labels)
        # They come best first, so that a lower limit keeps the first of them.
        few = found.valid & (jnp.arange(self.max_detections) < self.limits.max_detections)
        return dataclasses.replace(found, valid=few, index=jnp.where(few, found.index, 0))


def suppression_of(model: Any) -> Suppression:
    """What makes the detections of a model at test.

    Raises:
        ValueError: the model does not say where it is.
    """
    found: Any = model
    for name in _path(model):
        found = getattr(found, name)
    return found


def with_limits(model: _M, limits: Limits) -> _M:
    """The model with these limits in place of its settings; parts behind suppression read them too."""
    return _replaced(model, _path(model), Limited(suppression_of(model), limits))


def limits_of(model: Any, iou_threshold: float | None = None, max_detections: int | None = None) -> Limits | None:
    """Limits for a call; what is None stays as the model has it, and if both are, there are none.

    Raises:
        ValueError: a threshold outside of 0 to 1, or no whole number from 1 to the detections of the model.
    """
    if iou_threshold is None and max_detections is None:
        return None
    suppression: Any = suppression_of(model)
    threshold = suppression.iou_threshold if iou_threshold is None else iou_threshold
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.floating) or not 0 <= threshold <= 1:
        raise ValueError(f"NMS threshold: expected an IoU from 0 to 1, got {threshold!r}")
    most = suppression.max_detections
    number = most if max_detections is None else max_detections
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"max_detections: expected a whole number from 1 to {most}, got {number!r}")
    if number > most:
        key = ".".join(("model", *_path(model), "max_detections"))
        raise ValueError(
            f"max_detections: expected at most the {most} that the model has room for, got {number}; set {key}={number}"
        )
    return Limits(np.float32(threshold), np.int32(number))


def _path(model: Any) -> tuple[str, ...]:
    """Names of the attributes that lead to the suppression of a model."""
    key = getattr(type(model), "suppression_key", None)
    if key is None:
        raise ValueError(
            f"limits of a prediction: expected a model that says where its suppression is, {type(model).__name__} does "
            "not: give it a class attribute suppression_key, as TwoStage has"
        )
    return tuple(key.split("."))


def _replaced(owner: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy of a module or dataclass with another value at the end of the path."""
    if not path:
        return value
    change = {path[0]: _replaced(getattr(owner, path[0]), path[1:], value)}
    return owner.clone(**change) if isinstance(owner, nn.Module) else dataclasses.replace(owner, **change)
