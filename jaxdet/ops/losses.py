"""Losses in float32, one value for each element or box; callers weigh, sum and normalise.

The loss of a model is a value in its config: ``class_loss=Focal()``, ``box_loss=SmoothL1(beta=1 / 9)``.

Class losses take logits ``[..., K]``, with a column more where background has one, and labels ``[...]`` int32, where K
stands for background, and give ``[...]``.
Box losses take the coder, reference boxes ``[..., 4]``, predicted deltas ``[..., 4]`` and true boxes ``[..., 4]``, and
give ``[...]``; references and true boxes need positive sides, so callers replace those of invalid slots before
(`boxes.safe`), or gradients are NaN.

K is the number of classes; boxes are (x1, y1, x2, y2) in pixels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from jaxdet.ops.boxes import BoxCoder, DistanceCoder, area
from jaxdet.ranges import SHARE, WEIGHT, Range, check_ranges


class ClassLoss(Protocol):
    """A loss of class logits, given labels ``[...]``, and what such logits mean.

    Unless it says otherwise each class is a sigmoid of its own, so that there are K logits and background is none.
    """

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array: ...

    def columns(self, num_classes: int) -> int:
        """How many logits a place has."""
        return num_classes

    def scores(self, logits: jax.Array) -> jax.Array:
        """The probability of each class, background left out: ``[..., K]``."""
        return jax.nn.sigmoid(logits)


class BoxLoss(Protocol):
    """A loss of box deltas, given reference and true boxes."""

    def __call__(self, coder: BoxCoder, references: jax.Array, deltas: jax.Array, boxes: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(ClassLoss):
    """Sigmoid cross entropy of each class by itself, summed over classes; background is 0 in all of them.

    ``weights``: see `class_weights`.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, weights=WEIGHT)

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        classes = logits.shape[-1]
        # Background has label K, for which one_hot of K classes gives all zeros.
        loss = binary_cross_entropy(logits, jax.nn.one_hot(labels, classes)).sum(-1)
        return loss * class_weights(self.weights, labels, classes)


@dataclasses.dataclass(frozen=True)
class Focal(ClassLoss):
    """Focal loss (Lin et al. 2017, eq. 5), summed over classes.

    Each class is a sigmoid of its own.  ``gamma`` plays down what is classified well already, so that the many places
    of background do not drown the few objects; ``alpha`` weighs objects, ``1 - alpha`` the background.
    ``weights``: see `class_weights`.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, alpha=SHARE, gamma=Range(0, 100), weights=WEIGHT)

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        classes = logits.shape[-1]
        targets = jax.nn.one_hot(labels, classes)
        logits = logits.astype(jnp.float32)
        loss = optax.losses.sigmoid_focal_loss(logits, targets, alpha=self.alpha, gamma=self.gamma).sum(-1)
        return loss * class_weights(self.weights, labels, classes)


@dataclasses.dataclass(frozen=True)
class CrossEntropy(ClassLoss):
    """Softmax cross entropy over the classes and, behind them, background; ``weights``: see `class_weights`."""

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, weights=WEIGHT)

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(logits, labels) * class_weights(self.weights, labels, logits.shape[-1] - 1)

    def columns(self, num_classes: int) -> int:
        return num_classes + 1

    def scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)[..., :-1]


@dataclasses.dataclass(frozen=True)
class SmoothL1:
    """``d^2 / (2 beta)`` where a delta differs by d < beta, ``d - beta / 2`` above, summed over the deltas of a box.

    Fast R-CNN (Girshick 2015, eq. 3), with the place of the bend as a setting.  Beta 0 leaves no bend: the absolute
    difference (L1), as in detectron2, so that an override can turn either loss into the other.
    """

    beta: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, beta=Range(0, 1e6))

    def __call__(self, coder: BoxCoder, references: jax.Array, deltas: jax.Array, boxes: jax.Array) -> jax.Array:
        target, deltas = coder.encode(references, boxes), deltas.astype(jnp.float32)
        if self.beta == 0:
            return jnp.abs(deltas - target).sum(-1)
        # optax's Huber loss is that times beta.
        return (optax.losses.huber_loss(deltas, target, delta=self.beta) / self.beta).sum(-1)


@dataclasses.dataclass(frozen=True)
class GIoU:
    """One minus the generalised IoU of the decoded boxes (Rezatofighi et al. 2019, algorithm 1); 0 to 2.

    Where IoU is 0 whatever the distance, the second term still pulls boxes together: it is the share of the smallest
    box around both that neither of them covers.
    """

    def __call__(self, coder: BoxCoder, references: jax.Array, deltas: jax.Array, boxes: jax.Array) -> jax.Array:
        predicted = coder.decode(references, deltas)
        low = jnp.maximum(predicted[..., :2], boxes[..., :2])
        high = jnp.minimum(predicted[..., 2:], boxes[..., 2:])
        shared = jnp.prod(jnp.maximum(high - low, 0.0), -1)
        union = area(predicted) + area(boxes) - shared
        around = jnp.maximum(predicted[..., 2:], boxes[..., 2:]) - jnp.minimum(predicted[..., :2], boxes[..., :2])
        # The reference's bound of both denominators.
        hull = jnp.maximum(jnp.prod(around, -1), 1e-6)
        return 1.0 - (shared / jnp.maximum(union, 1e-6) - (hull - union) / hull)


def centerness(references: jax.Array, boxes: jax.Array) -> jax.Array:
    """How near the centre of each reference is to that of its box, 1 in the middle, 0 at the border (FCOS, eq. 3).

    Both ``[..., 4]``; 0 where the centre of the reference is outside of the box.
    """
    sides = DistanceCoder().encode(references, boxes)
    low, high = sides[..., :2], sides[..., 2:]
    ratio = jnp.minimum(low, high) / jnp.maximum(jnp.maximum(low, high), 1e-6)
    return jnp.sqrt(jnp.prod(jnp.maximum(ratio, 0.0), -1))


def class_weights(weights: Sequence[float] | None, labels: jax.Array, num_classes: int) -> jax.Array:
    """What a place counts by its label: ``[...]`` float32, or the number 1 without weights.

    ``weights`` are those of the classes 0..K-1 and, if there is one more, of background, which else counts 1.  The loss
    is divided by the number of places as before: weights say how much more a class counts, not what share it has.

    Raises:
        ValueError: as `check_class_weights`.
    """
    if weights is None:
        return jnp.ones((), jnp.float32)
    check_class_weights(weights, num_classes)
    return jnp.asarray([*weights, 1.0][: num_classes + 1], jnp.float32)[labels]


def check_class_weights(weights: Sequence[float], num_classes: int) -> None:
    """ValueError if there are not K or K + 1 weights, or all are 0."""
    if len(weights) not in (num_classes, num_classes + 1) or not any(weights):
        raise ValueError(
            f"class_loss.weights: expected {num_classes} numbers that are not all 0, one for each class, or one more "
            f"for background, got {weights}"
        )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross entropy ``[...]`` of ``logits [..., K]`` with integer ``labels [...]``."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Sigmoid cross entropy, elementwise; ``targets`` are 0..1."""
    return optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum of ``values`` where ``mask``; what stands elsewhere, NaN included, has no effect on value or gradient.

    The gradient is safe only if the values elsewhere were computed from safe inputs; see ``boxes.safe``.
    """
    return jnp.where(mask, values, 0.0).sum()


def mask_iou(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Half the mean squared error of predicted IoUs, over those whose ``target`` is positive; 0 where there is none.

    Shapes agree; invalid slots have target 0, and what is predicted for them, NaN included, has no effect.  Mask
    Scoring R-CNN (Huang et al. 2019); that a mask which misses its object does not count is the reference's rule.
    """
    counts = target > 0
    # Replaced before squaring: the square of a NaN that is only left out afterwards still has a gradient of NaN.
    difference = jnp.where(counts, predicted.astype(jnp.float32) - target, 0.0)
    return 0.5 * jnp.square(difference).sum() / jnp.maximum(counts.sum(), 1)
