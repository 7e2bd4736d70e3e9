"""The mask IoU branch: trained on the last step's masks, at test it rates those of the detections."""

import jax
import jax.numpy as jnp

from jaxdet.models.branches import Losses
from jaxdet.models.mask_loop import MaskPass
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.ops import losses
from jaxdet.ops.boxes import safe
from jaxdet.ops.masks import mask_iou_targets
from jaxdet.structures import Targets


def mask_iou_losses(head: MaskIoUHead, last: MaskPass, targets: Targets, num_classes: int) -> Losses:
    """How far the predicted IoU of each positive's mask is from the true one (Huang et al. 2019, section 3.3).

    Gradients flow on into mask head and features, as in the reference; the weight of the step has no part in it.
    """
    samples = last.samples
    boxes, labels = safe(samples.boxes, samples.positive), jnp.where(samples.positive, samples.labels, 0)
    truth = mask_iou_targets(
        targets.masks, targets.frames, boxes, samples.gt_index, samples.positive, last.logits, last.truth
    )
    return {"loss_mask_iou": losses.mask_iou(rate_masks(head, last.crops, last.logits, labels, num_classes), truth)}


def rate_masks(
    head: MaskIoUHead, crops: jax.Array, logits: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
    """Predicted IoU ``[B, N]``, float32, of masks ``logits [B, N, m, m]`` of class ``labels [B, N]``; not bounded."""
    rated = head(crops, logits.reshape(-1, *logits.shape[2:]), num_classes)
    own = jnp.take_along_axis(rated, labels.reshape(-1, 1), axis=1)
    return own.reshape(labels.shape).astype(jnp.float32)
