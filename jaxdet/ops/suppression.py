"""Non-maximum suppression with fixed shapes, exact, and without a loop over boxes.

The sequential rule is: go down the scores, keep a box unless an already kept one overlaps it by more than the
threshold.  Here the sorted boxes are taken in blocks.  A block first loses what earlier kept boxes suppress.  On a CPU
what remains is settled 32 boxes at a time: which of them suppress a box is one number, bit by bit, so that the rule is
32 comparisons of numbers, and one of their result with the numbers of all boxes behind.

On accelerators a block is settled at once by iterating "a box stays iff no staying better box suppresses it".  That
recursion is the sequential rule itself, so its only fixed point is the sequential result, and the number of iterations
until nothing changes is the length of the longest chain of suppressions, a handful, not the number of boxes.  They
iterate always as often, since a loop whose end the data say has a GPU wait for its host in each round, and the next
block begins behind the boxes that are settled.  Blocks stop when enough boxes are kept.

Letters in shapes: N candidates, K classes, D detections, M boxes of a block; boxes are in pixels.
"""

import dataclasses
import math
from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.ops.boxes import area, intersection
from jaxdet.ops.devices import backend
from jaxdet.ops.rounding import product, quotient
from jaxdet.ops.selection import largest_first, sorts_at_once, top_k
from jaxdet.ranges import DETECTIONS, SHARE, Range, check_ranges
from jaxdet.structures import Detections

BLOCK = 512
"""Boxes settled together: large enough to fill a vector unit, small enough for a [BLOCK, BLOCK] matrix in cache."""

ROUNDS = 8
"""Iterations of a block on accelerators; few candidates of a detector hang together in longer chains."""

FIRST = 4096
"""The best boxes, to which a TPU looks first, where there are more than can be ordered at once."""

WORD = 32
"""Boxes whose suppressions of another one are the bits of a number."""

CHUNK = 256
"""Kept boxes that a CPU compares with a block at a time where there are places for more than `WHOLE`."""

WHOLE = 1024
"""Up to so many places for kept boxes, comparing all of them is quicker than a loop over the chunks that are filled."""


class _Kept(NamedTuple):
    """What is kept on the way: how many boxes, those boxes ``[limit, 4]``, and which they are ``[limit]`` int32."""

    number: jax.Array
    boxes: jax.Array
    rows: jax.Array


class Suppression(Protocol):
    """From candidates of one image to its detections; a value in a config."""

    @property
    def max_detections(self) -> int: ...

    def __call__(
        self,
        boxes: jax.Array,
        scores: jax.Array,
        valid: jax.Array,
        level: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> Detections:
        """Detections ``[D]``, best first, without masks; ``index`` is the row of the candidate.

        Args:
            boxes: ``[N, K, 4]``, or ``[N, 1, 4]`` where all classes of a candidate have one box.
            scores: ``[N, K]``.
            valid: ``[N]``.
            level: ``[N]`` int32, the pyramid level of each candidate, where there is one.
            labels: ``[N]`` int32, the class of each candidate where it has the score of one class only, ``[N, 1]``.
        """


@dataclasses.dataclass(frozen=True)
class NMS:
    """Greedy suppression: each class of each candidate above ``score_threshold`` competes with those it overlaps.

    ``within``: boxes suppress each other inside a class, or inside a pyramid level (proposals, which have one class).
    ``score_threshold`` None admits every score.  Of equal scores the first candidate comes first, and of one candidate
    the lower class, as in the reference.  Boxes with a side below ``least_side`` pixels of the resized image are left
    out first (torchvision has 0.001 for proposals, 0.01 for detections).
    """

    score_threshold: float | None = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100
    within: Literal["class", "level"] = "class"
    least_side: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, score_threshold=SHARE, iou_threshold=SHARE, max_detections=DETECTIONS)
        check_ranges(self, least_side=Range(0, 1e4))

    def __call__(
        self,
        boxes: jax.Array,
        scores: jax.Array,
        valid: jax.Array,
        level: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> Detections:
        if not len(scores):
            boxes, scores, valid = _one_invalid(scores.shape[1])
            level = labels = jnp.zeros(1, jnp.int32)
        if level is None and self.within == "level":
            raise ValueError(
                'NMS(within="level") needs the level of each candidate; there are none, set within="class"'
            )
        n, classes = scores.shape
        # N * K boxes, candidate-major: row r is class r % K of candidate r // K.
        boxes = jnp.broadcast_to(boxes, (n, classes, 4)).reshape(-1, 4)
        labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), n) if labels is None else labels
        groups = labels if level is None or self.within == "class" else jnp.repeat(level, classes)
        scores = scores.reshape(-1)
        candidate = jnp.repeat(valid, classes) & jnp.isfinite(boxes).all(-1)
        # Strictly above, as in the reference.
        if self.score_threshold is not None:
            candidate &= scores > self.score_threshold
        if self.least_side:
            candidate &= (boxes[:, 2:] - boxes[:, :2] >= self.least_side).all(-1)
        apart = offset_by_group(boxes, groups, candidate)
        kept = nms(apart, scores, candidate, threshold=self.iou_threshold, limit=self.max_detections)
        row = kept.index
        return Detections(boxes[row], scores[row], labels[row], kept.valid, row // classes)


@dataclasses.dataclass(frozen=True)
class FastNMS:
    """YOLACT's suppression (Bolya et al. 2019, section 3.4): a box that is suppressed itself may suppress others.

    In each class the ``per_class`` best candidates are compared all at once, so that there is no sequence of
    decisions; a little too much is removed for it.  Then ``score_threshold`` applies, and the best of all stay.
    """

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    per_class: int = 200
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_ranges(self, score_threshold=SHARE, iou_threshold=SHARE)
        check_ranges(self, per_class=DETECTIONS, max_detections=DETECTIONS)

    def __call__(
        self,
        boxes: jax.Array,
        scores: jax.Array,
        valid: jax.Array,
        level: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> Detections:
        if labels is not None:
            raise ValueError("FastNMS needs the scores of all classes of a candidate: set Selection.pairs_above=None")
        if not len(scores):
            boxes, scores, valid = _one_invalid(scores.shape[1])
        n, classes = scores.shape
        boxes = jnp.broadcast_to(boxes, (n, classes, 4))
        candidate = valid[:, None] & jnp.isfinite(boxes).all(-1) & (scores > self.score_threshold)

        def one_class(boxes: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
            best, row = top_k(scores, min(self.per_class, n))
            # Above the diagonal: row i suppresses column j only if it has the higher score.
            better = jnp.triu(overlaps(boxes[row], boxes[row], self.iou_threshold), 1) & (best > 0)[:, None]
            return jnp.where(better.any(0), 0.0, best), row

        # A candidate that does not count has score 0 and stands where it can suppress nothing.
        safe_boxes = jnp.where(candidate[..., None], boxes, 0.0)
        safe_scores = jnp.where(candidate, scores, 0.0)
        found, rows = jax.vmap(one_class, in_axes=(1, 1))(safe_boxes, safe_scores)  # [K, per_class]
        limit = min(self.max_detections, found.size)
        best, place = top_k(found.reshape(-1), limit)
        spare = (0, self.max_detections - limit)
        is_valid = jnp.pad(best > 0, spare)
        # A place in the flattened [K, per_class] is the class and the rank inside it.
        label = jnp.where(is_valid, jnp.pad(place // found.shape[1], spare), 0).astype(jnp.int32)
        index = jnp.where(is_valid, jnp.pad(rows.reshape(-1)[place], spare), 0).astype(jnp.int32)
        return Detections(safe_boxes[index, label], jnp.pad(best, spare), label, is_valid, index)


def _one_invalid(classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes, scores and validity of one candidate that does not count: no row can be taken from none at all."""
    return jnp.zeros((1, 1, 4)), jnp.zeros((1, classes)), jnp.zeros(1, bool)


@struct.dataclass
class Kept:
    """Indices of kept boxes, best first."""

    index: jax.Array  #: ``[limit]`` int32, 0 where invalid
    valid: jax.Array  #: ``[limit]`` bool


def overlaps(a: jax.Array, b: jax.Array, threshold: float) -> jax.Array:
    """Whether IoU of ``a [A, 4]`` and ``b [B, 4]`` is above the threshold, strictly.

    The product of threshold and union would spare a division, but rounds an IoU of 0.65 to above 0.65.
    """
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - shared
    return quotient(shared, jnp.where(union > 0, union, 1.0)) > threshold


def offset_by_group(boxes: jax.Array, groups: jax.Array, valid: jax.Array) -> jax.Array:
    """Boxes moved apart by group (class or level), so that one pass suppresses within groups only.

    The shift is ``group * (largest coordinate + 1)`` in float32, the reference's arithmetic: with many groups it
    rounds coordinates (to 1/128 pixel at 80 classes), which decides borderline cases the same way as there.  Boxes
    that begin before 0, which the reference has none of, are shifted by as much more.
    """
    known = jnp.where(valid[:, None] & jnp.isfinite(boxes), boxes, 0.0)
    extent = known.max(initial=0.0) - known.min(initial=0.0) + 1.0
    return boxes + product(groups.astype(boxes.dtype), extent)[:, None]


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
    ranked = jnp.where(valid, scores, -jnp.inf)  # invalid ones last
    # Boxes without area have an IoU of 0 with everything: what is invalid cannot suppress, nor spread NaN.
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    none_yet = _Kept(jnp.int32(0), jnp.zeros((limit, 4), boxes.dtype), jnp.zeros(limit, jnp.int32))
    walk = partial(_walk, boxes, threshold=threshold, block=block)
    if sorts_at_once(len(ranked)):
        kept = walk(largest_first(ranked), valid.sum(), none_yet)
        return Kept(kept.rows, jnp.arange(limit) < kept.number)

    def unfinished(state: tuple[jax.Array, _Kept]) -> jax.Array:
        left, kept = state
        return left.any() & (kept.number < limit)

    def next_best(state: tuple[jax.Array, _Kept]) -> tuple[jax.Array, _Kept]:
        left, kept = state
        order = largest_first(jnp.where(left, ranked, -jnp.inf), FIRST)
        return left.at[order].set(False), walk(order, left[order].sum(), kept)

    _, kept = jax.lax.while_loop(unfinished, next_best, (valid, none_yet))
    return Kept(kept.rows, jnp.arange(limit) < kept.number)


def _walk(boxes: jax.Array, order: jax.Array, total: jax.Array, kept: _Kept, *, threshold: float, block: int) -> _Kept:
    """Go down the first ``total`` rows of ``boxes [N, 4]`` in ``order [n]``, to add to ``kept`` what stays."""
    limit = len(kept.rows)
    block = min(block, math.ceil(len(order) / WORD) * WORD)
    order = jnp.pad(order, (0, block))

    def unfinished(state: tuple[jax.Array, _Kept]) -> jax.Array:
        start, kept = state
        return (start < total) & (kept.number < limit)

    def settle(state: tuple[jax.Array, _Kept]) -> tuple[jax.Array, _Kept]:
        start, kept = state
        place = jnp.arange(block)
        index = jax.lax.dynamic_slice_in_dim(order, start, block)
        candidates = boxes[index]
        # Rows from ``total`` on are invalid or fill the last block.
        free = ~_suppressed(kept, candidates, threshold) & (start + place < total)
        # [block, block]: row i has the higher score and would suppress column j.
        better = jnp.triu(overlaps(candidates, candidates, threshold), 1)
        stays, settled = (_settle_all if backend() == "cpu" else _settle_first)(better, free)
        stays &= place < settled
        # Beyond the limit: dropped by the scatter.
        slot = jnp.where(stays, kept.number + jnp.cumsum(stays) - 1, limit)
        added = _Kept(
            kept.number + stays.sum(),
            kept.boxes.at[slot].set(candidates, mode="drop"),
            kept.rows.at[slot].set(index, mode="drop"),
        )
        return start + settled, added

    return jax.lax.while_loop(unfinished, settle, (jnp.int32(0), kept))[1]


def _suppressed(kept: _Kept, candidates: jax.Array, threshold: float) -> jax.Array:
    """Which of a block's boxes a kept one of an earlier block suppresses."""
    # Places that are not filled hold boxes without area, which suppress nothing.
    if backend() != "cpu" or len(kept.boxes) <= WHOLE:
        return overlaps(kept.boxes, candidates, threshold).any(0)

    def look(k: jax.Array, suppressed: jax.Array) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(kept.boxes, k * CHUNK, CHUNK)  # the last chunk begins earlier
        return suppressed | overlaps(some, candidates, threshold).any(0)

    return jax.lax.fori_loop(0, -(-kept.number // CHUNK), look, jnp.zeros(len(candidates), bool))


def _settle_first(better: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of a block's boxes stay, and how many of them, from the best on, a few rounds tell that of.

    A round can change a box only where one before it was changed.  So all before the first that the last round changed
    stay as they are, and that one too.
    """
    better = better & free[:, None]
    before = stays = free
    for _ in range(ROUNDS):
        before, stays = stays, free & ~(better & stays[:, None]).any(0)
    changed = before != stays
    return stays, jnp.where(changed.any(), changed.argmax() + 1, len(free))


def _settle_all(better: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_settle_first`, of all of a block's boxes, so many at a time as a number has bits."""
    size = len(free)
    word = math.gcd(size, WORD)
    bits = jnp.uint32(1) << jnp.arange(word, dtype=jnp.uint32)
    # [size / word, size]: bit i of number w says whether box w * word + i suppresses a box.
    by_word = jnp.where(better.reshape(-1, word, size), bits[:, None], 0).sum(1, dtype=jnp.uint32)

    def settle_word(w: jax.Array, stays: jax.Array) -> jax.Array:
        suppress = by_word[w]
        own = jax.lax.dynamic_slice_in_dim(suppress, w * word, word)
        candidate = jax.lax.dynamic_slice_in_dim(stays, w * word, word)
        kept = jnp.uint32(0)
        for i in range(word):
            kept |= jnp.where(candidate[i] & (own[i] & kept == 0), jnp.uint32(1 << i), jnp.uint32(0))
        # This settles the word's own boxes as well, and leaves those before it: only better boxes suppress.
        return stays & (suppress & kept == 0)

    return jax.lax.fori_loop(0, size // word, settle_word, free), jnp.int32(size)
