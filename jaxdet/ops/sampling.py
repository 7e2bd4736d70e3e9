"""Choosing, among matched boxes, the few that a head is trained on.  N candidates, S samples."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.ops.matching import Match
from jaxdet.ops.selection import largest_first, last_of_largest, top_k
from jaxdet.ranges import DETECTIONS, SHARE, check_ranges, positive


@struct.dataclass
class Choice:
    """S chosen boxes: positives first, then negatives, then invalid slots."""

    index: jax.Array  #: ``[S]`` int32, position among the N candidates; 0 where invalid
    positive: jax.Array  #: ``[S]`` bool
    valid: jax.Array  #: ``[S]`` bool


def choose(candidate: jax.Array, limit: int, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Up to ``limit`` indices of the true entries of ``candidate [N]``.

    With a key the choice is uniform without replacement, in random order; without one it is the first, ascending.
    Returns ``index [limit]`` int32 and ``valid [limit]``; where fewer are true the tail is invalid.
    """
    n = candidate.shape[0]
    priority = jax.random.uniform(key, (n,)) if key is not None else jnp.arange(n, 0, -1, dtype=jnp.float32)
    if key is None and n > 2**24:  # float32 counts exactly up to there
        raise ValueError(f"the first of at most {2**24} candidates can be told apart, got {n}; sample at random")
    # The largest of random priorities are a uniform draw without replacement, in a fixed shape.
    value, index = top_k(jnp.where(candidate, priority, -1.0), min(limit, n))
    pad = limit - value.shape[0]
    return jnp.pad(index, (0, pad)), jnp.pad(value, (0, pad), constant_values=-1.0) >= 0.0


@dataclasses.dataclass(frozen=True)
class Sampler:
    """At most ``number`` boxes of which at most a share of ``positive_fraction`` is positive; negatives fill up.

    ``order="first"`` takes the lowest indices in place of random ones: repeatable without a key, for comparisons
    with other implementations.
    """

    number: int = 256
    positive_fraction: float = 0.5
    order: Literal["random", "first"] = "random"

    def __post_init__(self) -> None:
        check_ranges(self, number=DETECTIONS, positive_fraction=SHARE)

    @property
    def max_positive(self) -> int:
        """The first ``max_positive`` slots hold all positives."""
        return int(self.number * self.positive_fraction)

    def __call__(self, match: Match, key: jax.Array) -> Choice:
        """Choose among the boxes of a match."""
        positive_key, negative_key = jax.random.split(key) if self.order == "random" else (None, None)
        positive, is_positive = choose(match.positive, self.max_positive, positive_key)
        # As many negatives as there are slots, since there may be no positive at all; those beyond are dropped next.
        negative, is_negative = choose(match.negative, self.number, negative_key)
        is_negative &= jnp.arange(self.number) < self.number - is_positive.sum()
        index = jnp.concatenate([positive, negative])
        valid = jnp.concatenate([is_positive, is_negative])
        # Valid ones to the front, positives still before negatives.
        front = largest_first(valid.astype(jnp.float32))[: self.number]
        valid = valid[front]
        # The first max_positive candidates were positives, wherever they stand now.
        return Choice(jnp.where(valid, index[front], 0), valid & (front < self.max_positive), valid)


def hardest(values: jax.Array, candidate: jax.Array, number: jax.Array) -> jax.Array:
    """Weights ``[..., N]``, 0 to 1, of the ``number [...]`` largest ``values [..., N]`` among the candidates.

    Values are not negative; those of others, NaN included, have no effect.  Values that tie for the last places share
    them, so that the weighted sum is that of the largest ``number`` whatever their order.  No gradient flows.

    There is no sort (`selection.last_of_largest`).
    """
    values = jax.lax.stop_gradient(values.astype(jnp.float32))
    number = jnp.minimum(number, candidate.sum(-1)).astype(jnp.int32)
    # The bits of floats that are not negative, read as whole numbers, are in the order of the floats; those of -0.0 are
    # the lowest of all, and become those of 0.  Below them all is what is no candidate.
    bits = jnp.maximum(jax.lax.bitcast_convert_type(values, jnp.int32), 0).astype(jnp.uint32)
    keys = jnp.where(candidate, bits + 1, 0)
    limit = last_of_largest(keys, number)[..., None]
    above, tied = keys > limit, (keys == limit) & candidate
    share = (number - above.sum(-1)) / jnp.maximum(tied.sum(-1), 1)
    return above + tied * share[..., None]


@dataclasses.dataclass(frozen=True)
class HardNegatives:
    """Keeps, beside all positives of an image, ``ratio`` times as many negatives, those with the largest loss.

    SSD (Liu et al. 2016, section 2.2) and YOLACT.  In an image without positives all negatives count, as in the
    reference.
    """

    ratio: float = 3.0

    def __post_init__(self) -> None:
        check_ranges(self, ratio=positive(1e6))

    def __call__(self, loss: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        """Weights ``[..., N]`` of the losses ``[..., N]`` of positives and negatives, 0 to 1."""
        number = jnp.where(positive.any(-1), (self.ratio * positive.sum(-1)).astype(jnp.int32), negative.sum(-1))
        return positive + hardest(loss, negative, number)
