from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.anchors import Points
from jaxdet.ops.matching import CentreSampling, Match, Matcher
from jaxdet.structures import Masks
from tests.ops import oracles
from tests.ops.golden import INPUTS, OPS

REFERENCE = {
    "rcnn_lq": Matcher(0.5, 0.5, 0.5),
    "rcnn_07": Matcher(0.7, 0.7, 0.7, low_quality=False),
    "rcnn_nolq": Matcher(0.5, 0.5, 0.5, low_quality=False),
    "rpn": Matcher(0.7, 0.3, 0.3),
    "retina": Matcher(0.5, 0.4, 0.0),
    "ignore": Matcher(0.5, 0.5, 0.5, ignore_cover=0.5),
}


@partial(jax.jit, static_argnums=0)
def run(
    matcher: Matcher, boxes: jax.Array, valid: jax.Array, gt: jax.Array, real: jax.Array, crowd: jax.Array
) -> Match:
    return matcher(boxes, valid, gt, real, crowd)


def match_all(matcher: Matcher, boxes: np.ndarray, truths: np.ndarray, **changes: np.ndarray) -> Match:
    """Every box valid, every ground truth real, none a crowd, unless said otherwise."""
    number, slots = len(boxes), len(truths)
    masks = {"valid": np.ones(number, bool), "real": np.ones(slots, bool), "crowd": np.zeros(slots, bool)} | changes
    return run(matcher, np.float32(boxes), masks["valid"], np.float32(truths), masks["real"], masks["crowd"])


def as_list(match: Match) -> list[int | None]:
    """The oracle's form: index of the ground truth, -1 negative, None neither."""
    rows = zip(np.asarray(match.gt_index), np.asarray(match.positive), np.asarray(match.negative), strict=True)
    return [int(index) if positive else -1 if negative else None for index, positive, negative in rows]


def test_thresholds_by_hand() -> None:
    """IoU 1, 0.5 and 0.25 with the truth of area 8."""
    truth = [[0, 0, 4, 2]]
    boxes = [[0, 0, 4, 2], [0, 0, 2, 2], [0, 0, 1, 2], [8, 8, 9, 9]]
    match = match_all(Matcher(0.7, 0.3, 0.7), boxes, truth)
    assert as_list(match) == [0, None, -1, -1]
    np.testing.assert_allclose(match.max_iou, [1.0, 0.5, 0.25, 0.0], rtol=1e-6)
    assert as_list(match_all(Matcher(0.5, 0.25, 0.5), boxes, truth)) == [0, 0, None, -1]


def test_a_positive_box_is_never_negative() -> None:
    """Also where the thresholds cross: a box of IoU 0.5."""
    match = match_all(Matcher(0.4, 0.6, 0.4, low_quality=False), [[0, 0, 2, 2], [0, 0, 1, 2]], [[0, 0, 4, 2]])
    assert as_list(match) == [0, -1]
    assert not (match.positive & match.negative).any()


def test_low_quality_gives_each_ground_truth_its_best_boxes() -> None:
    truths = [[0, 0, 10, 10], [20, 20, 30, 30]]
    boxes = [[0, 0, 10, 4], [0, 0, 4, 10], [20, 20, 30, 21], [0, 0, 10, 3]]  # IoU .4, .4, .1, .3
    assert as_list(match_all(Matcher(0.7, 0.35, 0.3), boxes, truths)) == [0, 0, -1, -1]
    assert as_list(match_all(Matcher(0.7, 0.35, 0.3, low_quality=False), boxes, truths)) == [None, None, -1, -1]
    assert as_list(match_all(Matcher(0.7, 0.35, 0.0), boxes, truths)) == [0, 0, 1, -1]


def test_low_quality_overrides_and_the_last_ground_truth_wins() -> None:
    """Both truths like the one box best; the first by more."""
    truths, boxes = [[0, 0, 10, 10], [0, 0, 10, 8]], [[0, 0, 10, 10], [50, 50, 60, 60]]
    assert as_list(match_all(Matcher(0.5, 0.5, 0.5), boxes, truths)) == [1, -1]
    assert as_list(match_all(Matcher(0.5, 0.5, 0.5, low_quality=False), boxes, truths)) == [0, -1]


def test_crowds_match_nothing_and_cover_if_asked() -> None:
    truths, crowd = [[0, 0, 10, 10], [20, 0, 40, 10]], np.array([False, True])
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [15, 0, 25, 10], [16, 0, 26, 10]]  # covered 0, 1, .5, .6
    assert as_list(match_all(Matcher(), boxes, truths, crowd=crowd)) == [0, -1, -1, -1]
    covering = Matcher(ignore_cover=0.5)
    assert as_list(match_all(covering, boxes, truths, crowd=crowd)) == [0, None, -1, None]
    padding = np.array([True, False])  # a crowd in an invalid slot covers nothing
    assert as_list(match_all(covering, boxes, truths, crowd=crowd, real=padding)) == [0, -1, -1, -1]


def test_a_covered_box_is_nobodys_best_box() -> None:
    """The crowd takes the best box of the truth, so low quality goes to the second best."""
    truths, crowd = [[0, 0, 10, 10], [0, 0, 10, 4.5]], np.array([False, True])
    boxes = [[0, 0, 10, 4], [0, 7, 10, 10]]
    assert as_list(match_all(Matcher(0.7, 0.3, 0.2, ignore_cover=0.5), boxes, truths, crowd=crowd)) == [None, 0]


@pytest.mark.parametrize("slots", ["padding", "crowd"])
def test_without_ground_truth_all_is_negative(slots: str) -> None:
    rng = np.random.default_rng(0)
    changes = {"real": np.zeros(3, bool)} if slots == "padding" else {"crowd": np.ones(3, bool)}
    truths = np.full((3, 4), np.nan) if slots == "padding" else oracles.random_boxes(rng, 3)
    for matcher in (Matcher(), Matcher(0.7, 0.3, 0.0)):
        match = match_all(matcher, oracles.random_boxes(rng, 6), truths, **changes)
        assert as_list(match) == [-1] * 6
        np.testing.assert_array_equal(match.max_iou, 0.0)


def test_no_slots_for_ground_truth_is_an_error_and_no_boxes_is_not() -> None:
    with pytest.raises(ValueError, match="at least one ground-truth slot, got 0"):
        match_all(Matcher(), np.zeros((3, 4)), np.zeros((0, 4)))
    assert as_list(match_all(Matcher(), np.zeros((0, 4)), np.ones((2, 4)))) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("low_quality", [True, False])
def test_against_the_oracle(seed: int, low_quality: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes, truths = oracles.random_boxes(rng, 40), oracles.random_boxes(rng, 5)
    boxes[:4], boxes[4:6] = truths[:4], boxes[6:8]  # exact hits and exact ties
    expected = oracles.match(boxes, truths, 0.5, 0.3, 0.2, low_quality)
    assert as_list(match_all(Matcher(0.5, 0.3, 0.2, low_quality), boxes, truths)) == expected


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_nothing(value: float) -> None:
    rng = np.random.default_rng(5)
    boxes, truths = oracles.random_boxes(rng, 40), oracles.random_boxes(rng, 5)
    matcher = Matcher(0.5, 0.3, 0.2, ignore_cover=0.9)
    expected = match_all(matcher, boxes, truths)
    real, valid = np.arange(8) < 5, np.arange(47) < 40
    more = oracles.padded(boxes, 7, value), oracles.padded(truths, 3, value)
    match = match_all(matcher, *more, valid=valid, real=real, crowd=np.arange(8) == 6)
    assert as_list(match) == [*as_list(expected), *[None] * 7]
    np.testing.assert_array_equal(match.max_iou[:40], expected.max_iou)
    np.testing.assert_array_equal(match.gt_index[40:], 0)


def test_vmap_and_no_jit_agree() -> None:
    rng = np.random.default_rng(6)
    boxes, truths = (np.stack([oracles.random_boxes(rng, n) for _ in range(3)]) for n in (40, 5))
    ones, none = np.ones((3, 40), bool), np.zeros((3, 5), bool)
    together = jax.vmap(REFERENCE["rpn"])(boxes, ones, truths, ~none, none)
    with jax.disable_jit():
        alone = REFERENCE["rpn"](*(jnp.asarray(a[1]) for a in (boxes, ones, truths, ~none, none)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), together, alone)


@pytest.mark.parametrize("name", REFERENCE)
def test_golden_assignment(name: str) -> None:
    truths, crowd = INPUTS["gt_boxes"], np.arange(6) == 5
    truths = np.concatenate([truths, np.float32([[200, 30, 300, 140]])])
    match = match_all(REFERENCE[name], INPUTS["fixed_proposals"], truths, crowd=crowd)
    expected = OPS[f"assign/{name}_gt_inds"]  # -1 neither, 0 negative, k + 1 positive
    assert as_list(match) == [None if k < 0 else int(k) - 1 for k in expected]
    np.testing.assert_allclose(match.max_iou, np.maximum(OPS[f"assign/{name}_max_iou"], 0), atol=1e-6)


def test_golden_ties() -> None:
    """Among equal ground truths the last, among equal boxes all."""
    match = match_all(Matcher(0.7, 0.3, 0.3), OPS["assign/tie_boxes"], OPS["assign/tie_gt"])
    assert as_list(match) == [None if k < 0 else int(k) - 1 for k in OPS["assign/tie_gt_inds"]]


@pytest.mark.parametrize("seed", range(4))
def test_without_ties_each_ground_truth_takes_one_box(seed: int) -> None:
    """The first of its best ones, as YOLACT has it; the last ground truth takes it from those before."""
    rng = np.random.default_rng(seed)
    boxes, truths = oracles.random_boxes(rng, 30), oracles.random_boxes(rng, 6)
    boxes[10:20], truths[5] = boxes[:10], truths[0]  # every box of the first ten twice, and an object twice
    table = np.array([[oracles.iou(truth, box) for box in boxes] for truth in truths])
    expected: list[int | None] = []
    for row in table.T:
        best = int(row.argmax())
        expected.append(best if row[best] >= 0.5 else -1 if row[best] < 0.4 else None)
    for g, row in enumerate(table):
        expected[int(row.argmax())] = g
    matcher = Matcher(0.5, 0.4, 0.0, ties=False)
    assert as_list(match_all(matcher, boxes, truths)) == expected
    valid, real = np.arange(37) < 30, np.arange(9) < 6
    more = match_all(matcher, oracles.padded(boxes, 7, np.nan), oracles.padded(truths, 3, 7), valid=valid, real=real)
    assert as_list(more) == [*expected, *[None] * 7]


def test_ties_by_hand() -> None:
    """Two boxes are as good for the one object."""
    boxes, truth = [[0, 0, 10, 4], [0, 6, 10, 10], [50, 50, 60, 60]], [[0, 0, 10, 10]]
    assert as_list(match_all(Matcher(0.7, 0.3, 0.0), boxes, truth)) == [0, 0, -1]
    assert as_list(match_all(Matcher(0.7, 0.3, 0.0, ties=False), boxes, truth)) == [0, None, -1]
    crowd = np.array([True])
    assert as_list(match_all(Matcher(0.7, 0.3, 0.0, ties=False), boxes, truth, crowd=crowd)) == [-1, -1, -1]


# Cells near the centre of objects of their size.

CELLS = Points(levels=(3, 4, 5))
CANVAS = (256, 320)


def all_cells(points: Points = CELLS) -> np.ndarray:
    return np.concatenate([points.grid(i, CANVAS[0] >> i, CANVAS[1] >> i) for i in points.levels])


@partial(jax.jit, static_argnums=0)
def run_centres(
    matcher: CentreSampling, boxes: Any, valid: Any, gt: Any, real: Any, crowd: Any, masks: Masks | None
) -> Match:
    return matcher(boxes, valid, gt, real, crowd, masks)


def centre_match(boxes: np.ndarray, truths: np.ndarray, masks: Masks | None = None, **changes: Any) -> list[int | None]:
    number, slots, radius = len(boxes), len(truths), changes.pop("radius", 1.5)
    given = {"valid": np.ones(number, bool), "real": np.ones(slots, bool), "crowd": np.zeros(slots, bool)} | changes
    arrays = np.float32(boxes), given["valid"], np.float32(truths), given["real"], given["crowd"]
    match = run_centres(CentreSampling(radius), *arrays, masks)
    np.testing.assert_array_equal(match.max_iou, np.asarray(match.positive))
    return as_list(match)


def slow_centres(
    boxes: np.ndarray, truths: np.ndarray, centres: np.ndarray, levels: tuple[int, ...] = (3, 4, 5), radius: float = 1.5
) -> list[int]:
    """FCOS's targets for one point and one object after the other; ranges of sizes are -1, 64, 128, .., infinity."""
    bounds = {3: (-1.0, 64.0), 4: (64.0, 128.0), 5: (128.0, np.inf)}
    if len(levels) == 1:
        bounds = {levels[0]: (-1.0, np.inf)}
    found = []
    for x1, y1, x2, y2 in boxes:
        x, y, side = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1
        least, most = bounds[int(np.log2(side))]
        best, smallest = -1, np.inf
        for g, (left, top, right, bottom) in enumerate(truths):
            cx, cy = centres[g]
            near = max(cx - radius * side, left) < x < min(cx + radius * side, right)
            near &= max(cy - radius * side, top) < y < min(cy + radius * side, bottom)
            size, area = max(x - left, y - top, right - x, bottom - y), (right - left) * (bottom - top)
            if near and least <= size <= most and area < smallest:
                best, smallest = g, area
        found.append(best)
    return found


def middle(truths: np.ndarray) -> np.ndarray:
    return (truths[:, :2] + truths[:, 2:]) / 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("radius", [1.5, 0.6, 3.0])
def test_centre_sampling_against_loops(seed: int, radius: float) -> None:
    """Objects of all sizes, on whole multiples of 4 pixels, so that points lie on sides and sizes on bounds."""
    rng = np.random.default_rng(seed)
    corner = 4 * rng.integers(0, 40, (12, 2))
    side = 4 * 2 ** rng.integers(0, 6, (12, 2)) + 4 * rng.integers(0, 2, (12, 2))
    truths = np.concatenate([corner, corner + side], 1).astype(np.float32)
    boxes = all_cells()
    found = centre_match(boxes, truths, radius=radius)
    assert found == slow_centres(boxes, truths, middle(truths), radius=radius)
    assert len(set(found)) > 4, "a test of nothing"


def test_centre_sampling_by_hand() -> None:
    """An object of 40 x 40 pixels around (60, 60): cells of 8 whose centre is less than 12 pixels away."""
    truth, boxes = np.float32([[40, 40, 80, 80]]), all_cells()
    points = middle(boxes)
    positive = [tuple(points[i]) for i, g in enumerate(centre_match(boxes, truth)) if g == 0]
    assert positive == [(x, y) for y in (52, 60, 68) for x in (52, 60, 68)]
    coarse = all_cells(Points(levels=(5,)))  # a single level takes objects of every size
    found = [tuple(middle(coarse)[i]) for i, g in enumerate(centre_match(coarse, truth)) if g == 0]
    assert found == [(48, 48)]  # the next one, (80, 48), is on the side of the object


def test_the_smallest_of_several_objects_and_the_first_of_equal_ones() -> None:
    truths = np.float32([[40, 40, 80, 80], [44, 44, 76, 76], [44, 44, 76, 76], [0, 0, 120, 120]])
    boxes = all_cells()
    at = int(np.flatnonzero((middle(boxes) == 60).all(1))[0])
    assert centre_match(boxes, truths)[at] == 1
    assert centre_match(boxes, truths[::-1])[at] == 1
    assert centre_match(boxes, truths, crowd=np.array([False, True, True, False]))[at] == 0
    assert centre_match(boxes, truths, real=np.array([False, False, False, True]))[at] == 3


def test_sizes_at_the_bound_belong_to_both_levels() -> None:
    """From the point in the middle the sides are 64 pixels away: level 3 takes up to 64, level 4 from 64 on."""
    boxes = np.float32([[60, 60, 68, 68], [56, 56, 72, 72], [48, 48, 80, 80]])
    assert centre_match(boxes, np.float32([[0, 0, 128, 128]])) == [0, 0, -1]
    assert centre_match(boxes, np.float32([[0, 0, 129, 128]])) == [-1, 0, -1]
    assert centre_match(boxes, np.float32([[0.5, 0, 127, 127]])) == [0, 0, -1]
    assert centre_match(boxes, np.float32([[1, 1, 127, 127]])) == [0, -1, -1]


def test_the_centre_is_that_of_the_mask() -> None:
    """An object whose pixels are all in its upper left corner; an empty mask leaves the centre of the box."""
    truths, boxes = np.float32([[40, 40, 80, 80]] * 2), all_cells()
    values = np.zeros((2, 40, 40), np.uint8)
    values[0, :10, :10] = 1
    # Pixels 40 to 49, whose mean index is 44.5.
    first = Masks(values[:1], truths[:1])
    assert centre_match(boxes, truths[:1], first) == slow_centres(boxes, truths[:1], np.float32([[44.5, 44.5]]))
    empty = Masks(values[1:], truths[1:])
    assert centre_match(boxes, truths[1:], empty) == slow_centres(boxes, truths[1:], np.float32([[60, 60]]))
    none = Masks(values[:1, :0, :0], truths[:1])  # data without masks
    assert centre_match(boxes, truths[:1], none) == slow_centres(boxes, truths[:1], np.float32([[60, 60]]))


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_no_centre(value: float) -> None:
    rng = np.random.default_rng(7)
    truths, boxes = 6 * oracles.random_boxes(rng, 5), all_cells()
    masks = Masks(rng.integers(0, 2, (5, 8, 8)).astype(np.uint8), truths)
    expected = centre_match(boxes, truths, masks)
    assert max(g or 0 for g in expected) > 1
    more = Masks(*(oracles.padded(a, 3, value) for a in (masks.values, truths)))
    valid = np.arange(len(boxes)) % 3 > 0
    found = centre_match(boxes, oracles.padded(truths, 3, value), more, real=np.arange(8) < 5, valid=valid)
    assert found == [g if v else None for g, v in zip(expected, valid, strict=True)]


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_without_objects_all_cells_are_negative(value: float) -> None:
    boxes, nothing = all_cells(), np.full((2, 4), value)
    assert set(centre_match(boxes, nothing, real=np.zeros(2, bool))) == {-1}
    assert set(centre_match(boxes, np.float32([[40, 40, 80, 80]]), crowd=np.ones(1, bool))) == {-1}
    with pytest.raises(ValueError, match="at least one ground-truth slot, got 0"):
        centre_match(boxes, np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"CentreSampling\.radius: expected a number from 0 to 1,000, not 0, got 0"):
        CentreSampling(0)
