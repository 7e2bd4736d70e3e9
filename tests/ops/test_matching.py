from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.matching import Match, Matcher
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
