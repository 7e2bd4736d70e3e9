"""From what the last head says about each box to a short list of detections."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.ops.suppression import nms, offset_by_group


@struct.dataclass
class Finished:
    """Detections of one image without masks, best first."""

    boxes: jax.Array  #: ``[D, 4]`` float32
    scores: jax.Array  #: ``[D]`` float32
    labels: jax.Array  #: ``[D]`` int32
    valid: jax.Array  #: ``[D]`` bool


@dataclasses.dataclass(frozen=True)
class Finish:
    """Every class of every box above ``score_threshold`` is a candidate; suppression within classes; the best stay."""

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __call__(self, boxes: jax.Array, scores: jax.Array, valid: jax.Array) -> Finished:
        """One image: ``boxes [N, K or 1, 4]`` by class, ``scores [N, K]``, ``valid [N]``.

        Candidates count box-major, class-minor, which decides ties as in the reference.
        """
        if not len(scores):  # no row can be taken from nothing: one box that is not valid
            boxes, scores, valid = jnp.zeros((1, 1, 4)), jnp.zeros((1, scores.shape[1])), jnp.zeros(1, bool)
        n, classes = scores.shape
        boxes = jnp.broadcast_to(boxes, (n, classes, 4)).reshape(-1, 4)
        labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), n)
        scores = scores.reshape(-1)
        candidate = jnp.repeat(valid, classes) & (scores > self.score_threshold) & jnp.isfinite(boxes).all(-1)
        apart = offset_by_group(boxes, labels, candidate)
        kept = nms(apart, scores, candidate, threshold=self.nms_iou, limit=self.max_detections)
        return Finished(boxes[kept.index], scores[kept.index], labels[kept.index], kept.valid)
