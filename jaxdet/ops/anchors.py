"""Where dense detectors look: anchor boxes on a pyramid, and which of them exist.

Letters in shapes: B images, N anchors, A anchors in a cell.  Boxes are in pixels of the resized image.
"""

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.devices import backend
from jaxdet.ranges import LEVELS, SHARE, check_ranges, positive


class Places(Protocol):
    """Where a dense detector looks: the same number of places in every cell of every level."""

    @property
    def levels(self) -> tuple[int, ...]: ...

    @property
    def per_cell(self) -> int: ...

    @property
    def least_side(self) -> float:
        """Pixels that a box of these places keeps, at least, when it is cut to the image."""
        ...

    def grid(self, level: int, height: int, width: int, canvas_hw: tuple[int, int] | None = None) -> np.ndarray:
        """Places ``[height * width * per_cell, 4]``, boxes, of a level of that many cells, in the order y, x, place.

        ``canvas_hw`` is the size of the images; None: the level's cells times its stride.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Anchors:
    """One set of anchors for each cell of each level.

    The anchors of the cell ``(y, x)`` at stride ``s`` are centred at ``((x + offset) * s, (y + offset) * s)`` and have
    area ``(scale * s) ** 2``.  ``offset`` 0 is the reference's choice for R-CNN and RetinaNet, 0.5 the middle of the
    cell.  ``ratios`` are height over width.  The order inside a cell is ratio-major.  ``levels`` are log2 strides.

    ``even`` spreads the centres evenly over the canvas, where its sides are no multiples of the stride (YOLACT's
    550 pixels have 69 cells at stride 8); sizes stay those of the stride.

    ``rounded`` anchors are torchvision's: the side of a square anchor is cut to whole pixels before it is stretched to
    a ratio, and corners are rounded to whole pixels around the place of the cell.

    ``legacy`` is the convention of mmdetection 1.x, for models that were published with it (RDSNet): a box ends at its
    last pixel and not behind it, so that its width is x2 - x1 + 1.  Anchors are rounded to whole pixels in that
    convention, around the middle of the pixels of a cell, and a box that is cut to the image keeps a pixel.  Given
    here are boxes of jaxdet's convention, x2 = x1 + width, as everywhere; all else (coding, IoU, suppression) is then
    the same in both.
    """

    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    offset: float = 0.0
    even: bool = False
    legacy: bool = False
    rounded: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, levels=LEVELS, scales=positive(1e4), ratios=positive(1e3), offset=SHARE)
        if self.legacy and self.rounded:
            raise ValueError("Anchors: expected legacy (mmdetection 1.x) or rounded (torchvision) or none, got both")

    @property
    def per_cell(self) -> int:
        """Number of anchors in each cell."""
        return len(self.scales) * len(self.ratios)

    @property
    def least_side(self) -> float:
        return 1.0 if self.legacy else 0.0

    def cell(self, level: int) -> np.ndarray:
        """Anchors ``[A, 4]`` of a cell whose place in the image is the origin."""
        stride = 2**level
        # Sides of area (scale * s)^2 whose ratio, height over width, is ``ratio``.
        squares = [math.floor(stride * scale) if self.rounded else stride * scale for scale in self.scales]
        sides = np.array(
            [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in self.ratios for side in squares]
        )
        if self.legacy:
            # From the first pixel to the last one, each rounded; the box ends behind the last one.
            centre = (stride - 1) / 2
            first, last = np.round(centre - (sides - 1) / 2), np.round(centre + (sides - 1) / 2)
            return np.concatenate([first, last + 1], 1).astype(np.float32)
        corners = np.concatenate([-sides / 2, sides / 2], 1)
        return (np.round(corners) if self.rounded else corners).astype(np.float32)

    def grid(self, level: int, height: int, width: int, canvas_hw: tuple[int, int] | None = None) -> np.ndarray:
        """Anchors ``[height * width * A, 4]`` of a level of that many cells, in the order y, x, anchor."""
        stride = 2**level
        step: tuple[float, float] = (stride, stride)
        if self.even and canvas_hw is not None:
            step = (canvas_hw[0] / height, canvas_hw[1] / width)
        anchors: np.ndarray = _corners(height, width, step, self.offset)[:, :, None] + self.cell(level)
        return anchors.reshape(-1, 4)


@dataclasses.dataclass(frozen=True)
class Points:
    """One place in each cell: the cell itself, its centre the point, its side the stride (FCOS, Tian et al. 2019)."""

    levels: tuple[int, ...] = (3, 4, 5, 6, 7)

    def __post_init__(self) -> None:
        check_ranges(self, levels=LEVELS)

    @property
    def per_cell(self) -> int:
        return 1

    @property
    def least_side(self) -> float:
        return 0.0

    def grid(self, level: int, height: int, width: int, canvas_hw: tuple[int, int] | None = None) -> np.ndarray:
        """Cells ``[height * width, 4]`` of a level, in the order y, x."""
        stride = 2**level
        low = _corners(height, width, (stride, stride), 0.0)
        return (low + np.array([0, 0, stride, stride], np.float32)).reshape(-1, 4)


def _corners(height: int, width: int, step: tuple[float, float], offset: float) -> np.ndarray:
    """``[height, width, 4]`` float32: the place of each cell, once for either corner of a box."""
    rows, columns = (np.arange(height) + offset) * step[0], (np.arange(width) + offset) * step[1]
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([x, y, x, y], -1).astype(np.float32)


def inside(anchors: jax.Array, hw: jax.Array, border: float) -> jax.Array:
    """Which anchors ``[N, 4]`` lie in the image of size ``hw [2]``, give or take ``border`` pixels: bool ``[N]``.

    A negative border admits all.  The comparison is the reference's: low sides may touch, high sides may not.
    """
    if border < 0:
        return jnp.ones(anchors.shape[0], bool)
    # Anchors are constants, and XLA would take a second of compiling for `all` of their first two columns.
    low = (anchors[:, 0] >= -border) & (anchors[:, 1] >= -border)
    return low & (anchors[:, 2] < hw[1] + border) & (anchors[:, 3] < hw[0] + border)


def by_place(maps: jax.Array, numbers: int) -> jax.Array:
    """What a head says of the A anchors of each cell, ``[B, h, w, A * numbers]``, as ``[B, h * w * A, numbers]``."""
    if numbers == 1 and backend() == "tpu":
        # First a row, then all of them: XLA's compiler for TPUs takes ten times as long for both at once (jax 0.10.2).
        apart: Any = jax.lax.optimization_barrier
        maps = apart(maps.reshape(*maps.shape[:2], -1))
    return maps.reshape(len(maps), -1, numbers)


def on_image(limit: jax.Array, height: int, width: int, per_cell: int) -> jax.Array:
    """Which anchors of a level have their cell on the image: bool ``[B, height * width * per_cell]``.

    ``limit [B, 2]`` is the size of each image in cells, rounded up here; the rest of the canvas is padding.
    """
    place = jnp.arange(height * width * per_cell)
    # All anchors of a cell stand or fall together: the rule is about the cell's place, not about the box.
    row, column = place // (width * per_cell), place // per_cell % width
    limit = jnp.ceil(limit)
    return (row < limit[:, :1]) & (column < limit[:, 1:])
