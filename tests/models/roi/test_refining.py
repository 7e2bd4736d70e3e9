"""Samples of the refining step: where they are, what they are of, and which mask guides them, worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.roi.boxes import Candidates
from jaxdet.models.roi.refining import RefineTraining
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Masks, Samples, Targets

K, KEY, NAN = 3, jax.random.key(0), float("nan")
LEFT, RIGHT, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]
TARGETS = Targets(
    boxes=jnp.array([[LEFT, RIGHT, [NAN] * 4]]),
    labels=jnp.array([[1, 2, 7]]),
    masks=Masks(jnp.zeros((1, 3, 0, 0)), jnp.zeros((1, 3, 4))),
    crowd=jnp.zeros((1, 3), bool),
    valid=jnp.array([[True, True, False]]),
)
# A ground truth; a positive of the left object that its own class moves to the right one; a positive that is moved
# away; background that its likeliest class moves to the left object; other background; an invalid slot.
SAMPLES = Samples(
    boxes=jnp.array([[RIGHT, [1.0, 0, 11, 10], [21.0, 0, 31, 10], FAR, FAR, [NAN] * 4]]),
    gt_index=jnp.array([[1, 0, 1, 0, 0, 0]]),
    labels=jnp.array([[2, 1, 2, K, K, K]]),
    positive=jnp.array([[True, True, True, False, False, False]]),
    is_truth=jnp.array([[True, False, False, False, False, False]]),
    valid=jnp.array([[True, True, True, True, True, False]]),
)
LIKELIEST = [[0, 0, 1, 1, 0, 0]]
ON_LEFT, ON_RIGHT = [0.0, 0, 10, 9], [20.0, 0, 30, 9]


def make_candidates() -> Candidates:
    """Boxes by class are far from everything but where a test looks; the background's logit is the highest."""
    boxes = np.full((1, 6, K, 4), 40.0, np.float32) + np.float32([0, 0, 8, 8])
    boxes[0, 0, 2] = ON_LEFT
    boxes[0, 1, 1] = ON_RIGHT
    boxes[0, 3, 1] = ON_LEFT
    boxes[0, 5] = NAN
    logits = np.full((1, 6, K + 1), -1.0, np.float32)
    logits[..., K] = 5
    np.put_along_axis(logits, np.array(LIKELIEST)[..., None], 1.0, 2)
    return Candidates(jnp.asarray(logits), jnp.asarray(boxes), SAMPLES.valid)


def made_by(training: RefineTraining) -> tuple[Samples, list[int]]:
    samples, guides = training.samples(SAMPLES, make_candidates(), TARGETS, K, KEY)
    return samples, guides[0].tolist()


def test_moved_samples_are_matched_anew_and_all_stay() -> None:
    samples, guides = made_by(RefineTraining())
    assert samples.boxes[0, :4].tolist() == [RIGHT, ON_RIGHT, [40, 40, 48, 48], ON_LEFT]
    assert samples.labels[0].tolist() == [2, 2, K, 1, K, K]
    assert samples.gt_index[0, [0, 1, 3]].tolist() == [1, 1, 0]
    assert samples.positive[0].tolist() == [True, True, False, True, False, False]
    assert samples.is_truth[0].tolist() == SAMPLES.is_truth[0].tolist()
    assert samples.valid[0].tolist() == SAMPLES.valid[0].tolist()
    # The third was moved by its own class 2, and is background of the likeliest class 1 now.
    assert guides[:5] == [2, 2, 1, 1, 0]


def test_the_least_iou_is_a_setting() -> None:
    samples, _ = made_by(RefineTraining(positive_iou=0.95))  # what was moved covers 0.9 of its object
    assert samples.positive[0].tolist() == [True, False, False, False, False, False]


def test_carried_labels_stay_where_boxes_move() -> None:
    samples, guides = made_by(RefineTraining(matching="carried"))
    assert samples.boxes[0, 1].tolist() == ON_RIGHT
    assert samples.labels[0].tolist() == SAMPLES.labels[0].tolist()
    assert samples.gt_index[0].tolist() == SAMPLES.gt_index[0].tolist()
    assert guides[:5] == [2, 1, 2, 1, 0]


def test_a_carried_label_of_a_box_without_extent_does_not_count() -> None:
    """No deltas lead from such a box to its object."""
    candidates = make_candidates()
    candidates = candidates.replace(boxes=candidates.boxes.at[0, 1, 1].set(jnp.array([5.0, 0, 5, 10])))
    samples, _ = RefineTraining(matching="carried").samples(SAMPLES, candidates, TARGETS, K, KEY)
    assert samples.valid[0].tolist() == [True, False, True, True, True, False]
    assert samples.positive[0].tolist() == [True, False, True, False, False, False]


def test_samples_of_proposals_are_those_of_the_stage() -> None:
    samples, guides = made_by(RefineTraining(train_boxes="proposal"))
    assert all(x is y for x, y in zip(jax.tree.leaves(samples), jax.tree.leaves(SAMPLES), strict=True))
    assert guides[:5] == [2, 1, 2, 1, 0]


def test_sampled_anew_ground_truth_comes_first_and_negatives_keep_their_pseudo_label() -> None:
    sampler = Sampler(number=6, positive_fraction=0.5, order="first")
    samples, guides = made_by(RefineTraining(matching="sampled", sampler=sampler))
    # Both objects, then the first moved box that lies on one; what was moved away is background.
    assert samples.boxes[0, :5].tolist() == [LEFT, RIGHT, ON_RIGHT, [40, 40, 48, 48], [40, 40, 48, 48]]
    assert samples.labels[0].tolist() == [1, 2, 2, K, K, K]
    assert samples.is_truth[0].tolist() == [True, True, False, False, False, False]
    assert samples.valid[0].tolist() == [True] * 5 + [False]
    assert guides[:5] == [1, 2, 2, 1, 0]


def test_without_objects_every_guide_is_a_pseudo_label() -> None:
    nothing = TARGETS.replace(valid=jnp.zeros((1, 3), bool))
    background = SAMPLES.replace(
        labels=jnp.full((1, 6), K), positive=jnp.zeros((1, 6), bool), is_truth=jnp.zeros((1, 6), bool)
    )
    for training in (RefineTraining(), RefineTraining(matching="carried"), RefineTraining(matching="sampled")):
        samples, guides = training.samples(background, make_candidates(), nothing, K, KEY)
        assert not samples.positive.any()
        assert (samples.labels == K).all()
        # What is sampled comes in random order.
        assert sorted(guides[0][samples.valid[0]].tolist()) == sorted(LIKELIEST[0][:5])


def test_two_objects_of_one_box_each_stand_for_themselves() -> None:
    """The IoU alone would take both for the first."""
    same = TARGETS.replace(boxes=TARGETS.boxes.at[0, 0].set(jnp.array(RIGHT)))
    samples, _ = RefineTraining().samples(SAMPLES, make_candidates(), same, K, KEY)
    assert (samples.gt_index[0, 0], samples.labels[0, 0]) == (1, 2)


def test_no_gradient_flows_through_moved_boxes() -> None:
    def total(boxes: jax.Array) -> jax.Array:
        candidates = make_candidates().replace(boxes=boxes)
        return RefineTraining().samples(SAMPLES, candidates, TARGETS, K, KEY)[0].boxes[0, :5].sum()

    assert not jax.grad(total)(jnp.ones((1, 6, K, 4))).any()


def test_the_first_masks() -> None:
    samples, _ = made_by(RefineTraining())
    few, index = RefineTraining(max_masks=2).first_masks(samples)
    assert (index[0].tolist(), few.positive[0].tolist()) == ([0, 1], [True, True])
    few, index = RefineTraining(max_masks=5).first_masks(samples)
    assert index[0, :3].tolist() == [0, 1, 3]
    assert few.positive[0].tolist() == [True, True, True, False, False]
    assert few.labels[0, :3].tolist() == [2, 2, 1]
    every, index = RefineTraining().first_masks(samples)
    assert (every is samples, index[0].tolist()) == (True, list(range(6)))


def test_sampling_needs_samples_that_move() -> None:
    with pytest.raises(ValueError, match=r"RefineTraining.matching: .* set train_boxes='predicted'"):
        RefineTraining(train_boxes="proposal", matching="sampled")
    with pytest.raises(ValueError, match=r"RefineTraining.positive_iou: expected a number from 0 to 1"):
        dataclasses.replace(RefineTraining(), positive_iou=1.5)
