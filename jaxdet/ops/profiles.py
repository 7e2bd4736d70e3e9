"""Where masks reach in an image: the greatest value in each of its columns and rows, and the rectangle around them.

A mask that is painted into the image (`jaxdet/evaluation/paste.py` has the rule) is as large as the image, and a
hundred of them are larger than everything else in memory.  What is asked for here needs none of them whole.  Along a
column of the image the painted values change linearly between the centres of neighbouring cells of the bitmap, so that
the greatest value of such a gap is that of its first or of its last pixel.  No other pixel is painted, and nothing is
lost.  Masks are worked on in groups.

For one image.  Letters in shapes: N masks, h w rows and columns of a bitmap, H W those of the image.  A rectangle of
pixels is the indices of its first column, first row, last column and last row.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.structures import Masks

_GROUP = 2**20
"""Values that a group of masks keeps in the image's columns and rows of the bitmap, or the other way around: 4 MiB."""


@struct.dataclass
class Profiles:
    """The greatest value of each mask in the columns and in the rows of an image."""

    columns: jax.Array  #: ``[..., W]`` float32
    rows: jax.Array  #: ``[..., H]`` float32
    hw: jax.Array  #: ``[2]`` float32, the image's height and width, beyond which both are 0


def mask_profiles(masks: Masks, canvas_hw: tuple[int, int], *, true_hw: jax.Array | None = None) -> Profiles:
    """Profiles of masks as they would be painted into the image.

    Args:
        masks: ``[N, h, w]``, probabilities or logits.  Without a crop probabilities fade to 0 within a cell around the
            frame, and logits end at it; with one a mask ends there, and beyond the outermost cells of the frame the
            nearest value counts.
        canvas_hw: height H and width W.
        true_hw: ``[2]``, size of the image on the canvas; None: it fills the canvas.

    Returns:
        Probabilities ``columns [N, W]`` and ``rows [N, H]``: 0 where a mask does not reach, which is everywhere for one
        whose frame or crop has no extent or a coordinate that is not finite.
    """
    hw = jnp.asarray(canvas_hw, jnp.float32) if true_hw is None else true_hw.astype(jnp.float32)
    cut = masks.frames if masks.logits and masks.crop is None else masks.crop
    fine = _has_extent(masks.frames) if cut is None else _has_extent(masks.frames) & _has_extent(cut)
    frames = jnp.where(fine[:, None], masks.frames, jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    everywhere = jnp.asarray([-jnp.inf, -jnp.inf, jnp.inf, jnp.inf])
    crops = jnp.where(fine[:, None], everywhere if cut is None else cut, everywhere)

    def one_mask(given: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        values, frame, crop = given
        # The ring of one cell is what lies outside the frame.
        framed = jnp.pad(values.astype(jnp.float32), 1, mode="constant" if cut is None else "edge")
        y, x = (_Line(frame[axis::2], crop[axis::2], values.shape[1 - axis], hw[1 - axis]) for axis in (1, 0))
        return _greatest(framed, y, x, canvas_hw[1]), _greatest(framed.T, x, y, canvas_hw[0])

    # What one mask needs: rows of the bitmap with the image's columns, and the other way around.
    kept = masks.values.shape[1] * canvas_hw[1] + masks.values.shape[2] * canvas_hw[0]
    group = max(1, _GROUP // max(kept, 1))
    columns, rows = jax.lax.map(one_mask, (masks.values, frames, crops), batch_size=group)
    columns, rows = (jnp.where(fine[:, None], profile, -jnp.inf) for profile in (columns, rows))
    if masks.logits:
        return Profiles(jax.nn.sigmoid(columns), jax.nn.sigmoid(rows), hw)
    return Profiles(jnp.maximum(columns, 0.0), jnp.maximum(rows, 0.0), hw)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A mask along one axis of the image."""

    frame: jax.Array  #: ``[2]``, where the bitmap begins and ends
    crop: jax.Array  #: ``[2]``, where the mask is cut
    cells: int  #: of the bitmap, without its ring
    size: jax.Array  #: pixels of the image

    @property
    def reach(self) -> tuple[jax.Array, jax.Array]:
        """The first pixel that the mask can reach, and the first behind those."""
        # A pixel counts that has its centre in the image, in the crop and not more than a cell beyond the frame.
        low, high = self.frame + jnp.asarray([-1, 1]) * self.cell
        start = jnp.maximum(jnp.ceil(jnp.maximum(low, self.crop[0]) - 0.5), 0.0)
        return start, jnp.minimum(jnp.ceil(jnp.minimum(high, self.crop[1]) - 0.5), self.size)

    @property
    def cell(self) -> jax.Array:
        """Pixels in a cell."""
        return (self.frame[1] - self.frame[0]) / self.cells

    def covers(self, pixels: int) -> jax.Array:
        """Which pixels ``[pixels]`` the mask can reach."""
        start, stop = self.reach
        return (jnp.arange(pixels) >= start) & (jnp.arange(pixels) < stop)

    def gaps(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Between any two neighbouring cells, ring included: whether there are pixels, and the first and last share.

        All ``[cells + 1]``; a share is how far from the one cell's centre to the next one's a pixel lies.
        """
        start, stop = self.reach
        # The first pixel behind the centre of each cell, and so behind the last one of the gap before it.
        behind = jnp.ceil(self.frame[0] + (jnp.arange(self.cells) + 0.5) * self.cell - 0.5)
        bounds = jnp.concatenate([start[None], jnp.clip(behind, start, stop), stop[None]])
        cell = jnp.arange(self.cells + 1) - 1
        first, last = (jnp.clip(self.places(pixel) - cell, 0.0, 1.0) for pixel in (bounds[:-1], bounds[1:] - 1))
        return bounds[:-1] < bounds[1:], first, last

    def places(self, pixel: jax.Array) -> jax.Array:
        """Where the centres of pixels lie, 0 at the centre of the first cell."""
        return (pixel + 0.5 - self.frame[0]) / self.cell - 0.5

    def blend(self, framed: jax.Array, pixels: int) -> jax.Array:
        """Values ``[pixels, n]`` at the centres of all pixels, of a bitmap with its ring, ``[cells + 2, n]``."""
        place = self.places(jnp.arange(pixels))
        # Cell -1 and cell ``cells`` are the ring.
        first = jnp.clip(jnp.floor(place), -1, self.cells - 1)
        share = jnp.clip(place - first, 0.0, 1.0)[:, None]
        row = first.astype(jnp.int32) + 1
        return framed[row] * (1 - share) + framed[row + 1] * share


def _greatest(framed: jax.Array, y: _Line, x: _Line, width: int) -> jax.Array:
    """The greatest value ``[width]`` in each column of a painted mask, -inf where it does not reach."""
    columns = x.blend(framed.T, width).T
    some, *shares = y.gaps()
    painted = [columns[:-1] * (1 - share[:, None]) + columns[1:] * share[:, None] for share in shares]
    greatest = jnp.where(some[:, None], jnp.maximum(*painted), -jnp.inf).max(0)
    return jnp.where(x.covers(width), greatest, -jnp.inf)


def _has_extent(boxes: jax.Array) -> jax.Array:
    """Which boxes ``[..., 4]`` are finite and have positive sides."""
    size = boxes[..., 2:] - boxes[..., :2]
    return jnp.isfinite(boxes).all(-1) & (jnp.isfinite(size) & (size > 0)).all(-1)


def enclosing(profiles: Profiles, threshold: float) -> tuple[jax.Array, jax.Array]:
    """The smallest rectangle of pixels ``[..., 4]`` around those that reach ``threshold``, which is above 0; float32.

    And whether there is one, bool ``[...]``: the rectangle of an empty mask has no meaning.
    """
    x, y = (_first_and_last(profile >= threshold) for profile in (profiles.columns, profiles.rows))
    return jnp.stack([x[0], y[0], x[1], y[1]], -1).astype(jnp.float32), (profiles.columns >= threshold).any(-1)


def bitmap_extent(masks: Masks) -> tuple[jax.Array, jax.Array]:
    """`enclosing` of bitmaps ``[..., h, w]`` of zeros and ones: from which edge of a cell to which they reach.

    Exact where cells are pixels.  A crop that was averaged down (`jaxdet.data.masks.crop_mask`) begins and ends with
    its instance, and may have lost what of it is thinner than half a cell.  Bitmaps without pixels (h = w = 0) and
    frames that are not finite give False.
    """
    cells = masks.values > 0
    columns, rows = cells.any(-2), cells.any(-1)
    x, y = _first_and_last(columns), _first_and_last(rows)
    low, high = jnp.stack([x[0], y[0]], -1), jnp.stack([x[1], y[1]], -1)
    side = (masks.frames[..., 2:] - masks.frames[..., :2]) / jnp.asarray(masks.values.shape[:-3:-1], jnp.float32)
    # Edges of cells lie on those of pixels but for roundings.
    first, last = jnp.round(masks.frames[..., :2] + low * side), jnp.round(masks.frames[..., :2] + (high + 1) * side)
    found = jnp.concatenate([first, last - 1], -1)
    return found, columns.any(-1) & jnp.isfinite(found).all(-1)


def _first_and_last(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index ``[...]`` of the first and of the last True of ``[..., n]``."""
    return chosen.argmax(-1), chosen.shape[-1] - 1 - chosen[..., ::-1].argmax(-1)
