"""Loss terms, element by element in float32; callers weigh, sum and normalise.

Sources: Fast R-CNN (Girshick 2015, eq. 3) for smooth L1, Mask R-CNN (He et al. 2017, section 3) for the mask term.
"""

import jax
import jax.numpy as jnp
import optax


def l1(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Absolute difference, elementwise."""
    return jnp.abs(predicted.astype(jnp.float32) - target)


def smooth_l1(predicted: jax.Array, target: jax.Array, beta: float = 1.0) -> jax.Array:
    """``d^2 / (2 beta)`` for a difference ``d`` below beta, ``d - beta / 2`` above, elementwise."""
    return optax.losses.huber_loss(predicted.astype(jnp.float32), target, delta=beta) / beta


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
    difference = jnp.where(counts, predicted.astype(jnp.float32) - target, 0.0)
    return 0.5 * jnp.square(difference).sum() / jnp.maximum(counts.sum(), 1)
