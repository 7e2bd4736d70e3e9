"""From pixels to outlines, for formats that have nothing else."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.convert.shapes import Ring

_MOST_PAIRS = 1 << 20  #: of corners that are compared
#: By the bits of the four pixels around a corner of the grid: whether outlines turn there.
_TURNS = np.array([bits not in (0, 3, 5, 10, 12, 15) for bits in range(16)])


def outlines(mask: NDArray[np.uint8]) -> tuple[list[Ring], list[Ring]]:
    """The outlines of a mask along the edges of its pixels, of which a rasteriser makes the same pixels again.

    Args:
        mask: ``[H, W]``, 0 or 1.

    Returns:
        Corners of the outlines around parts, whose pixels touch along edges, and of those around holes.
    """
    parts: list[Ring] = []
    holes: list[Ring] = []
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return parts, holes
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.bool_)
    for ring in _rings(np.pad(inside, 1)):
        (parts if _signed_area(ring) > 0 else holes).append(ring + np.array([left, top]))
    return parts, holes


def _rings(padded: NDArray[np.bool_]) -> Iterator[Ring]:
    """Corners of each outline, of pixels within a border that is outside; the inside is on the right of an outline.

    From a corner an outline runs straight to the next one.  Along a row, or a column, such lines in one direction
    begin and end in turn, so that the order of both tells which end belongs to which beginning, without a step for
    each pixel.
    """
    # The four pixels around each corner of the grid as bits, which say whether lines begin or end there.
    bits = padded.view(np.uint8)
    around = bits[:-1, :-1] | bits[:-1, 1:] << 1 | bits[1:, :-1] << 2 | bits[1:, 1:] << 3
    width = around.shape[1]
    place = np.flatnonzero(_TURNS[around])
    nw, ne, sw, se = ((around.reshape(-1)[place] & bit).astype(np.bool_) for bit in (1, 2, 4, 8))
    by_column = np.argsort(place % width, kind="stable")
    begins, ends = [], []
    for leaves, arrives, order in (
        (se & ~ne, sw & ~nw, slice(None)),  # to the right: below it is inside, above it is not
        (sw & ~se, nw & ~ne, by_column),  # down, left and up likewise
        (nw & ~sw, ne & ~se, slice(None)),
        (ne & ~nw, se & ~sw, by_column),
    ):
        begins.append(place[order][leaves[order]])
        ends.append(place[order][arrives[order]])
    # Where two pixels touch at a corner two lines leave; the turn to the right stays at the same pixel.
    ahead = (8, 4, 1, 2)  # the pixel that is in front of a line at its end, on the right
    number = np.cumsum([0, *(len(places) for places in begins)])
    sorted_begins = [np.argsort(places) for places in begins]
    following = []
    for direction, places in enumerate(ends):
        to_right = (around.reshape(-1)[places] & ahead[direction]) == 0
        found = np.empty(len(places), np.intp)
        for turned, chosen in (((direction + 1) % 4, to_right), ((direction + 3) % 4, ~to_right)):
            order = sorted_begins[turned]
            at = np.searchsorted(begins[turned], places[chosen], sorter=order)
            found[chosen] = number[turned] + order[at]
        following.append(found)
    links, place = np.concatenate(following).tolist(), np.concatenate(begins)
    corners = np.stack([place % width, place // width], 1).astype(np.float64)
    at_corner, taken = place.tolist(), [False] * len(links)
    for start in _order(place, number, width):
        if taken[start]:
            continue
        ring: list[int] = []
        here = start
        while not ring or at_corner[here] != at_corner[start]:
            taken[here] = True
            ring.append(here)
            here = links[here]
        yield corners[ring]


def _order(place: NDArray[np.intp], number: NDArray[np.intp], width: int) -> list[int]:
    """The lines in the order in which outlines begin with them: upper edges of pixels first, row by row."""
    # Of which pixel a line is the first edge: that below and to the right of the corner, and so on around it.
    offset = np.repeat([0, -1, -width - 1, -width], np.diff(number))
    kind = np.repeat(np.arange(4), np.diff(number))
    rank = kind * (place.max() + width + 2) + place + offset + width + 1
    # Both lines that leave a corner have the place of the earlier one.
    _, inverse = np.unique(place, return_inverse=True)
    first = np.full(inverse.max() + 1, rank.max())
    np.minimum.at(first, inverse, rank)
    order: list[int] = np.lexsort((rank, first[inverse])).tolist()
    return order


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
