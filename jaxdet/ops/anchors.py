"""Where dense detectors look: anchor boxes on a pyramid, and which of them exist.

Letters in shapes: B images, N anchors, A anchors in a cell.  Boxes are in pixels of the resized image.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ranges import LEVELS, check_ranges, positive


class Places(Protocol):
    """Where a dense detector looks: the same number of places in every cell of every level."""

    @property
    def levels(self) -> tuple[int, ...]: ...

    @property
    def per_cell(self) -> int: ...

    def grid(self, level: int, height: int, width: int) -> np.ndarray:
        """Places ``[height * width * per_cell, 4]`` of a level of that many cells, in the order y, x, place."""


@dataclasses.dataclass(frozen=True)
class Anchors:
    """One set of anchors for each cell of each level.

    The anchors of the cell ``(y, x)`` at stride ``s`` are centred at ``(x * s, y * s)``, the reference's choice
    (no half-stride offset), and have area ``(scale * s) ** 2``.  ``ratios`` are height over width.  The order
    inside a cell is ratio-major.  ``levels`` are log2 strides.
    """

    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        check_ranges(self, levels=LEVELS, scales=positive(1e4), ratios=positive(1e3))

    @property
    def per_cell(self) -> int:
        """Number of anchors in each cell."""
        return len(self.scales) * len(self.ratios)

    def cell(self, level: int) -> np.ndarray:
        """Anchors ``[A, 4]`` of the cell at the origin."""
        stride = 2**level
        # Sides of area (scale * s)^2 whose ratio, height over width, is ``ratio``.
        sides = [
            (stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio))
            for ratio in self.ratios
            for scale in self.scales
        ]
        return np.array([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], np.float32)

    def grid(self, level: int, height: int, width: int) -> np.ndarray:
        """Anchors ``[height * width * A, 4]`` of a level of that many cells, in the order y, x, anchor."""
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        # [height, width, 4]: the corner of each cell, once for either corner of a box.
        shift = np.stack([x, y, x, y], -1).astype(np.float32) * 2**level
        anchors: np.ndarray = shift[:, :, None] + self.cell(level)
        return anchors.reshape(-1, 4)


def inside(anchors: jax.Array, hw: jax.Array, border: float) -> jax.Array:
    """Which anchors ``[N, 4]`` lie in the image of size ``hw [2]``, give or take ``border`` pixels: bool ``[N]``.

    A negative border admits all.  The comparison is the reference's: low sides may touch, high sides may not.
    """
    if border < 0:
        return jnp.ones(anchors.shape[0], bool)
    # Anchors are constants, and XLA would take a second of compiling for `all` of their first two columns.
    low = (anchors[:, 0] >= -border) & (anchors[:, 1] >= -border)
    return low & (anchors[:, 2] < hw[1] + border) & (anchors[:, 3] < hw[0] + border)


def on_image(limit: jax.Array, height: int, width: int, per_cell: int) -> jax.Array:
    """Which anchors of a level have their cell on the image: bool ``[B, height * width * per_cell]``.

    ``limit [B, 2]`` is the size of each image in cells, rounded up here; the rest of the canvas is padding.
    """
    limit = jnp.ceil(limit)
    rows, columns = jnp.arange(height) < limit[:, :1], jnp.arange(width) < limit[:, 1:]
    cells = rows[:, :, None] & columns[:, None]
    # All anchors of a cell stand or fall together: the rule is about the cell's place, not about the box.
    return jnp.repeat(cells.reshape(len(cells), -1), per_cell, axis=1)
