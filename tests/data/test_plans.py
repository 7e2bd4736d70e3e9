from collections import Counter

import numpy as np
import pytest

from jaxdet.data import Data
from jaxdet.data.pipeline.batches import stack
from jaxdet.data.pipeline.plans import (
    EvalPlan,
    Share,
    TrainPlan,
    buckets,
    check_shards,
    own_positions,
    shard_positions,
    trainable,
)

SIZES = np.array([[10, 20], [20, 10], [10, 10], [5, 50], [50, 5]] * 5, np.int32)
EVERYTHING = np.arange(len(SIZES))


def _plan(seed: int = 0, batch_size: int = 4) -> TrainPlan:
    return TrainPlan(tuple(buckets(SIZES, EVERYTHING, Data())), batch_size, seed)


def test_wider_than_high_is_landscape():
    landscape, portrait = buckets(SIZES, EVERYTHING, Data())
    assert (SIZES[landscape, 1] > SIZES[landscape, 0]).all()
    assert (SIZES[portrait, 1] <= SIZES[portrait, 0]).all()
    assert sorted([*landscape, *portrait]) == list(EVERYTHING)


def test_a_square_canvas_is_one_bucket():
    assert len(buckets(SIZES, EVERYTHING, Data(short_side=100, long_side=120, pad_multiple=64))) == 1


def test_each_canvas_is_a_bucket():
    data = Data(canvas_ratios=(1.0, 2.0))
    assert [part.tolist() for part in buckets(SIZES[:5], EVERYTHING[:5], data)] == [[0, 3], [2], [1, 4]]
    narrow = Data(canvas_ratios=(1.0, 1.5))
    sizes = np.array([[10, 14], [10, 17], [17, 10], [10, 10], [14, 10], [9, 13]], np.int32)
    parts = buckets(sizes, np.array([0, 1, 2, 3, 4, 5]), narrow)
    assert [part.tolist() for part in parts] == [[1], [0, 5], [3], [4], [2]]  # from the widest to the highest


def test_only_buckets_that_occur():
    assert len(buckets(SIZES, np.flatnonzero(SIZES[:, 1] > SIZES[:, 0]), Data())) == 1


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_has_every_image_and_pure_batches(epoch):
    plan = _plan()
    steps = plan.steps_per_epoch
    assert steps == 3 + 4  # 10 landscape images, 15 others, 4 at a time
    batches = [plan.batch(epoch * steps + step) for step in range(steps)]
    counts = Counter(int(index) for batch in batches for index in batch)
    assert counts.pop(-1) == 28 - 25  # of 12 and 16 slots 2 and 1 are left
    assert counts == dict.fromkeys(EVERYTHING.tolist(), 1)
    for batch in batches:
        assert batch[0] >= 0
        assert len({bool(SIZES[index, 1] > SIZES[index, 0]) for index in batch[batch >= 0]}) == 1


def test_epochs_and_seeds_differ_and_a_plan_repeats_itself():
    order = [tuple(_plan().batch(step)) for step in range(14)]
    assert order == [tuple(_plan().batch(step)) for step in range(14)]
    assert order[:7] != order[7:]
    assert order != [tuple(_plan(seed=1).batch(step)) for step in range(14)]


def test_steps_may_be_asked_for_in_any_order():
    plan, other = _plan(), _plan()
    backwards = {step: plan.batch(step) for step in reversed(range(30))}
    for step in range(30):
        np.testing.assert_array_equal(other.batch(step), backwards[step])


def test_a_bucket_smaller_than_the_batch_leaves_slots_empty():
    plan = TrainPlan((np.array([3, 8]),), 5, 0)
    assert plan.steps_per_epoch == 1
    assert set(plan.batch(0)[:2].tolist()) == {3, 8}
    assert plan.batch(0)[2:].tolist() == [-1, -1, -1]


def test_a_shard_stays_in_its_slots():
    """Of 13 landscape images shard 0 has 10 and shard 1 has 3, of 12 others 2 and 10: 5 steps for either canvas."""
    plan = TrainPlan((np.array([*range(10), 12, 13, 14]), np.array([10, 11, *range(15, 25)])), 4, 7, (12,))
    assert plan.steps_per_epoch == 5 + 5
    for epoch in range(2):
        batches = np.stack([plan.batch(epoch * 10 + step) for step in range(10)])
        assert sorted(batches[batches >= 0]) == list(range(25))
        for batch in batches:
            assert all(index < 12 for index in batch[:2])
            assert all(index < 0 or index >= 12 for index in batch[2:])
            assert len({bool(np.isin(index, plan.buckets[0])) for index in batch[batch >= 0]}) == 1
    assert plan.of_shard(1).tolist() == [*range(10), 10, 11]
    assert plan.of_shard(2).tolist() == [12, 13, 14, *range(15, 25)]
    assert plan.of_canvas(3, 11).tolist() == list(range(15, 25))


def test_processes_own_whole_shards():
    assert [(part.start, part.stop) for part in shard_positions(10, 4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    data = Data(shards=4)
    assert [own_positions(10, data, index, 2) for index in range(2)] == [range(5), range(5, 10)]
    assert own_positions(10, Data(), 1, 2) == range(10)


@pytest.mark.parametrize(
    ("shards", "processes", "message"),
    [
        (3, 1, r"data\.shards: expected a number that divides data\.batch_size=16, got 3; set data\.batch_size=18"),
        (4, 3, r"data\.shards: expected a multiple of the 3 processes.* got 4"),
        (4, 8, r"data\.shards: expected a multiple of the 8 processes.* got 4"),
    ],
)
def test_shards_that_do_not_fit_are_refused(shards, processes, message):
    check_shards(Data(shards=8), 4)
    with pytest.raises(ValueError, match=message):
        check_shards(Data(shards=shards), processes)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_evaluation_has_every_image_once(batch_size):
    order = EvalPlan(tuple(buckets(SIZES, EVERYTHING, Data())), batch_size).batches()
    assert sorted(order[order >= 0]) == list(EVERYTHING)
    for row in order:
        assert row[0] >= 0
        real = SIZES[row[row >= 0]]
        assert len(set((real[:, 1] > real[:, 0]).tolist())) == 1


def test_processes_share_a_batch_without_overlap():
    slots = [Share(index, 3, 12).slots for index in range(3)]
    assert [slot for part in slots for slot in part] == list(range(12))


@pytest.mark.parametrize("values", [(0, 3, 16), (2, 2, 4), (-1, 2, 4)])
def test_impossible_shares_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        Share(*values)


class _Sizes:
    """What ``trainable`` asks of a source."""

    sizes = np.array([[100, 100], [100, 31], [100, 100]], np.int32)
    usable = np.array([2, 3, 0], np.int32)

    def __len__(self) -> int:
        return 3


def test_what_is_trained_on():
    assert trainable(_Sizes(), Data()).tolist() == [0]
    assert trainable(_Sizes(), Data(filter_empty=False)).tolist() == [0, 2]
    assert trainable(_Sizes(), Data(min_side=0)).tolist() == [0, 1]
    with pytest.raises(ValueError, match="got none among 3"):
        trainable(_Sizes(), Data(min_side=200))


def test_stack_goes_into_nested_dicts():
    stacked = stack([{"a": np.int32(1), "b": {"c": np.zeros(2)}}, {"a": np.int32(2), "b": {"c": np.ones(2)}}])
    np.testing.assert_array_equal(stacked["a"], [1, 2])
    np.testing.assert_array_equal(stacked["b"]["c"], [[0, 0], [1, 1]])
