"""Ground-truth masks as losses need them: inside boxes, on a grid over the canvas, and beside predictions.

Letters in shapes: B images, G ground-truth slots, S samples, h w rows and columns of a bitmap, m those of a predicted
mask.  Boxes and frames are in pixels of the resized image; a frame is what a bitmap covers (`structures.Masks`).
"""

import jax
import jax.numpy as jnp

from jaxdet.ops.bilinear import as_matrix
from jaxdet.ops.lattice import make_lattice, mean_weights
from jaxdet.ops.rounding import snapped
from jaxdet.structures import Masks

_HALF = 0.5 - 2.0**-14
"""What counts as one half.  Samples are placed to some 1e-5 pixels, and half a cell is a share that objects with
straight sides often have."""

_AT_ONCE = 2**22
"""Pixels of the bitmaps of an image's boxes that are cut out together: 128 of 112 x 112, three of 800 x 1333."""


def mask_targets(masks: Masks, boxes: jax.Array, gt_index: jax.Array, valid: jax.Array, size: int = 28) -> jax.Array:
    """What a mask head should predict inside each box: ``[B, S, size, size]`` float32, 0 or 1.

    ``boxes [B, S, 4]`` are cut out of the masks ``gt_index [B, S]`` among ``masks [B, G, h, w]``.  The bitmap is
    sampled by aligned, adaptive RoIAlign and cut at one half, as in the reference.  With a frame that is the whole
    canvas at its resolution the result equals the reference's; with a crop it differs by the resolution of the bitmap.
    Invalid boxes give 0.
    """
    height, width = masks.values.shape[2:]
    extent = jnp.asarray([height, width], jnp.int32)
    boxes, valid, origin, pixels = _with_frames(masks.frames, boxes, gt_index, valid, extent)
    # [B, S, 2] as (y, x): 1::-1 is (y1, x1), :1:-1 is (y2, x2).  Bitmap pixels, with centres at whole numbers.
    start = (boxes[..., 1::-1] - origin) * pixels - 0.5
    # A box that is its own frame is as large as the bitmap, whatever its sides are: no sample more for a rounding.
    roi_size = snapped((boxes[..., :1:-1] - boxes[..., 1::-1]) * pixels)
    lattice = make_lattice(start, roi_size, valid, (size, size), 0)
    # Each box reads a large part of its bitmap: products cost less than gathers of its samples, pixel by pixel.
    rows, columns = mean_weights(lattice, 0, size, height), mean_weights(lattice, 1, size, width)

    def cut_out(place: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        """Of one box of each image."""
        index, rows, columns = place
        bitmaps = jax.vmap(lambda values, i: values[i])(masks.values, index).astype(jnp.float32)
        across = jnp.einsum("bih,bhw->biw", rows, bitmaps, precision="highest")
        return jnp.einsum("biw,bjw->bij", across, columns, precision="highest")

    places = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (gt_index, rows, columns))
    share = jax.lax.map(cut_out, places, batch_size=max(_AT_ONCE // max(height * width, 1), 1))
    share = jnp.moveaxis(share, 0, 1)
    return (share >= _HALF).astype(jnp.float32)


def masks_on_grid(masks: Masks, canvas_hw: tuple[int, int], grid_hw: tuple[int, int], shift: float = 0.0) -> jax.Array:
    """Masks ``[B, G, h, w]`` on a grid of ``grid_hw`` cells, which cover the canvas: ``[B, G, *grid_hw]`` float32.

    A cell has the bilinear value of its mask at the cell's centre, moved by ``shift`` pixels along both axes, and 0
    outside the frame; cut it at one half for a bitmap.  With frames that are the whole canvas at its resolution and
    cells of an even number of pixels that is the mean of the four pixels around the centre, and with a shift of 0.5
    the lower right one of them.  Frames without extent or with a coordinate that is not finite give 0.
    """
    height, width = masks.values.shape[2:]
    frames = masks.frames
    fine = jnp.isfinite(frames).all(-1) & (frames[..., 2:] > frames[..., :2]).all(-1)
    frames = jnp.where(fine[..., None], frames, jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    # A bilinear sample on a lattice is a product with a matrix for rows and one for columns.
    weights = []
    for axis, cells in enumerate(grid_hw):
        # The centres of the cells, in pixels of the image.
        centre = (jnp.arange(cells) + 0.5) * (canvas_hw[axis] / cells) + shift
        weights.append(_taps(frames[..., 1 - axis], frames[..., 3 - axis], centre, (height, width)[axis]))
    # Whole masks are set to 0, since 0 times a NaN would stay NaN.
    values = jnp.where(fine[..., None, None], masks.values.astype(jnp.float32), 0.0)
    return jnp.einsum("bgyh,bghw,bgxw->bgyx", weights[0], values, weights[1], precision="highest")


def centroids(masks: Masks) -> jax.Array:
    """Mean place ``[..., 2]``, (x, y), of the pixels of masks ``[..., h, w]``; of an empty one the centre of its frame.

    A pixel stands at its lower corner and not at its centre: the mean of pixel indices, as CondInst's code takes it.
    """
    height, width = masks.values.shape[-2:]
    low, high = masks.frames[..., :2], masks.frames[..., 2:]
    if not height * width:
        return (low + high) / 2
    values = masks.values.astype(jnp.float32)
    # The mean index along an axis needs only how much there is in each column, or row.
    amounts = (values.sum(-2), values.sum(-1))
    area = amounts[0].sum(-1)
    mean = jnp.stack([(a * jnp.arange(a.shape[-1])).sum(-1) for a in amounts], -1) / jnp.maximum(area, 1e-6)[..., None]
    side = (high - low) / jnp.asarray([width, height], jnp.float32)
    return jnp.where((area > 0)[..., None], low + (mean + 0.5) * side - 0.5, (low + high) / 2)


def _taps(low: jax.Array, high: jax.Array, centre: jax.Array, pixels: int) -> jax.Array:
    """Weights ``[B, G, cells, pixels]`` of interpolation at ``centre [cells]`` in frames from ``low`` to ``high``."""
    inside = (centre >= low[..., None]) & (centre < high[..., None])
    # Values sit at the centres of bitmap pixels, half a pixel behind the frame's edge.
    position = (centre - low[..., None]) * (pixels / (high - low))[..., None] - 0.5
    return jnp.where(inside[..., None], as_matrix(position, pixels), 0.0)


def mask_iou_targets(
    masks: Masks,
    boxes: jax.Array,
    gt_index: jax.Array,
    valid: jax.Array,
    logits_of_class: jax.Array,
    targets: jax.Array,
    threshold: float = 0.5,
) -> jax.Array:
    """IoU ``[B, S]`` of predicted masks with their whole objects (Mask Scoring R-CNN, Huang et al. 2019, section 3.3).

    ``logits_of_class [B, S, m, m]`` are the mask head's logits of the true class inside ``boxes``, ``targets`` of the
    same shape what it should predict there (``mask_targets``); the other arguments are those of ``mask_targets``.
    The box may cut the object: its full area is the target's divided by ``instance_share``.  A pixel counts as
    predicted where its **logit** exceeds ``threshold``: the reference compares raw logits with 0.5, which is a
    probability of 0.62; 0 would be the probability of one half.  Invalid boxes give 0, and no gradient flows.
    """
    # A comparison has no gradient, and nothing else depends on the logits.
    predicted = logits_of_class > threshold
    share = instance_share(masks, boxes, gt_index, valid)
    overlap = (predicted * targets).sum((-2, -1))
    # Predicted pixels outside the box do not exist, so that the union is theirs inside plus the whole object.
    union = predicted.sum((-2, -1)) + targets.sum((-2, -1)) / (share + 1e-7) - overlap
    # Divided by a safe number first: a division by 0 behind the outer choice would still give NaN.
    return jnp.where(valid & (union > 0), overlap / jnp.where(union > 0, union, 1.0), 0.0)


def instance_share(masks: Masks, boxes: jax.Array, gt_index: jax.Array, valid: jax.Array) -> jax.Array:
    """Which part of its object's pixels a box covers: ``[B, S]`` float32, 0..1; arguments as ``mask_targets``.

    As in the reference a box counts from the pixel of its upper left corner up to, and not with, that of its lower
    right corner, but at least one pixel.  This is exact where a bitmap's pixels are the image's: on a frame that is
    the whole canvas, and in a crop of an object that fits its bitmap.  In a crop that was averaged down, a pixel that
    the box cuts counts by the part inside.  Invalid boxes, and objects without pixels, give 0.
    """
    bitmaps = masks.values
    extent = jnp.asarray(bitmaps.shape[2:], jnp.int32)
    boxes, valid, origin, pixels = _with_frames(masks.frames, boxes, gt_index, valid, extent)
    # The reference slices the bitmap with its box as integers.
    corners = jnp.maximum(jnp.trunc(boxes), 0.0)
    start = (corners[..., 1::-1] - origin) * pixels
    size = jnp.maximum(corners[..., :1:-1] - corners[..., 1::-1], 1.0) * pixels
    inside_y, inside_x = (_covered(start[..., a], size[..., a], bitmaps.shape[2 + a]) for a in (0, 1))
    objects = jnp.take_along_axis(bitmaps, gt_index[..., None, None], axis=1)
    # The box is a product of a range of rows and one of columns.
    covered = (objects * inside_y[..., :, None] * inside_x[..., None, :]).sum((-2, -1))
    # float32 before the sum: the bitmaps are uint8.
    area = jnp.take_along_axis(bitmaps.sum((-2, -1), dtype=jnp.float32), gt_index, axis=1)
    return jnp.where(valid, covered / (area + 1e-7), 0.0)


def _covered(start: jax.Array, size: jax.Array, pixels: int) -> jax.Array:
    """Part of each of ``pixels`` cells ``[i, i + 1)`` inside ``[start, start + size)``: ``[..., pixels]``, 0..1."""
    cell = jnp.arange(pixels, dtype=jnp.float32)
    start, stop = start[..., None], (start + size)[..., None]
    return jnp.clip(jnp.minimum(stop, cell + 1) - jnp.maximum(start, cell), 0.0, 1.0)


def _with_frames(
    frames: jax.Array, boxes: jax.Array, gt_index: jax.Array, valid: jax.Array, extent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Finite boxes, what of them is valid, and of their frames the corner (y, x) and the bitmap pixels per image pixel.

    ``extent`` is the bitmaps' (height, width).
    """
    frame = jnp.take_along_axis(frames, gt_index[..., None], axis=1)
    valid = valid & jnp.isfinite(boxes).all(-1) & jnp.isfinite(frame).all(-1)
    boxes, frame = jnp.where(valid[..., None], boxes, 0.0), jnp.where(valid[..., None], frame, 1.0)
    # A frame without extent cannot be divided by; the bound makes large numbers of it, not infinite ones.
    pixels = extent / jnp.maximum(frame[..., :1:-1] - frame[..., 1::-1], 1e-6)
    return boxes, valid, frame[..., 1::-1], pixels
