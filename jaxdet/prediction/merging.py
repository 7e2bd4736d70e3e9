"""Detections of overlapping windows of an image as those of the image: each object once.

Inside a window the model has decided what is one object; here that is decided between windows alone, class by class.
An object that a border cuts is found as a piece on one side of it.  That its box overlaps little with the box of the
whole object says nothing, so what is compared is what both windows see: **two detections are of one object if, inside
the area that both windows see, their masks (of a model without masks their boxes) have an IoU of ``agreement``, or if
one that is cut lies within the other by that share of its area.**  (SAHI, Akyol et al. 2022,
https://github.com/obss/sahi, compares boxes as a whole, by their intersection over the smaller area: a small object in
front of a large one becomes part of it, and pieces that have little in common stay two.)

Of detections that are one object the best that no border cuts stays as it is.  Where borders cut all of them they are
joined: the union of masks and boxes, with the best score.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.evaluation.results import Result
from jaxdet.prediction.tiles import Window

_MARGIN = 0.01  #: of a window's side, nearer than which to its border an object counts as cut
_Boxes: TypeAlias = NDArray[np.float64]


def merge_windows(
    found: Sequence[tuple[Window, Sequence[Result]]], hw: tuple[int, int], agreement: float = 0.5
) -> list[Result]:
    """Results of windows, in pixels of the image of size ``hw``, as results of the image, best first."""
    results = [result for _, its in found for result in its]
    boxes = _corners(results)
    window = np.repeat(np.arange(len(found)), [len(its) for _, its in found])
    cut = np.array([_is_cut(box, found[at][0], hw) for box, at in zip(boxes, window.tolist(), strict=True)], np.bool_)
    places = [np.flatnonzero(window == at) for at in range(len(found))]
    pairs: list[tuple[float, int, int]] = []
    for one, other in combinations(range(len(found)), 2):
        shared = _common(found[one][0].box, found[other][0].box)
        if (shared[2:] > shared[:2]).all() and len(places[one]) and len(places[other]):
            pairs += _agreeing(results, boxes, cut, places[one], places[other], shared, hw, agreement)
    group = list(range(len(results)))
    whole: list[set[int]] = [set() if is_cut else {int(at)} for is_cut, at in zip(cut, window, strict=True)]
    for _, one, other in sorted(pairs, key=lambda pair: -pair[0]):
        first, second = sorted((_root(group, one), _root(group, other)))
        # Two that the model told apart in one window, and that no border cuts, stay two.
        if first != second and not whole[first] & whole[second]:
            group[second] = first
            whole[first] |= whole[second]
    members: dict[int, list[int]] = {}
    for at in range(len(results)):
        members.setdefault(_root(group, at), []).append(at)
    merged = [_one([results[at] for at in its], cut[its]) for its in members.values()]
    return sorted(merged, key=lambda result: -float(result["score"]))


def _agreeing(
    results: Sequence[Result],
    boxes: _Boxes,
    cut: NDArray[np.bool_],
    ones: NDArray[np.intp],
    others: NDArray[np.intp],
    shared: _Boxes,
    hw: tuple[int, int],
    agreement: float,
) -> list[tuple[float, int, int]]:
    """Pairs of detections of two windows that are one object, each with how well they agree."""
    ones, others = (its[_area(_common(boxes[its], shared)) > 0] for its in (ones, others))
    seen, there = _common(boxes[ones], shared), _common(boxes[others], shared)
    overlap = _area(_common(seen[:, None], there[None]))
    same = np.array([[results[i]["category_id"] == results[j]["category_id"] for j in others] for i in ones], bool)
    pairs = []
    for a, b in zip(*np.nonzero((overlap > 0) & same.reshape(overlap.shape)), strict=True):
        one, other = int(ones[a]), int(others[b])
        if "segmentation" in results[one] and "segmentation" in results[other]:
            areas = _mask_areas(results[one]["segmentation"], results[other]["segmentation"], shared, hw)
        else:
            common = _area(_common(boxes[one], boxes[other]))
            areas = tuple(
                map(float, (overlap[a, b], _area(seen[a]), _area(there[b]), common, *_area(boxes[[one, other]])))
            )
        degree = areas[0] / max(areas[1] + areas[2] - areas[0], 1e-9)
        for at, area in zip((one, other), areas[4:], strict=True):
            if cut[at] and area > 0:
                degree = max(degree, areas[3] / area)
        if degree >= agreement:
            pairs.append((degree, one, other))
    return pairs


def _mask_areas(one: Any, other: Any, shared: _Boxes, hw: tuple[int, int]) -> tuple[float, ...]:
    """Areas in pixels: inside of ``shared`` of both together, of each; and everywhere of both together, of each."""
    x1, y1, x2, y2 = shared.tolist()
    (frame,) = coco_mask.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], *hw)
    inside = [coco_mask.merge([mask, frame], intersect=True) for mask in (one, other)]
    both = coco_mask.merge(inside, intersect=True)
    common = coco_mask.merge([one, other], intersect=True)
    return tuple(float(coco_mask.area(mask)) for mask in (both, *inside, common, one, other))


def _one(members: Sequence[Result], cut: NDArray[np.bool_]) -> Result:
    """What stays of the detections of one object."""
    ranked = sorted(range(len(members)), key=lambda at: -float(members[at]["score"]))
    whole = [at for at in ranked if not cut[at]]
    if whole or len(members) == 1:
        return dict(members[(whole or ranked)[0]])
    boxes = _corners(members)
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    joined = members[ranked[0]] | {"bbox": [*low.tolist(), *(high - low).tolist()]}
    if all("segmentation" in member for member in members):
        union = coco_mask.merge([member["segmentation"] for member in members])
        joined["segmentation"] = {"size": list(union["size"]), "counts": union["counts"].decode("ascii")}
    return joined


def _is_cut(box: _Boxes, window: Window, hw: tuple[int, int]) -> bool:
    """Whether a box ends at a border of its window that is none of the image."""
    margin = max(2.0, _MARGIN * max(window.hw))
    near = np.abs(box - window.box) <= margin
    inner = window.box != np.array([0, 0, hw[1], hw[0]])
    return bool((near & inner).any())


def _corners(results: Sequence[Result]) -> _Boxes:
    boxes = np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _common(one: _Boxes, other: _Boxes) -> _Boxes:
    """The rectangles that boxes ``[..., 4]`` have in common; without area where there is none."""
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    return np.concatenate([low, np.maximum(high, low)], -1)


def _area(boxes: _Boxes) -> _Boxes:
    return np.asarray(np.prod(boxes[..., 2:] - boxes[..., :2], -1), np.float64)


def _root(group: list[int], at: int) -> int:
    while group[at] != at:
        group[at] = group[group[at]]
        at = group[at]
    return at
