"""From pixels to outlines, for formats that have nothing else."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.convert.shapes import Ring

_MOST_PAIRS = 1 << 20  #: of corners that are compared


def outlines(mask: NDArray[np.uint8]) -> tuple[list[Ring], list[Ring]]:
    """The outlines of a mask along the edges of its pixels, of which a rasteriser makes the same pixels again.

    Args:
        mask: ``[H, W]``, 0 or 1.

    Returns:
        Corners of the outlines around parts, whose pixels touch along edges, and of those around holes.
    """
    padded = np.pad(mask.astype(np.bool_), 1)
    inside = padded[1:-1, 1:-1]
    # Edges with the inside on the right of their direction: (dx, dy), where they begin relative to the pixel.
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # nothing above: from the left to the right
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, (x, y), direction in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            leaving.setdefault((column + x, row + y), []).append(direction)
    parts: list[Ring] = []
    holes: list[Ring] = []
    while leaving:
        ring = _ring(leaving)
        (parts if _signed_area(ring) > 0 else holes).append(ring)
    return parts, holes


def _ring(leaving: dict[tuple[int, int], list[tuple[int, int]]]) -> Ring:
    """Follow edges from any corner until they close, and take them out."""
    here = start = next(iter(leaving))
    direction = leaving[start][0]
    corners: list[tuple[int, int]] = []
    while True:
        choices = leaving[here]
        # Where two pixels touch at a corner two edges leave; the turn to the right stays at the same pixel.
        right = (-direction[1], direction[0])
        following = right if right in choices else choices[0]
        if following != direction or not corners:
            corners.append(here)
        choices.remove(following)
        if not choices:
            del leaving[here]
        direction = following
        here = here[0] + direction[0], here[1] + direction[1]
        if here == start:
            return np.array(corners, np.float64)


def _signed_area(ring: Ring) -> float:
    """Above 0 for an outline that runs clockwise as one sees it."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def one_ring(rings: Sequence[Ring]) -> Ring:
    """Several outlines as a single one, with paths between them that run out and back and enclose nothing.

    By the even-odd rule, which pycocotools and OpenCV follow, holes stay holes.
    """
    whole = rings[0]
    for ring in rings[1:]:
        # Near corners, so that paths are short; of long outlines some, since all pairs would take gigabytes.
        stride = 1 + len(whole) * len(ring) // _MOST_PAIRS
        distances = np.abs(whole[:, None] - ring[None, ::stride]).sum(axis=2)
        at, to = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(ring, -int(to) * stride, axis=0)
        whole = np.concatenate([whole[: at + 1], turned, turned[:1], whole[at:]])
    return whole
