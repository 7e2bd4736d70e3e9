from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import selection
from jaxdet.ops import suppression as module
from jaxdet.ops.devices import traced_for
from jaxdet.ops.suppression import NMS, FastNMS, Kept, Suppression, nms, offset_by_group
from tests.ops import oracles
from tests.ops.golden import OPS
from tests.programs import equations


@partial(jax.jit, static_argnames=("threshold", "limit", "block"))
def run(boxes: jax.Array, scores: jax.Array, valid: jax.Array, threshold: float, limit: int, block: int = 512) -> Kept:
    return nms(boxes, scores, valid, threshold=threshold, limit=limit, block=block)


def kept_of(boxes: np.ndarray, scores: np.ndarray, threshold: float, limit: int, **more: np.ndarray | int) -> list[int]:
    options = {"valid": np.ones(len(boxes), bool), "block": 512} | more
    kept = run(np.float32(boxes), np.float32(scores), options["valid"], threshold, limit, options["block"])
    number = int(kept.valid.sum())
    assert kept.index.shape == kept.valid.shape == (limit,)
    assert kept.valid[:number].all(), "kept boxes come first"
    np.testing.assert_array_equal(kept.index[number:], 0)
    return np.asarray(kept.index[:number]).tolist()


def chain(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of length 10 in a row, each 4 after the other: only neighbours overlap by more than 0.3 (IoU 6/14)."""
    starts = 4.0 * np.arange(number)
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], 1)
    return boxes.astype(np.float32), np.linspace(1, 0.1, number, dtype=np.float32)


def test_three_boxes_by_hand() -> None:
    """IoU of the first two is 8/12."""
    boxes = [[0, 0, 10, 1], [2, 0, 12, 1], [20, 0, 30, 1]]
    assert kept_of(boxes, [0.5, 0.9, 0.1], 0.5, 3) == [1, 2]
    assert kept_of(boxes, [0.5, 0.9, 0.1], 0.7, 3) == [1, 0, 2]


def test_the_threshold_itself_suppresses_nothing() -> None:
    boxes = [[0, 0, 4, 1], [0, 0, 2, 1]]  # IoU exactly one half
    assert kept_of(boxes, [0.9, 0.8], 0.5, 2) == [0, 1]
    assert kept_of(boxes, [0.9, 0.8], 0.49, 2) == [0]


@pytest.mark.parametrize("kind", ["cpu", "tpu"])  # which order boxes each in its way
def test_equal_scores_count_in_index_order(kind: str) -> None:
    boxes, _ = chain(6)
    with traced_for(kind):
        assert kept_of(boxes, np.full(6, 0.5), 0.3, 6) == [0, 2, 4]
        assert kept_of(boxes, [0.5, 0.5, -0.0, 0.0, 0.9, 0.9], 0.3, 6) == [4, 0, 2]
        assert kept_of(np.tile(boxes[:1], (6, 1)), np.full(6, 0.5), 0.3, 6) == [0]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 16, 64])
def test_a_long_chain_across_blocks(block: int) -> None:
    """Every second box of the chain stays, which the last one learns only from the first."""
    boxes, scores = chain(33)
    assert kept_of(boxes, scores, 0.3, 33, block=block) == list(range(0, 33, 2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_against_the_oracle(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = oracles.random_boxes(rng, 33)
    scores = (rng.integers(0, 8, 33) / 8).astype(np.float32)  # many ties
    assert kept_of(boxes, scores, threshold, 33) == oracles.nms(boxes, scores, threshold, 33)


@pytest.mark.parametrize("block", range(1, 12))
def test_every_block_size_gives_the_same(block: int) -> None:
    rng = np.random.default_rng(7)
    boxes, scores = oracles.random_boxes(rng, 11, 20.0), rng.random(11).astype(np.float32)
    assert kept_of(boxes, scores, 0.2, 11, block=block) == oracles.nms(boxes, scores, 0.2, 11)


@pytest.mark.parametrize(("limit", "block"), [(1, 512), (5, 512), (5, 4), (40, 512)])
def test_a_limit_below_or_above_what_is_kept(limit: int, block: int) -> None:
    boxes, scores = chain(33)
    assert kept_of(boxes, scores, 0.3, limit, block=block) == list(range(0, 33, 2))[:limit]


@pytest.mark.parametrize("whole", [1024, 32])
def test_chains_through_all_words_and_blocks(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among boxes that have nothing to do with the chain; alone, and in a batch; kept boxes at once, and in chunks."""
    monkeypatch.setattr(module, "WHOLE", whole)
    monkeypatch.setattr(module, "CHUNK", 32)
    boxes, scores = chain(150)
    rng = np.random.default_rng(5)
    others = oracles.random_boxes(rng, 150, 40.0) + np.float32([0, 100, 0, 100])
    boxes, scores = np.concatenate([boxes, others]), np.concatenate([scores, rng.uniform(-1, 2, 150)])
    scores = scores.astype(np.float32)
    expected = oracles.nms(boxes, scores, 0.3, 300)
    for block in (512, 128, 96):
        assert kept_of(boxes, scores, 0.3, 300, block=block) == expected
    apart = np.arange(1200, dtype=np.float32).reshape(300, 4)  # settled after the first round
    together = jax.vmap(partial(nms, threshold=0.3, limit=300))(
        np.stack([apart, boxes]), np.stack([scores, scores]), np.ones((2, 300), bool)
    )
    assert np.asarray(together.index[1, : len(expected)]).tolist() == expected
    assert together.valid.sum(1).tolist() == [len(oracles.nms(apart, scores, 0.3, 300)), len(expected)]


@pytest.fixture(params=["gpu", "tpu"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Programs for one, run here; a TPU has more boxes than it orders at once."""
    monkeypatch.setattr(selection, "_COMPARED", 100)
    monkeypatch.setattr(module, "FIRST", 64)
    with traced_for(request.param):
        yield request.param


def test_accelerators_keep_the_same_boxes(accelerator: str) -> None:
    """Chains longer than the rounds, through all blocks; many ties, negative scores, both zeros, some invalid."""
    rng, number = np.random.default_rng(8), 150
    valid = rng.random(number) < 0.9
    for spread in (5.0, 20.0, 60.0, 200.0):
        boxes = oracles.random_boxes(rng, number, spread)
        scores = (rng.integers(-9, 9, number) / 8).astype(np.float32)
        scores[(scores == 0) & (rng.random(number) < 0.5)] = -0.0
        rows = np.flatnonzero(valid)
        expected = rows[oracles.nms(boxes[rows], scores[rows], 0.2, 40)].tolist()
        assert kept_of(boxes, scores, 0.2, 40, valid=valid, block=64) == expected
    boxes, scores = chain(number)
    together = jax.jit(jax.vmap(partial(nms, threshold=0.3, limit=number, block=64)))(
        np.stack([boxes, boxes]), np.stack([scores, scores[::-1]]), np.ones((2, number), bool)
    )
    assert together.index[:, : number // 2].tolist() == [list(range(0, number, 2)), list(range(number - 1, 0, -2))]
    assert together.valid.sum(1).tolist() == [number // 2] * 2


def test_accelerators_have_no_loop_in_a_block(accelerator: str) -> None:
    """One over blocks, and one over the best, the next best and so on where not all are ordered."""
    traced = jax.make_jaxpr(partial(nms, threshold=0.3, limit=9))(*chain(150), np.ones(150, bool))
    loops = [outer for equation, outer in equations(traced.jaxpr) if equation.primitive.name == "while"]
    assert loops == ([()] if accelerator == "gpu" else [(), ("while",)])
    assert "sort" not in {equation.primitive.name for equation, _ in equations(traced.jaxpr)} or accelerator == "gpu"


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_nothing(value: float) -> None:
    rng = np.random.default_rng(1)
    boxes, scores = oracles.random_boxes(rng, 33), rng.random(33).astype(np.float32)
    valid = np.arange(40) < 33
    more = oracles.padded(boxes, 7, value), oracles.padded(scores, 7, value)
    assert kept_of(*more, 0.3, 33, valid=valid) == oracles.nms(boxes, scores, 0.3, 33)


def test_order_scale_and_mirror_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    boxes, scores = oracles.random_boxes(rng, 33), rng.permutation(33).astype(np.float32)
    expected = kept_of(boxes, scores, 0.3, 33)
    order = rng.permutation(33)
    assert order[kept_of(boxes[order], scores[order], 0.3, 33)].tolist() == expected
    assert kept_of(boxes * 8, scores, 0.3, 33) == expected
    assert kept_of((64 - boxes)[:, [2, 3, 0, 1]], scores, 0.3, 33) == expected


def test_hostile_boxes() -> None:
    nothing = np.zeros(33, bool)
    assert kept_of(np.ones((33, 4)), np.ones(33), 0.3, 33, valid=nothing) == []
    assert kept_of(np.zeros((0, 4)), np.zeros(0), 0.5, 4) == []
    assert kept_of(np.full((33, 4), np.nan), np.ones(33), 0.3, 33) == []
    boxes, scores = chain(33)
    boxes[0], scores[2], boxes[4] = np.nan, np.nan, np.inf
    kept = kept_of(boxes, scores, 0.3, 33)
    rest = [i for i in range(33) if i not in (0, 2, 4)]
    assert kept == [rest[i] for i in oracles.nms(boxes[rest], scores[rest], 0.3, 33)]
    points = np.repeat(np.float32([[5, 5, 5, 5], [7, 5, 7, 9]]), 3, axis=0)  # empty boxes overlap nothing
    assert kept_of(points, np.arange(6), 0.3, 6) == [5, 4, 3, 2, 1, 0]


def test_negative_and_equal_scores_are_scores_too() -> None:
    boxes, _ = chain(33)
    assert kept_of(boxes, -np.arange(33.0), 0.3, 33) == list(range(0, 33, 2))


def test_vmap_and_no_jit_agree() -> None:
    rng = np.random.default_rng(3)
    boxes = np.stack([oracles.random_boxes(rng, 11, 20.0) for _ in range(3)])
    scores, valid = rng.random((3, 11)).astype(np.float32), np.ones((3, 11), bool)
    one = partial(nms, threshold=0.2, limit=4, block=4)
    together = jax.vmap(one)(boxes, scores, valid)
    for i in range(3):
        number = int(together.valid[i].sum())
        assert np.asarray(together.index[i, :number]).tolist() == oracles.nms(boxes[i], scores[i], 0.2, 4)
    with jax.disable_jit():
        alone = one(jnp.asarray(boxes[1]), jnp.asarray(scores[1]), jnp.asarray(valid[1]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), together, alone)


def test_groups_do_not_suppress_each_other() -> None:
    rng = np.random.default_rng(4)
    boxes, scores = oracles.random_boxes(rng, 33, 20.0), rng.permutation(33).astype(np.float32)
    groups, valid = rng.integers(0, 3, 33).astype(np.int32), np.arange(33) % 5 > 0
    boxes[~valid] = np.nan
    kept = kept_of(np.asarray(offset_by_group(boxes, groups, valid)), scores, 0.2, 33, valid=valid)
    expected: list[int] = []
    for group in range(3):
        members = np.flatnonzero((groups == group) & valid)
        expected += members[oracles.nms(boxes[members], scores[members], 0.2, 33)].tolist()
    assert kept == sorted(expected, key=lambda i: -scores[i])


def test_groups_stay_apart_where_boxes_begin_before_the_image() -> None:
    """The largest coordinate alone would move the second box of group 1 onto the first of group 0."""
    boxes = np.float32([[5, 5, 9, 9], [-5, -5, -1, -1], [0, 0, 2, 2]])
    apart = np.asarray(offset_by_group(boxes, np.int32([0, 1, 2]), np.ones(3, bool)))
    np.testing.assert_array_equal(apart, boxes + np.float32([[0], [15], [30]]))
    assert kept_of(apart, np.float32([3, 2, 1]), 0.5, 3) == [0, 1, 2]


def test_one_nan_does_not_push_all_groups_away() -> None:
    boxes = np.float32([[0, 0, 9, 9], [np.nan, 0, 9, 9], [0, 0, 9, 9]])
    apart = offset_by_group(boxes, np.int32([0, 0, 1]), np.ones(3, bool))
    np.testing.assert_array_equal(apart[2], [10, 10, 19, 19])
    assert kept_of(np.asarray(apart), np.ones(3), 0.5, 3) == [0, 2]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_golden_nms(threshold: float) -> None:
    boxes, scores = OPS["nms/boxes"], OPS["nms/scores"]
    assert kept_of(boxes, scores, threshold, 60) == OPS[f"nms/keep_{threshold}"].tolist()
    apart = offset_by_group(boxes, jnp.asarray(OPS["nms/ids"], jnp.int32), jnp.ones(60, bool))
    assert kept_of(np.asarray(apart), scores, threshold, 60) == OPS[f"nms/batched_keep_{threshold}"].tolist()


@pytest.mark.parametrize("value", [None, *oracles.GARBAGE])
def test_golden_detections(value: float | None) -> None:
    """Class-wise suppression of boxes with five classes, also among padded slots."""
    boxes, scores = OPS["nms/boxes"], OPS["mcnms/scores"][:, :-1]
    if value is not None:
        boxes, scores = oracles.padded(boxes, 7, value), oracles.padded(scores, 7, value)
    valid = np.arange(len(boxes)) < 60
    found = jax.jit(NMS(0.05, 0.5, 30))(boxes[:, None], scores, valid)
    assert found.valid.all()
    np.testing.assert_array_equal(found.labels, OPS["mcnms/labels"])
    np.testing.assert_allclose(found.boxes, OPS["mcnms/dets"][:, :4], rtol=1e-6)
    np.testing.assert_allclose(found.scores, OPS["mcnms/dets"][:, 4], rtol=1e-6)


def test_nms_takes_the_box_of_the_class_and_drops_low_scores() -> None:
    boxes = np.float32([[[0, 0, 1, 1], [5, 5, 9, 9]], [[np.nan] * 4, [0, 0, 2, 2]]])
    scores = np.float32([[0.9, 0.3], [0.8, 0.04]])
    found = NMS(max_detections=3)(boxes, scores, np.ones(2, bool))
    np.testing.assert_array_equal(found.valid, [True, True, False])
    np.testing.assert_array_equal(found.boxes[:2], [[0, 0, 1, 1], [5, 5, 9, 9]])
    np.testing.assert_array_equal(found.labels[:2], [0, 1])
    np.testing.assert_array_equal(found.index, [0, 0, 0])


def test_detections_by_hand() -> None:
    """Two classes on one box are two detections; a lower score of the same class on nearly the same box is none."""
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30]])[:, None]
    scores = np.float32([[0.9, 0.6], [0.8, 0.0], [0.04, 0.7]])
    for suppression in (NMS(max_detections=5), FastNMS(max_detections=5)):
        found = suppression(boxes, scores, np.ones(3, bool))
        np.testing.assert_array_equal(found.valid, [True, True, True, False, False])
        np.testing.assert_array_equal(found.labels[:3], [0, 1, 1])
        np.testing.assert_array_equal(found.index, [0, 2, 0, 0, 0])
        np.testing.assert_allclose(found.scores[:3], [0.9, 0.7, 0.6])
        np.testing.assert_array_equal(found.boxes[:3], boxes[[0, 2, 0], 0])


@pytest.mark.parametrize("suppression", [NMS(max_detections=4), NMS(None, within="level"), FastNMS(max_detections=4)])
@pytest.mark.parametrize("jit", [True, False])
def test_no_boxes_give_no_detections(suppression: Suppression, jit: bool) -> None:
    call = jax.jit(suppression) if jit else suppression
    none = np.zeros(0, np.int32)
    found = call(np.zeros((0, 1, 4), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, bool), none)
    assert found.boxes.shape == (suppression.max_detections, 4)
    assert not found.valid.any()
    for leaf in (found.boxes, found.scores, found.labels, found.index):
        np.testing.assert_array_equal(leaf, 0)


def slow_nms(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, minimum: float, threshold: float
) -> list[tuple[int, int]]:
    """Candidates ``(row, class)`` by score, of which each goes that a kept one of its group overlaps too much."""
    kept: list[tuple[int, int]] = []
    for row, label in sorted(np.ndindex(scores.shape), key=lambda place: (-scores[place], place)):
        same = [k for k in kept if groups[k] == groups[row, label]]
        own = boxes[row, min(label, boxes.shape[1] - 1)]
        others = [boxes[r, min(c, boxes.shape[1] - 1)] for r, c in same]
        if scores[row, label] > minimum and all(oracles.iou(other, own) <= threshold for other in others):
            kept.append((row, label))
    return kept


def candidates(seed: int, number: int = 20, classes: int = 3, agnostic: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on whole pixels, moved a little by class, and scores without ties."""
    rng = np.random.default_rng(seed)
    boxes = np.round(oracles.random_boxes(rng, number, 24.0))[:, None]
    boxes = boxes + (0 if agnostic else rng.integers(0, 3, (number, classes, 1)))
    scores = rng.permutation(number * classes).reshape(number, classes) / (number * classes)
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("within", ["class", "level"])
def test_detections_against_loops(within: str, agnostic: bool) -> None:
    run = jax.jit(NMS(0.1, 0.317, 60, within=within))
    for seed in range(3):
        boxes, scores = candidates(seed, agnostic=agnostic)
        level = np.random.default_rng(seed).integers(0, 3, 20).astype(np.int32)
        groups = np.tile(np.arange(3), (20, 1)) if within == "class" else np.tile(level[:, None], (1, 3))
        expected = slow_nms(boxes, scores, groups, 0.1, 0.317)
        found = run(boxes, scores, np.ones(20, bool), level)
        number = int(found.valid.sum())
        assert (
            list(zip(*(np.asarray(a[:number]).tolist() for a in (found.index, found.labels)), strict=True)) == expected
        )
        row, label = np.asarray(found.index[:number]), np.asarray(found.labels[:number])
        np.testing.assert_array_equal(found.scores[:number], scores[row, label])
        np.testing.assert_array_equal(found.boxes[:number], np.broadcast_to(boxes, (20, 3, 4))[row, label])
        np.testing.assert_array_equal(found.index[number:], 0)


def test_suppression_within_levels_needs_levels() -> None:
    with pytest.raises(ValueError, match='set within="class"'):
        NMS(within="level")(np.zeros((2, 1, 4)), np.zeros((2, 1)), np.ones(2, bool))


def test_every_score_is_admitted_without_a_threshold() -> None:
    boxes = np.float32([[[0, 0, 1, 1]], [[5, 5, 6, 6]]])
    found = NMS(None, max_detections=3)(boxes, np.float32([[0.0], [-2.0]]), np.ones(2, bool))
    np.testing.assert_array_equal(found.valid, [True, True, False])
    assert int(NMS(0.0, max_detections=3)(boxes, np.float32([[0.0], [-2.0]]), np.ones(2, bool)).valid.sum()) == 0


def slow_fast_nms(
    boxes: np.ndarray, scores: np.ndarray, minimum: float, threshold: float, per_class: int, limit: int
) -> list[tuple[int, int]]:
    """YOLACT's rule, literally.

    Of each class the best ``per_class`` by score; one goes if any that ranks higher, kept or not, overlaps it by more
    than the threshold; then the score decides, and the best of all classes stay.
    """
    kept = []
    for label in range(scores.shape[1]):
        column = min(label, boxes.shape[1] - 1)
        ranked = sorted(range(len(scores)), key=lambda row: (-scores[row, label], row))[:per_class]
        for rank, row in enumerate(ranked):
            better = [oracles.iou(boxes[other, column], boxes[row, column]) for other in ranked[:rank]]
            if max(better, default=0.0) <= threshold and scores[row, label] > minimum:
                kept.append((row, label))
    return sorted(kept, key=lambda place: (-scores[place], place[1], place[0]))[:limit]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("per_class", "limit"), [(200, 60), (6, 60), (200, 5)])
def test_fast_nms_against_loops(per_class: int, limit: int, agnostic: bool) -> None:
    suppression = FastNMS(0.2, 0.317, per_class, limit)
    run = jax.jit(suppression)
    for seed in range(3):
        boxes, scores = candidates(seed, agnostic=agnostic)
        expected = slow_fast_nms(boxes, scores, 0.2, 0.317, per_class, limit)
        found = run(boxes, scores, np.ones(20, bool))
        assert pairs_of(found) == expected
        row, label = (np.asarray(a)[np.asarray(found.valid)] for a in (found.index, found.labels))
        np.testing.assert_array_equal(found.scores[found.valid], scores[row, label])
        np.testing.assert_array_equal(found.boxes[found.valid], np.broadcast_to(boxes, (20, 3, 4))[row, label])
        assert found.boxes.shape == (limit, 4)
    assert pairs_of(suppression(boxes, scores, np.ones(20, bool))) == expected, "not in jit"


def pairs_of(found: Any) -> list[tuple[int, int]]:
    number = int(found.valid.sum())
    assert np.asarray(found.valid[:number]).all()
    return list(zip(found.index[:number].tolist(), found.labels[:number].tolist(), strict=True))


def test_fast_nms_removes_what_a_removed_box_covers() -> None:
    """Of a chain whose neighbours overlap only the first stays; sequential suppression keeps every second."""
    boxes, scores = chain(6)
    args = boxes[:, None], scores[:, None], np.ones(6, bool)
    assert pairs_of(FastNMS(0.05, 0.3)(*args)) == [(0, 0)]
    assert pairs_of(NMS(0.05, 0.3)(*args)) == [(0, 0), (2, 0), (4, 0)]


def test_ties_of_fast_nms_go_by_index_and_class() -> None:
    boxes = np.float32([[0, 0, 4, 4], [20, 0, 24, 4], [0, 0, 4, 4]])[:, None]
    found = FastNMS(max_detections=9)(boxes, np.full((3, 2), 0.5, np.float32), np.ones(3, bool))
    assert pairs_of(found) == [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("suppression", [NMS(0.1, 0.317, 60), FastNMS(0.2, 0.317, 10, 60)])
@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padded_candidates_change_nothing(suppression: Suppression, value: float) -> None:
    boxes, scores = candidates(0)
    run = jax.jit(suppression)
    expected = run(boxes, scores, np.ones(20, bool))
    assert int(expected.valid.sum()) > 5
    found = run(*(oracles.padded(a, 7, value) for a in (boxes, scores)), np.arange(27) < 20)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("suppression", [NMS(0.1, 0.3, 9), FastNMS(0.1, 0.3, 9, 9)])
def test_candidates_that_are_no_numbers_neither_stay_nor_suppress(suppression: Suppression) -> None:
    box = np.float32([[0, 0, 9, 9]])
    boxes = np.stack([box, box + np.nan, box, box + np.inf, box])
    scores = np.float32([[np.nan], [0.9], [0.8], [0.95], [0.7]])
    found = suppression(boxes, scores, np.ones(5, bool))
    assert pairs_of(found) == [(2, 0)]
    nothing = suppression(boxes, np.full((5, 1), np.nan, np.float32), np.ones(5, bool))
    assert pairs_of(nothing) == []


def test_scores_of_one_candidate_count_for_its_classes_alone() -> None:
    """A batch is its images, and no class looks at another's boxes."""
    boxes, scores = (np.stack(arrays) for arrays in zip(candidates(0), candidates(1), strict=True))
    for suppression in (NMS(0.1, 0.3, 60), FastNMS(0.1, 0.3, 20, 60)):
        together = jax.jit(jax.vmap(suppression))(boxes, scores, np.ones((2, 20), bool))
        for i in range(2):
            alone = suppression(boxes[i], scores[i], np.ones(20, bool))
            jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)
        # only the second class, whose detections are those of before
        one = suppression(boxes[0], scores[0] * np.float32([0, 1, 0]), np.ones(20, bool))
        assert pairs_of(one) == [pair for pair in pairs_of(jax.tree.map(lambda a: a[0], together)) if pair[1] == 1]


# Candidates that have the score of one class each.


@pytest.mark.parametrize("within", ["class", "level"])
@pytest.mark.parametrize("minimum", [None, 0.2])
def test_labelled_candidates_against_loops(within: Literal["class", "level"], minimum: float | None) -> None:
    rng = np.random.default_rng(4)
    boxes = np.round(oracles.random_boxes(rng, 30, 24.0))
    boxes[10:20] = boxes[:10]  # places that are there with two classes
    scores = rng.permutation(30).astype(np.float32)[:, None] / 40
    labels, level = rng.integers(0, 3, 30).astype(np.int32), np.arange(30, dtype=np.int32) // 10
    suppression = NMS(minimum, 0.317, 40, within)
    found = jax.jit(suppression)(boxes[:, None], scores, np.ones(30, bool), level, labels)
    groups = (labels if within == "class" else level)[:, None]
    expected = [row for row, _ in slow_nms(boxes[:, None], scores, groups, minimum or -1.0, 0.317)]
    number = int(found.valid.sum())
    assert 5 < number == len(expected) < 30
    np.testing.assert_array_equal(found.index[:number], expected)
    np.testing.assert_array_equal(found.labels[:number], labels[expected])
    np.testing.assert_array_equal(found.boxes[:number], boxes[expected])
    np.testing.assert_array_equal(found.scores[:number], scores[expected, 0])


def test_two_classes_of_a_place_both_stay() -> None:
    boxes = np.tile(np.float32([0, 0, 10, 10]), (3, 1, 1))
    scores, labels = np.float32([[0.9], [0.8], [0.7]]), np.int32([4, 1, 4])
    found = NMS(None, 0.5, 4)(boxes, scores, np.ones(3, bool), labels=labels)
    np.testing.assert_array_equal(found.valid, [True, True, False, False])
    np.testing.assert_array_equal(found.labels[:2], [4, 1])
    np.testing.assert_array_equal(found.index, [0, 1, 0, 0])


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_labelled_slots_that_do_not_count_change_nothing(value: float) -> None:
    rng = np.random.default_rng(5)
    boxes, scores = oracles.random_boxes(rng, 20, 24.0), rng.random((20, 1)).astype(np.float32)
    labels, level = rng.integers(0, 3, 20).astype(np.int32), np.zeros(20, np.int32)
    call = jax.jit(NMS(0.1, 0.3, 30))
    expected = call(boxes[:, None], scores, np.ones(20, bool), level, labels)
    arrays = [oracles.padded(a, 5, value) for a in (boxes[:, None], scores, np.ones(20, bool), level, labels)]
    jax.tree.map(np.testing.assert_array_equal, call(*arrays), expected)
    none = call(boxes[:0, None], scores[:0], np.ones(0, bool), level[:0], labels[:0])
    assert not none.valid.any()
    np.testing.assert_array_equal(none.index, 0)


def test_fast_nms_refuses_labels() -> None:
    boxes, scores = np.zeros((3, 1, 4), np.float32), np.ones((3, 1), np.float32)
    with pytest.raises(ValueError, match=r"scores of all classes of a candidate: set .*pairs_above=None"):
        FastNMS()(boxes, scores, np.ones(3, bool), labels=np.zeros(3, np.int32))


def test_small_boxes_are_left_out_before_they_suppress() -> None:
    """A box that is thinner than the least side has the best score, and takes no other with it."""
    boxes = jnp.array([[[0.0, 0, 10, 0.009]], [[0.0, 0, 10, 0.011]], [[0.0, 0, 0.001, 10]], [[jnp.nan] * 4]])
    scores, valid = jnp.array([[0.9], [0.8], [0.7], [0.6]]), jnp.ones(4, bool)
    found = jax.jit(NMS(least_side=0.01, max_detections=3))(boxes, scores, valid)
    np.testing.assert_array_equal(found.valid, [True, False, False])
    assert found.index[0] == 1
    assert NMS(max_detections=3)(boxes, scores, valid).index.tolist() == [0, 2, 0]
