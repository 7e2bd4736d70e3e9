"""Targets of mask heads."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdet.ops.roi_align import make_lattice, sample_average


def mask_targets(
    masks: jax.Array, frames: jax.Array, boxes: jax.Array, gt_index: jax.Array, valid: jax.Array, size: int = 28
) -> jax.Array:
    """What a mask head should predict inside each box: ``[B, S, size, size]`` float32, 0 or 1.

    ``masks [B, G, h, w]`` are bitmaps that cover ``frames [B, G, 4]``; ``boxes [B, S, 4]`` look at the bitmap
    ``gt_index [B, S]``.  The bitmap is sampled by aligned, adaptive RoIAlign and cut at one half, as in the reference.
    With a frame that is the whole canvas at its resolution the result equals the reference's; with a crop it differs
    by the resolution of the bitmap.  Invalid boxes give 0.
    """
    batch, _, height, width = masks.shape
    frame = jnp.take_along_axis(frames, gt_index[..., None], axis=1)
    valid = valid & jnp.isfinite(boxes).all(-1) & jnp.isfinite(frame).all(-1)
    boxes, frame = jnp.where(valid[..., None], boxes, 0.0), jnp.where(valid[..., None], frame, 1.0)
    extent = jnp.asarray([height, width], jnp.int32)
    pixels = extent / jnp.maximum(frame[..., :1:-1] - frame[..., 1::-1], 1e-6)  # bitmap pixels per image pixel
    start = (boxes[..., 1::-1] - frame[..., 1::-1]) * pixels - 0.5
    lattice = make_lattice(start, (boxes[..., :1:-1] - boxes[..., 1::-1]) * pixels, valid, (size, size), 0)
    lattice = dataclasses.replace(
        lattice, base=gt_index * height * width, extent=jnp.broadcast_to(extent, (*gt_index.shape, 2))
    )
    share = sample_average(masks.reshape(batch, -1, 1).astype(jnp.float32), lattice, (size, size))[..., 0]
    return (share >= 0.5).astype(jnp.float32)
