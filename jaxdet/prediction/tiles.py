"""Tiles of a large image, and results of a tile as those of the whole image.

Memory goes with a tile and with what is found, not with masks of the image's size: these are run lengths from the
beginning.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.evaluation.paste import encode_window
from jaxdet.evaluation.results import Result


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in its pixels; right and bottom are where it ends."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def box(self) -> NDArray[np.float64]:
        """``[4]`` x1, y1, x2, y2."""
        return np.array([self.left, self.top, self.right, self.bottom], np.float64)

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels ``[h, w, 3]``, not copied."""
        return image[self.top : self.bottom, self.left : self.right]


def tiles_of(hw: tuple[int, int], side: int, overlap: float) -> list[Window]:
    """Tiles that cover an image, row by row: squares, or as high or wide as the image where that is less.

    Args:
        hw: height and width of the image.
        side: of a tile, in pixels of the image.
        overlap: the share of a side that neighbours have in common at least; the last of a row lies at the border.

    Raises:
        ValueError: a side below 32, or an overlap outside of 0 to 0.9.
    """
    if isinstance(side, bool) or not isinstance(side, int | np.integer) or side < 32:
        raise ValueError(f"tile: expected a side of at least 32 pixels, got {side!r}")
    if not isinstance(overlap, int | float | np.floating) or not 0 <= overlap <= 0.9:
        raise ValueError(f"overlap: expected a share of a tile from 0 to 0.9, got {overlap!r}")

    def begins(length: int) -> list[int]:
        step = max(int(side * (1 - overlap)), 1)
        last = max(length - side, 0)
        return [*range(0, last, step), last]

    height, width = hw
    return [
        Window(left, top, min(left + side, width), min(top + side, height))
        for top in begins(height)
        for left in begins(width)
    ]


def in_image(result: Result, window: Window, hw: tuple[int, int]) -> Result:
    """A result that counts the pixels of a window, as one of the image of size ``hw``."""
    x, y, width, height = result["bbox"]
    moved = result | {"bbox": [x + window.left, y + window.top, width, height]}
    if "segmentation" in result:
        # Only the pixels around the instance: a tile has many.
        left, top, wide, high = (int(side) for side in coco_mask.toBbox(result["segmentation"]))
        inside = coco_mask.decode(result["segmentation"])[top : top + high, left : left + wide].astype(bool)
        moved["segmentation"] = encode_window(inside, top + window.top, left + window.left, hw)
    return moved
