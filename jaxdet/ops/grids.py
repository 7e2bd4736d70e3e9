"""Boxes as grids of points that are peaks of heat maps: Grid R-CNN (Lu et al. 2019, arXiv 1811.12030).

A grid of p x p points lies over a box, its corners on those of the box.  The points are numbered column by column, as
in the reference: point k is in column ``k // p`` and row ``k % p``.  The *whole map* of a box covers twice its width
and height around the same centre, so that points of an object that the box misses are on it (section 3.3).  Every point
has a heat map of its own, which covers half of the whole map along each axis, the part where that point is to be
expected: its *region* (Grid R-CNN Plus, Lu et al. 2019, arXiv 1906.05688).

Letters in shapes: N boxes, p points of a side, P = p * p points, h rows and columns of a region; the whole map has 2h.
Boxes are in pixels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.boxes import clip
from jaxdet.ops.rounding import product, quotient
from jaxdet.ranges import Range, check_ranges


def region_starts(points: int, side: int) -> np.ndarray:
    """The first column of the regions ``[p]`` of each column of points, among the ``2 * side`` of the whole map.

    Likewise of rows.  The outer regions begin and end with the map, those between lie around their point in the box.
    """
    starts = [max(int((c / (points - 1) - 0.25) * 2 * side), 0) for c in range(points)]
    return np.array([0, *starts[1:-1], side])


def expanded(boxes: jax.Array) -> jax.Array:
    """What the whole maps of boxes ``[..., 4]`` cover: twice their width and height around the same centre."""
    half = (boxes[..., 2:] - boxes[..., :2]) * 0.5
    return jnp.concatenate([boxes[..., :2] - half, boxes[..., 2:] + half], -1)


def grid_targets(boxes: jax.Array, truth: jax.Array, points: int, side: int, radius: int) -> jax.Array:
    """Where the points of the true boxes lie on the heat maps of ``boxes``: ``[N, h, h, P]`` float32, 0 or 1.

    1 is a cell that is no more than ``radius`` cells away from that of the point.  A point outside of its region has
    none, or a part of its circle; so have all points of a box whose whole map covers no more than p pixels along an
    axis.

    Args:
        boxes: ``[N, 4]``; an invalid one has targets without meaning.
        truth: ``[N, 4]``, the box of the object of each.
        points: p.
        side: h.
        radius: in cells; the reference has 1, which is a cross of five cells.
    """
    around = expanded(boxes)
    size = around[:, 2:] - around[:, :2]
    share = jnp.asarray(1 - np.arange(points) / (points - 1), jnp.float32)[:, None]
    # [N, p, 2]: x of each column of points, y of each row.
    low, high = truth[:, None, :2], truth[:, None, 2:]
    offset = product(share, low) + product(1 - share, high) - around[:, None, :2]
    # As many divisors as there are numbers to divide (`rounding.quotient`): the second term never counts.
    divisor = jnp.maximum(size[:, None], jnp.minimum(offset, 0.0))
    # Towards 0, as the reference does: a point less than a cell before the map is in the first cell.
    cell = jnp.trunc(product(quotient(offset, divisor), jnp.float32(2 * side)))
    own = jnp.asarray(region_starts(points, side)[:, None] + np.arange(side), jnp.float32)  # [p, h]
    # [N, p, h, 2]: squared distance of each column of cells from each column of points, likewise of rows.
    distance = jnp.square(own[None, :, :, None] - cell[:, :, None])
    x, y = distance[..., 0], distance[..., 1]
    near = x[:, :, None, None, :] + y[:, None, :, :, None] <= radius**2  # [N, p, p, h, h]: column, row of the point
    near &= (size > points).all(1)[:, None, None, None, None]
    return jnp.moveaxis(near.reshape(len(boxes), points**2, side, side), 1, -1).astype(jnp.float32)


def grid_boxes(boxes: jax.Array, logits: jax.Array) -> jax.Array:
    """Boxes ``[N, 4]`` from the peaks of the heat maps ``logits [N, h, h, P]`` of ``boxes [N, 4]``.

    Each side is the mean of the p points on it, weighed by their probability (section 3.1, eq. 3).  The first of equal
    cells is the peak.  Not cut to an image.  The left side never passes the right one, as their regions do not overlap.
    """
    number, side, _, count = logits.shape
    points = round(count**0.5)
    flat = logits.astype(jnp.float32).reshape(number, side * side, count)
    # Of probabilities, as in the reference: cells that float32 calls certain, from a logit of 17 on, are equal.
    best = jax.nn.sigmoid(flat).argmax(1, keepdims=True)
    # Weights are probabilities over their sum, which so is never 0.
    certain = jax.nn.log_sigmoid(jnp.take_along_axis(flat, best, axis=1)).reshape(number, points, points)
    best = best.reshape(number, points, points)  # of the point in column and row
    starts = jnp.asarray(region_starts(points, side))
    columns, rows = best % side + starts[:, None], best // side + starts
    size = (boxes[:, 2:] - boxes[:, :2])[:, :, None, None]
    first = expanded(boxes)[:, :2, None, None]
    # The whole map has 2h cells for twice the box.
    x = (columns + 0.5) / side * size[:, 0] + first[:, 0]
    y = (rows + 0.5) / side * size[:, 1] + first[:, 1]
    sides = [(x[:, 0], certain[:, 0]), (y[:, :, 0], certain[:, :, 0])]
    sides += [(x[:, -1], certain[:, -1]), (y[:, :, -1], certain[:, :, -1])]
    return jnp.stack([(jax.nn.softmax(weight) * place).sum(-1) for place, weight in sides], -1)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Boxes displaced at random, lest a head sees well placed ones alone.

    The centre moves by up to ``amplitude`` of the width and height, which grow or shrink by up to the same share
    (uniformly; the reference's code, not in the paper).  A call takes boxes ``[N, 4]``, the size ``[2]`` of their image
    and a key.
    """

    amplitude: float = 0.15

    def __post_init__(self) -> None:
        check_ranges(self, amplitude=Range(0, 0.99))  # with 1 nothing might be left of a box

    def __call__(self, boxes: jax.Array, hw: jax.Array, key: jax.Array) -> jax.Array:
        offsets = jax.random.uniform(key, boxes.shape, minval=-self.amplitude, maxval=self.amplitude)
        return displaced(boxes, offsets, hw)


def displaced(boxes: jax.Array, offsets: jax.Array, hw: jax.Array) -> jax.Array:
    """Boxes ``[N, 4]`` whose centre and sides change by shares ``offsets [N, 4]``: (x, y, width, height).

    Cut to the image of size ``hw [2]``, where they end a pixel before the border, as in the reference.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + size * offsets[:, :2]
    half = size * (1 + offsets[:, 2:]) * 0.5
    return clip(jnp.concatenate([centre - half, centre + half], 1), hw - 1)
