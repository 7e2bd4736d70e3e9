"""Sides of boxes from masks: the boundary refinement of RDSNet (Wang et al. 2020, section 3.3), MBRM.

A mask says where an object ends, but it is blurred and may have holes and stains; a regressed box says about where to
look.  Bayes' rule puts the two together.  For each side of a box, over the columns or rows i of the image's pixels:

- the prior ``p(i)`` is a Gaussian around the regressed side, 0 from where it falls to 0.0044;
- the likelihood is ``l(i) = sigmoid((w * m)(i) + b)``, where m is the mask's profile (`ops.profiles`) and w a kernel of
  2s + 1 weights, for left and upper sides as it is and for right and lower ones turned around;
- the posterior is ``q = p l / sum(p l)``, and the refined side is where it is greatest.

**Pixels and boxes.**  All of this counts pixels: a side *is* the first or the last column (row) that an object covers.
jaxdet's boxes are continuous, and the pixel i is ``[i, i + 1)``.  So a box has x1 for its first column and x2 - 1 for
its last one.  `to_pixels`, `to_boxes` and `covered_pixels` know of it and nothing else does: all other functions have
rectangles of pixels ``[..., 4]``, the first column, first row, last column and last row.

In logarithms, so that nothing underflows.  For one image, over any leading axes.  Letters in shapes: S pixels of an
axis of the canvas, s the reach of the kernel to either side.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxdet.ops.profiles import Profiles

_LEAST_LOG_PRIOR = math.log(0.0044)
"""The reference's bound of the prior: 3.29 standard deviations away."""

_TO_LAST = (0.0, 0.0, 1.0, 1.0)
"""How far the upper end of a box lies behind its last pixel; lower ends lie on the first one."""


def to_pixels(boxes: jax.Array) -> jax.Array:
    """The rectangle of pixels of boxes ``[..., 4]``, float32 and not rounded: from the first to the last one.

    The convention of mmdetection 1.x and of RDSNet's code; everywhere else a box ends behind its last pixel.
    """
    return boxes - jnp.asarray(_TO_LAST)


def to_boxes(pixels: jax.Array) -> jax.Array:
    """The inverse of `to_pixels`."""
    return pixels + jnp.asarray(_TO_LAST)


def covered_pixels(boxes: jax.Array) -> jax.Array:
    """The rectangle of pixels ``[..., 4]`` that boxes have a part of, whole numbers in float32."""
    return jnp.concatenate([jnp.floor(boxes[..., :2]), jnp.ceil(boxes[..., 2:]) - 1], -1)


def log_posteriors(
    profiles: Profiles, pixels: jax.Array, weights: jax.Array, bias: jax.Array, gamma: float
) -> list[jax.Array]:
    """Logarithms of the posteriors of left, upper, right and lower side, ``[..., S]`` each; -inf where one is 0.

    Args:
        profiles: of masks, ``[..., S]``.
        pixels: ``[..., 4]``, the regressed sides.
        weights: ``[2s + 1]``.
        bias: ``[1]``.
        gamma: standard deviation of the prior, as a share of the box's width or height; it is at least a pixel.
    """
    ends = []
    for joint, possible in _joints(profiles, pixels, weights, bias, gamma):
        joint = jnp.where(possible, joint, -jnp.inf)
        # A prior of 0 everywhere is no distribution: -inf stays, where -inf - (-inf) would be NaN.
        ends.append(joint - jnp.where(possible.any(-1), jax.nn.logsumexp(joint, -1), 0.0)[..., None])
    return [ends[axis][..., end, :] for end in (0, 1) for axis in (0, 1)]


def refine(profiles: Profiles, pixels: jax.Array, weights: jax.Array, bias: jax.Array, gamma: float) -> jax.Array:
    """Refined rectangles ``[..., 4]``, whole numbers in float32; arguments as in `log_posteriors`.

    Of equally likely pixels it is the first one, as in the reference; so what a mask says nothing of is rounded to the
    nearest pixel.  A side with no pixel of the image near it, or a profile that is not finite, stays as it was.  So do
    two opposite sides that would pass each other.
    """
    sides = []
    for side, posterior in enumerate(log_posteriors(profiles, pixels, weights, bias, gamma)):
        known = jnp.isfinite(posterior.max(-1))  # the greatest of numbers with a NaN is NaN
        sides.append(jnp.where(known, posterior.argmax(-1).astype(jnp.float32), pixels[..., side]))
    refined = jnp.stack(sides, -1)
    crossed = refined[..., 2:] < refined[..., :2]
    return jnp.where(jnp.concatenate([crossed, crossed], -1), pixels, refined)


def boundary_loss(
    profiles: Profiles,
    pixels: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    weights: jax.Array,
    bias: jax.Array,
    gamma: float,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of the posteriors with the true sides, ``-log q(t)``.

    Args:
        profiles: of masks, ``[..., S]``.
        pixels: ``[..., 4]``, the regressed sides.
        targets: ``[..., 4]``, the true sides, whole numbers; those outside of the image are moved to its border.
        valid: ``[...]`` bool, which rectangles count; others, and those that are not finite, may hold anything.
        weights: as in `log_posteriors`.
        bias: as in `log_posteriors`.
        gamma: as in `log_posteriors`.

    Returns:
        The loss ``[..., 4]`` of each side, and which of them count, bool ``[..., 4]``: where the prior is 0 at the true
        side no mask could move the box there, and the loss, which would be infinite, is 0.
    """
    # Made harmless before the logarithms: a NaN that is only left out afterwards still has a gradient of NaN.
    fine = valid & jnp.isfinite(pixels).all(-1) & jnp.isfinite(targets).all(-1)
    fine &= jnp.isfinite(profiles.columns).all(-1) & jnp.isfinite(profiles.rows).all(-1)
    pixels, targets = (jnp.where(fine[..., None], rectangle, 0.0) for rectangle in (pixels, targets))
    columns, rows = (jnp.where(fine[..., None], profile, 0.0) for profile in (profiles.columns, profiles.rows))
    sides = targets.reshape(*fine.shape, 2, 2)
    losses, counts = [], []
    joints = _joints(Profiles(columns, rows, profiles.hw), pixels, weights, bias, gamma)
    for axis, (joint, possible) in enumerate(joints):
        target = jnp.clip(sides[..., axis], 0, profiles.hw[1 - axis] - 1).astype(jnp.int32)[..., None]
        counts.append(fine[..., None] & jnp.take_along_axis(possible, target, -1)[..., 0])
        # Where no pixel is possible this is -inf and does not count; `where` stops the NaN of its gradient.
        total = jax.nn.logsumexp(jnp.where(possible, joint, -jnp.inf), -1)
        losses.append(jnp.where(counts[-1], total - jnp.take_along_axis(joint, target, -1)[..., 0], 0.0))
    # [..., end, axis], as in a rectangle.
    loss, counted = (jnp.stack(both, -1).reshape(*fine.shape, 4) for both in (losses, counts))
    return loss, counted


def _joints(
    profiles: Profiles, pixels: jax.Array, weights: jax.Array, bias: jax.Array, gamma: float
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """For x and for y ``log p + log l`` of both ends, as if the prior were nowhere 0, and where it is not.

    All ``[..., 2, S]``.
    """
    kernels = jnp.stack([weights, weights[::-1]], -1)
    for axis, profile in enumerate((profiles.columns, profiles.rows)):
        ends = pixels.reshape(*pixels.shape[:-1], 2, 2)[..., axis]
        # The reference's width, from the first to the last pixel; a box turned inside out gets the least one.
        deviation = jnp.maximum(gamma * (ends[..., 1] - ends[..., 0]), 1.0)
        index = jnp.arange(profile.shape[-1])
        log_prior = -jnp.square(index - ends[..., None]) * (0.5 / jnp.square(deviation))[..., None, None]
        log_likelihood = jax.nn.log_sigmoid(_correlate(profile, kernels) + bias)
        possible = (log_prior > _LEAST_LOG_PRIOR) & (index < profiles.hw[1 - axis])
        yield log_prior + log_likelihood, possible


def _correlate(profile: jax.Array, kernels: jax.Array) -> jax.Array:
    """``profile [..., S]`` under ``kernels [2s + 1, n]``: ``[..., n, S]``; torch's ``conv1d``, 0 outside of it."""
    size, pixels = len(kernels), profile.shape[-1]
    padded = jnp.pad(profile, [(0, 0)] * (profile.ndim - 1) + [(size // 2, size // 2)])
    windows = padded[..., jnp.arange(size)[:, None] + jnp.arange(pixels)]
    # "highest", because an accelerator would otherwise round to bfloat16 or TF32.
    return jnp.einsum("...ki,kn->...ni", windows, kernels, precision="highest")
