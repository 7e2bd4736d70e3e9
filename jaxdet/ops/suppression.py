"""Non-maximum suppression with fixed shapes, exact, and without a loop over boxes.

The sequential rule is: walk down the scores, keep a box unless an already kept one overlaps it by more than the
threshold.  Here the sorted boxes are taken in blocks.  A block first loses what earlier kept boxes suppress; what
remains is settled at once by iterating "a box stays iff no staying better box suppresses it" until nothing
changes.  That recursion is the sequential rule itself, so its only fixed point is the sequential result, and the
number of iterations is the length of the longest chain of suppressions, a handful, not the number of boxes.
Blocks stop when enough boxes are kept.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.ops.boxes import area, intersection

BLOCK = 512
"""Boxes settled together: large enough to fill a vector unit, small enough for a [BLOCK, BLOCK] matrix in cache."""


State: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@struct.dataclass
class Kept:
    """Indices of kept boxes, best first."""

    index: jax.Array  #: ``[limit]`` int32, 0 where invalid
    valid: jax.Array  #: ``[limit]`` bool


def overlaps(a: jax.Array, b: jax.Array, threshold: float) -> jax.Array:
    """Whether IoU of ``a [A, 4]`` and ``b [B, 4]`` is above the threshold, strictly, without a division."""
    shared = intersection(a, b)
    return shared > threshold * (area(a)[:, None] + area(b)[None] - shared)


def offset_by_group(boxes: jax.Array, groups: jax.Array, valid: jax.Array) -> jax.Array:
    """Boxes moved apart by group (class or level), so that one pass suppresses within groups only.

    The shift is ``group * (largest coordinate + 1)`` in float32, the reference's arithmetic: with many groups it
    rounds coordinates (to 1/128 pixel at 80 classes), which decides borderline cases the same way as there.
    """
    largest = jnp.where(valid[:, None] & jnp.isfinite(boxes), boxes, 0.0).max(initial=0.0)
    return boxes + (groups.astype(boxes.dtype) * (largest + 1.0))[:, None]


def nms(
    boxes: jax.Array, scores: jax.Array, valid: jax.Array, *, threshold: float, limit: int, block: int = BLOCK
) -> Kept:
    """Indices of the first ``limit`` boxes that suppression keeps.

    ``boxes [N, 4]``, ``scores [N]``, ``valid [N]``; an invalid slot, and one with a NaN, is never kept and suppresses
    nothing.  Equal scores count in index order.  A box is suppressed at IoU strictly above ``threshold``.
    """
    if scores.shape[0] == 0:
        return Kept(jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool))
    valid = valid & jnp.isfinite(scores) & jnp.isfinite(boxes).all(-1)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    block = min(block, order.shape[0])
    blocks = math.ceil(order.shape[0] / block)
    order = jnp.pad(order, (0, blocks * block - order.shape[0]))
    total = valid.sum()
    boxes = jnp.where(valid[:, None], boxes, 0.0)

    def unfinished(state: State) -> jax.Array:
        step, count, _, _ = state
        return (step * block < total) & (count < limit)

    def settle(state: State) -> State:
        step, count, kept_boxes, kept_index = state
        rows = step * block + jnp.arange(block)
        index = jax.lax.dynamic_slice_in_dim(order, step * block, block)
        candidates = boxes[index]
        filled = jnp.arange(limit) < count
        free = ~(overlaps(kept_boxes, candidates, threshold) & filled[:, None]).any(0) & (rows < total)
        stays = _settle_block(candidates, free, threshold)
        slot = jnp.where(stays, count + jnp.cumsum(stays) - 1, limit)  # beyond the limit: dropped by the scatter
        return (
            step + 1,
            count + stays.sum(),
            kept_boxes.at[slot].set(candidates, mode="drop"),
            kept_index.at[slot].set(index, mode="drop"),
        )

    start = (jnp.int32(0), jnp.int32(0), jnp.zeros((limit, 4), boxes.dtype), jnp.zeros(limit, order.dtype))
    _, count, _, kept = jax.lax.while_loop(unfinished, settle, start)
    return Kept(kept.astype(jnp.int32), jnp.arange(limit) < count)


def _settle_block(boxes: jax.Array, free: jax.Array, threshold: float) -> jax.Array:
    """Which of ``boxes [M, 4]``, in order of score, stay among themselves; only ``free [M]`` ones count."""
    better = jnp.triu(overlaps(boxes, boxes, threshold), 1) & free[:, None] & free

    def changed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (state[0] != state[1]).any()

    def update(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        stays = state[1]
        return stays, free & ~(better & stays[:, None]).any(0)

    return jax.lax.while_loop(changed, update, (jnp.zeros_like(free), free))[1]
