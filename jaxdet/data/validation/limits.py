"""What a data set may not exceed.  It may be a stranger's, and a small file can ask for any amount of memory or time.

Some limits may be in the way of honest data.  Environment variables raise them, because worker processes inherit these.
"""

import os

from jaxdet.data.validation.values import short


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or not text.isascii() or len(text) > 18 or int(text) < 1:
        raise ValueError(f"environment variable {name}: expected a whole number from 1, got {text[:40]!r}")
    return int(text)


PIXELS = _from_environment("JAXDET_MAX_PIXELS", 1 << 27)
"""Of one image: 134 million."""

ANNOTATIONS = _from_environment("JAXDET_MAX_ANNOTATIONS", 1 << 16)
"""Of one image.  All of an image's annotations are read whenever the image is."""

CATEGORIES = _from_environment("JAXDET_MAX_CATEGORIES", 1 << 14)
"""Of a data set.  COCO's evaluation takes 200 kB of memory for each, whether it occurs or not."""

LONGEST_SIDE = (1 << 16) - 1
"""Of an image, in pixels; JPEG has no longer one.  Positions on it are exact in float32."""

OUTLINE = 1 << 19
"""Pixels that the outlines of one instance may run through.  pycocotools takes 250 bytes for each, and a zigzag
of a few kilobytes would run through billions.  Run lengths have no such limit."""

FARTHEST = 1 << 24
"""Pixels that a point may lie from an image's origin.  pycocotools counts in 32 bits, in fifths of a pixel."""

BOX = 1e9
"""Largest number in a box; sums and products of such numbers are finite in float32."""


def check_sides(height: int, width: int) -> None:
    """ValueError if an image of this size is empty or larger than the limits."""
    if min(height, width) < 1 or max(height, width) > LONGEST_SIDE:
        raise ValueError(
            f"expected sides of 1 to {LONGEST_SIDE} pixels, got height {short(height)}, width {short(width)}"
        )
    if height * width > PIXELS:
        raise ValueError(
            f"expected at most {PIXELS} pixels, got {height} x {width}; "
            f"set the environment variable JAXDET_MAX_PIXELS={height * width} if the image is to be trusted"
        )


def check_categories(count: int) -> None:
    """ValueError if a data set has more categories than the limit."""
    if count > CATEGORIES:
        raise ValueError(
            f"expected at most {CATEGORIES} categories, got {count}; "
            f"set the environment variable JAXDET_MAX_CATEGORIES={count} if there is memory to evaluate them"
        )
