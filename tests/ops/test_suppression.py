from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxdet.models.finish import Finish

from jaxdet.ops.suppression import Kept, nms, offset_by_group
from tests.ops import oracles
from tests.ops.golden import OPS


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


def test_equal_scores_count_in_index_order() -> None:
    boxes, _ = chain(6)
    assert kept_of(boxes, np.full(6, 0.5), 0.3, 6) == [0, 2, 4]
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
def test_golden_finish(value: float | None) -> None:
    """Class-wise suppression of boxes with five classes, also among padded slots."""
    boxes, scores = OPS["nms/boxes"], OPS["mcnms/scores"][:, :-1]
    if value is not None:
        boxes, scores = oracles.padded(boxes, 7, value), oracles.padded(scores, 7, value)
    valid = np.arange(len(boxes)) < 60
    found = jax.jit(Finish(0.05, 0.5, 30))(boxes[:, None], scores, valid)
    assert found.valid.all()
    np.testing.assert_array_equal(found.labels, OPS["mcnms/labels"])
    np.testing.assert_allclose(found.boxes, OPS["mcnms/dets"][:, :4], rtol=1e-6)
    np.testing.assert_allclose(found.scores, OPS["mcnms/dets"][:, 4], rtol=1e-6)


def test_finish_takes_the_box_of_the_class_and_drops_low_scores() -> None:
    boxes = np.float32([[[0, 0, 1, 1], [5, 5, 9, 9]], [[np.nan] * 4, [0, 0, 2, 2]]])
    scores = np.float32([[0.9, 0.3], [0.8, 0.04]])
    found = Finish(max_detections=3)(boxes, scores, np.ones(2, bool))
    np.testing.assert_array_equal(found.valid, [True, True, False])
    np.testing.assert_array_equal(found.boxes[:2], [[0, 0, 1, 1], [5, 5, 9, 9]])
    np.testing.assert_array_equal(found.labels[:2], [0, 1])
