"""Where boxes sample maps: a lattice of points in each box, some of them in each of its bins.

Samples lie at the middles of equal parts of a bin, a fixed number along each axis, or the adaptive rule's
``ceil(bin height) x ceil(bin width)``.

Letters in shapes: B images, N boxes; ``size`` is rows x columns of bins.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdet.ops.bilinear import OUTSIDE
from jaxdet.ops.rounding import whole_parts

MAX_COUNT = 128
"""At most so many adaptive samples along an axis of a bin: exact for crops of 7 bins from 896 pixels of a map.
Without a bound one wild box, a million pixels wide, would hold up the whole batch."""


@struct.dataclass
class Lattice:
    """Where boxes sample: bins of size ``bin`` from ``start``, with ``count`` samples a bin along each axis."""

    level: jax.Array  #: ``[B, N]`` int32, which of the arrays of maps
    base: jax.Array  #: ``[B, N]`` int32, where among the pixels of all maps, or of all boxes' own, the box's map begins
    extent: jax.Array  #: ``[B, N, 2]`` int32, height and width of the box's map
    start: jax.Array  #: ``[B, N, 2]`` float32 (y, x), in pixel indices of the map
    bin: jax.Array  #: ``[B, N, 2]`` float32 (y, x)
    count: jax.Array  #: ``[B, N, 2]`` int32; 0: the box is empty or invalid, its result is 0
    own: "Lattice | None" = None  #: the same samples on the boxes' own maps, if they have any
    #: samples in each bin of all boxes that have any, where their number is set; else 0
    fixed: int = struct.field(pytree_node=False, default=0)

    @property
    def rounds(self) -> jax.Array:
        """Samples ``[B, N]`` in each bin."""
        return self.count[..., 0] * self.count[..., 1]


def make_lattice(
    start: jax.Array, roi_size: jax.Array, valid: jax.Array, size: tuple[int, int], sampling_ratio: int
) -> Lattice:
    """Lattice of boxes from ``start [B, N, 2]`` on, ``roi_size [B, N, 2]`` large; the map is filled in later."""
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio is a number of samples, or 0 for the adaptive number; got {sampling_ratio}")
    parts = np.asarray(size, np.float32)
    bins = roi_size * (1 / parts)  # XLA would do so under jit, and divide without
    count = jnp.full_like(bins, sampling_ratio)
    if sampling_ratio == 0:
        count = jnp.clip(whole_parts(roi_size, jnp.asarray(parts)), 0, MAX_COUNT)
    # No sample, no gradient and no work: an invalid box is one with a count of 0.
    count = jnp.where(valid[..., None], count, 0).astype(jnp.int32)
    nothing = jnp.zeros_like(count)
    return Lattice(nothing[..., 0], nothing[..., 0], nothing, start, bins, count, fixed=sampling_ratio**2)


def sample_position(
    start: jax.Array, step: jax.Array, count: jax.Array, which_bin: jax.Array, which: jax.Array
) -> jax.Array:
    """Where along an axis sample ``which`` of ``count`` lies in a bin; all are broadcast against each other."""
    # Samples lie at the middles of equal parts of a bin.
    return start + which_bin * step + (which + 0.5) * step / jnp.maximum(count, 1)


def mean_weights(lattice: Lattice, axis: int, bins: int, pixels: int) -> jax.Array:
    """What the mean over the samples of each bin takes of each pixel along an axis: ``[B, N, bins, pixels]`` float32.

    Samples are a lattice, so that a crop is the product of these for rows, its map and these for columns.  There is no
    loop over samples: of those between two pixels the sum follows from how many there are and where their middle is.
    """
    start, size, count = (a[..., axis, None, None] for a in (lattice.start, lattice.bin, lattice.count))
    first = start + jnp.arange(bins)[:, None] * size
    step = jnp.maximum(size / jnp.maximum(count, 1), 1e-9)  # an invalid box may have bins of size 0
    # Between the pixels, and on either side of the first and the last one as far as a sample may be.
    edges = np.arange(-1, pixels + 1, dtype=np.float32)
    edges[0], edges[-1] = -OUTSIDE, pixels - 1 + OUTSIDE
    # A sample on an edge may count on either side: it gives that pixel all.
    below = jnp.clip(jnp.ceil((edges - first) / step - 0.5), 0, count)
    number = jnp.diff(below)
    behind = first - edges[:-1] + step * (below[..., :-1] + below[..., 1:]) / 2
    # Outside of the map the nearest pixel counts.
    place = np.arange(pixels + 1)
    to_next = jnp.where(place == 0, 1.0, jnp.where(place == pixels, 0.0, jnp.clip(behind, 0.0, 1.0)))
    total = number[..., :-1] * to_next[..., :-1] + number[..., 1:] * (1.0 - to_next[..., 1:])
    return total / jnp.maximum(count, 1)


def on_own_maps(count: jax.Array, hw: tuple[int, ...], size: tuple[int, int], aligned: bool) -> Lattice:
    """As many samples ``[B, N, 2]`` on maps of ``hw`` pixels, one a box, which lie one after the other."""
    return Lattice(
        level=jnp.zeros(count.shape[:2], jnp.int32),
        base=jnp.broadcast_to(jnp.arange(count.shape[1], dtype=jnp.int32) * math.prod(hw), count.shape[:2]),
        extent=jnp.broadcast_to(jnp.asarray(hw, jnp.int32), count.shape),
        # A map is as large as its box, wherever that lies and even if it has no size: bins are parts of the map.
        start=jnp.full(count.shape, -0.5 if aligned else 0.0, jnp.float32),
        bin=jnp.broadcast_to(np.asarray(hw, np.float32) / np.asarray(size, np.float32), count.shape),
        count=count,
    )
