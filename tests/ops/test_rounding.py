"""Decisions that hang on the last bit, against exact arithmetic: outside jit, and compiled with many and few passes."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.boxes import coverage, iou
from jaxdet.ops.lattice import make_lattice
from jaxdet.ops.masks import mask_targets
from jaxdet.ops.matching import Matcher
from jaxdet.ops.roi_align import roi_align
from jaxdet.ops.rounding import product, quotient, refined, snapped, whole_parts
from jaxdet.ops.suppression import offset_by_group, overlaps
from jaxdet.structures import Masks
from tests.ops import oracles
from tests.programs import ways

THRESHOLDS = (0.3, 0.5, 0.6, 0.65, 0.7, 0.95)
EVERY = [0, 1, 2]
"""The three of `ways`."""


def uniform(number: int, shape: tuple[int, ...] = (100_003,)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(1, 1300, shape).astype(np.float32) for _ in range(number)]


@pytest.mark.parametrize("way", EVERY)
def test_a_product_is_rounded_before_the_sum(way: int) -> None:
    a, b, c = uniform(3)
    np.testing.assert_array_equal(ways(lambda a, b, c: product(a, b) + c)[way](a, b, c), a * b + c)


@pytest.mark.parametrize("way", EVERY)
def test_a_quotient_is_the_nearest_float32(way: int) -> None:
    a, b = uniform(2)
    np.testing.assert_array_equal(ways(quotient)[way](a, b), a / b)


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("wrong", [-3, -1, 0, 2])
def test_a_wrong_quotient_is_refined(way: int, wrong: int) -> None:
    """As backends divide that are up to three units in the last place off; whole numbers make many exact quotients."""
    rng = np.random.default_rng(1)
    a, b = ((x, y) for x, y in zip(uniform(2), rng.integers(1, 200, (2, 100_003)).astype(np.float32), strict=True))
    a, b = np.concatenate(a), np.concatenate(b)
    near = a / b
    for _ in range(abs(wrong)):
        near = np.nextafter(near, np.float32(np.inf if wrong > 0 else 0))
    np.testing.assert_array_equal(ways(refined)[way](a, b, near), a / b)


def test_refinement_leaves_what_is_no_number_or_has_no_bound() -> None:
    a, b = np.float32([0, 0, np.nan, np.inf, 1]), np.float32([0, 2, 1, np.inf, np.inf])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(refined(a, b, a / b), a / b)


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("part", [1, 3, 7, 14, 28, 32, 100])
def test_whole_parts_of_whole_numbers(way: int, part: int) -> None:
    numbers = np.arange(-5, 3000)
    count = ways(lambda x: whole_parts(x, part))[way](numbers.astype(np.float32))
    np.testing.assert_array_equal(count, -(-numbers // part))


def test_numbers_snap_to_whole_ones() -> None:
    near = np.nextafter(np.float32([112, 1, 999]), np.float32(np.inf))
    np.testing.assert_array_equal(snapped(near), [112, 1, 999])
    far = np.float32([0.0, 1e-6, 111.99, 0.5, -2.25, np.inf])
    np.testing.assert_array_equal(snapped(far), far)


def exact_count(side: int, stride: int, size: int) -> int:
    return -(-side // (stride * size))


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("size", [7, 14, 28])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_samples_of_every_whole_side(way: int, stride: int, size: int) -> None:
    """84, 168, 196, 308, 336, ... pixels at stride 4 once had a sample more under jit."""
    sides = np.arange(1, min(1345, 128 * stride * size))
    boxes = np.stack([0 * sides + 12, 0 * sides + 100, sides + 12, sides + 100], 1).astype(np.float32)

    def count(boxes: jax.Array) -> jax.Array:
        scaled = boxes * jnp.float32(1 / stride) - 0.5
        roi_size = (scaled[:, :1:-1] - scaled[:, 1::-1])[None]
        return make_lattice(roi_size, roi_size, jnp.ones(roi_size.shape[:2], bool), (size, size), 0).count

    expected = [exact_count(side, stride, size) for side in sides.tolist()]
    np.testing.assert_array_equal(ways(count)[way](boxes)[0], np.stack([expected, expected], 1))


@pytest.mark.parametrize("way", EVERY)
def test_crops_of_bins_of_whole_pixels(way: int) -> None:
    boxes = np.float32([[12, 100, 320, 118], [0, 0, 84, 168], [4, 8, 200, 344], [3, 5, 339, 173], [1, 2, 309, 310]])
    image = np.random.default_rng(0).standard_normal((1, 90, 90, 2)).astype(np.float32)
    where = boxes[None], np.zeros((1, 5), np.int32), np.ones((1, 5), bool)
    crops = ways(partial(roi_align, scales=(0.25,), size=(7, 7)))[way](
        [image], boxes=where[0], level=where[1], valid=where[2]
    )
    for crop, box in zip(crops[0], boxes, strict=True):
        np.testing.assert_allclose(crop, oracles.roi_align(image[0], box, 0.25, (7, 7), 0, True), atol=1e-5)


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("finest", [56.0, 50.0])
def test_level_of_whole_sides(way: int, finest: float) -> None:
    rng = np.random.default_rng(0)
    powers = int(finest) * 2 ** np.arange(5)
    sides = np.concatenate(
        [rng.integers(1, 1400, (5000, 2)), *([[p, p], [p - 1, p + 1], [2 * p, p // 2]] for p in powers)]
    )
    boxes = np.concatenate([rng.integers(0, 9, sides.shape), sides], 1).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    least = [(Fraction(finest) * (2**level - Fraction("1e-6"))) ** 2 for level in (1, 2, 3)]
    expected = [sum(w * h >= bound for bound in least) for w, h in sides.tolist()]
    np.testing.assert_array_equal(ways(SingleLevel(finest=finest).level_of)[way](boxes), expected)


def at_threshold(threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Truths, and inside each a box of that IoU with it, exactly: whole sides up to 1300, far from each other."""
    number = 60
    length = Fraction(str(threshold)).denominator
    heights, steps = np.arange(1, number + 1) * 3, 1 + np.arange(number) % (1300 // length)
    low = np.stack([0 * heights, np.cumsum(heights) - heights], 1)
    truths = np.concatenate([low, low + np.stack([steps * length, heights], 1)], 1)
    boxes = truths.copy()
    boxes[:, 2] = steps * Fraction(str(threshold)).numerator
    return truths.astype(np.float32), boxes.astype(np.float32)


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_an_overlap_of_the_threshold(way: int, threshold: float) -> None:
    """It makes a box positive, never negative, hides nothing under a crowd, and suppresses nothing."""
    truths, boxes = at_threshold(threshold)
    ones = np.ones(len(truths), bool)
    matcher = Matcher(threshold, threshold, threshold, low_quality=False)
    match = ways(matcher)[way](boxes, ones, truths, ones, ~ones)
    np.testing.assert_array_equal(match.positive, ones)
    np.testing.assert_array_equal(match.gt_index, np.arange(len(truths)))
    assert not ways(Matcher(1.0, threshold, low_quality=False))[way](boxes, ones, truths, ones, ~ones).negative.any()
    assert not ways(partial(overlaps, threshold=threshold))[way](truths, boxes).any()
    covered = np.asarray(ways(coverage)[way](truths, boxes))
    np.testing.assert_array_equal(np.diag(covered), np.float32(threshold))


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_overlaps_of_whole_boxes(way: int, threshold: float) -> None:
    rng = np.random.default_rng(2)
    a = np.concatenate([np.zeros((400, 2), int), rng.integers(1, 41, (400, 2))], 1)
    b = a + rng.integers(-1, 2, a.shape)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (a, b)]
    exact, union = Fraction(str(threshold)), areas[0][:, None] + areas[1][None] - shared
    above = shared * exact.denominator > exact.numerator * union
    reached = (shared * exact.denominator >= exact.numerator * union) & (union > 0)
    assert (above != reached).sum() > 5, "a test of nothing"
    a, b = a.astype(np.float32), b.astype(np.float32)
    np.testing.assert_array_equal(ways(partial(overlaps, threshold=threshold))[way](a, b), above)
    np.testing.assert_array_equal(ways(lambda a, b: iou(a, b) >= threshold)[way](a, b), reached)


@pytest.mark.parametrize("way", EVERY)
def test_every_ground_truth_has_its_best_anchors(way: int) -> None:
    """Those that NumPy's float32 says, to the last bit: many anchors in a large object differ by no more than that."""
    rng = np.random.default_rng(3)
    anchors = np.concatenate([Anchors().grid(level, 160 >> level, 224 >> level) for level in range(2, 7)])
    truths = oracles.random_boxes(rng, 24, 160.0)
    truths[:8] = np.float32([0, 0, 224, 160]) + rng.uniform(0, 0.1, (8, 4)).astype(np.float32)
    truths[8:12] = np.round(truths[8:12])
    ones, none = np.ones(len(anchors), bool), np.zeros(len(truths), bool)
    size = np.maximum(
        np.minimum(truths[:, None, 2:], anchors[:, 2:]) - np.maximum(truths[:, None, :2], anchors[:, :2]), 0
    )
    shared = size[..., 0] * size[..., 1]
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (truths, anchors)]
    overlap = shared / (areas[0][:, None] + areas[1] - shared)
    best = (overlap == overlap.max(1, keepdims=True)) & (overlap.max(1, keepdims=True) >= np.float32(0.3))
    match = ways(Matcher(0.7, 0.3, 0.3))[way](anchors, ones, truths, ~none, none)
    np.testing.assert_array_equal(match.max_iou, overlap.max(0))
    np.testing.assert_array_equal(match.positive, best.any(0) | (overlap.max(0) >= np.float32(0.7)))
    last = len(truths) - 1 - best[::-1].argmax(0)
    expected = np.where(best.any(0), last, overlap.argmax(0))
    np.testing.assert_array_equal(match.gt_index, np.where(match.positive, expected, 0))


@pytest.mark.parametrize("way", EVERY)
def test_groups_are_moved_apart_as_in_float32(way: int) -> None:
    boxes, groups = np.stack(uniform(4, (500,)), 1), np.arange(500) % 80
    moved = ways(offset_by_group)[way](boxes, groups.astype(np.int32), np.ones(500, bool))
    shift = groups.astype(np.float32) * (boxes.max() + np.float32(1))
    np.testing.assert_array_equal(moved, boxes + shift[:, None])


def exact_shares(low: int, side: int, frame: int, cells: int, size: int, edge: int) -> list[Fraction]:
    """Of a bitmap along one axis, ``frame`` pixels large, whose cells from ``edge`` on are set: means of the bins."""
    start, length = Fraction(low * cells, frame) - Fraction(1, 2), Fraction(side * cells, frame)
    count = -(-length.numerator // (length.denominator * size))

    def value(position: Fraction) -> Fraction:
        if not -1 <= position <= cells:
            return Fraction(0)
        return min(max(min(max(position, Fraction(0)), Fraction(cells - 1)) - (edge - 1), Fraction(0)), Fraction(1))

    step = length / size
    return [
        sum((value(start + i * step + (k + Fraction(1, 2)) * step / count) for k in range(count)), Fraction(0)) / count
        for i in range(size)
    ]


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize(("frame", "cells", "size"), [(112, 112, 28), (84, 28, 14), (75, 56, 14), (336, 336, 28)])
def test_mask_targets_of_straight_sides(way: int, frame: int, cells: int, size: int) -> None:
    """Boxes of whole pixels, some of them reaching beyond the frame; exactly one half is set."""
    rng = np.random.default_rng(frame)
    edges = rng.integers(1, cells, 40)
    low = rng.integers(-frame // 8, frame // 2, 40)
    side = rng.integers(frame // 4, frame // 2 + frame // 8, 40)
    low[:10], side[:10] = 0, frame
    masks = (np.arange(cells) >= edges[:, None])[None, :, None].repeat(2, 2).astype(np.uint8)
    expected = [
        exact_shares(*its, frame, cells, size, edge)
        for *its, edge in zip(low.tolist(), side.tolist(), edges.tolist(), strict=True)
    ]
    shares = np.array([[float(share) for share in row] for row in expected])
    close = (np.abs(shares - 0.5) < 1e-4) & (shares != 0.5)
    assert (shares == 0.5).any(), "a test of nothing"
    zero, index = 0 * low, np.arange(40, dtype=np.int32)[None]
    boxes, frames = np.stack([low, zero, low + side, zero + 2], 1), np.tile([0, 0, frame, 2], (40, 1))
    for turned in (False, True):
        if turned:
            boxes, frames, masks = boxes[:, [1, 0, 3, 2]], frames[:, [1, 0, 3, 2]], masks.swapaxes(2, 3)
        truth = Masks(masks, np.float32(frames)[None])
        arrays = truth, np.float32(boxes)[None], index, np.ones((1, 40), bool)
        target = np.asarray(ways(partial(mask_targets, size=size))[way](*arrays))[0]
        found = target[:, size // 2] if not turned else target[:, :, size // 2]
        np.testing.assert_array_equal(found[~close], (shares >= 0.5)[~close])
