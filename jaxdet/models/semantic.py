"""The loss of the semantic branch."""

import jax
import jax.numpy as jnp

from jaxdet.ops import losses
from jaxdet.structures import Targets

IGNORED = 255
"""In semantic targets: the class of this pixel is not known (`jaxdet.data.pipeline.transforms.IGNORED`)."""


def semantic_losses(logits: jax.Array, targets: Targets, weight: float) -> dict[str, jax.Array]:
    """Weighted cross entropy of ``logits [B, H/8, W/8, K]``, mean over the pixels of the batch whose class is known.

    A class from K on that is not ``IGNORED`` makes the loss NaN.  Without any known pixel it is 0.

    Raises:
        ValueError: targets without semantic maps, or with maps of another size.
    """
    if targets.semantic is None:
        raise ValueError(
            "the semantic branch needs semantic maps, the batch has none: set data.train.stuff of a CocoFolder, or "
            "data.train.semantic of Scenes (Tfds has no maps), or take the branch out of the model"
        )
    if targets.semantic.shape != logits.shape[:3]:
        raise ValueError(
            f"semantic targets: expected {logits.shape[:3]} as the logits, got {targets.semantic.shape}: "
            "both must be an eighth of the canvas"
        )
    known = targets.semantic != IGNORED
    labels = jnp.where(known, targets.semantic, 0).astype(jnp.int32)
    total = losses.masked_sum(losses.cross_entropy(logits, labels), known)
    return {"loss_semantic_seg": weight * total / jnp.maximum(known.sum(), 1)}
