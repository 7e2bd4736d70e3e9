"""Losses of instance masks: against loops over pixels, by hand, and on hostile input."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.ops.boxes import safe
from jaxdet.ops.instances import CroppedEntropy, CutEntropy, Dice, InstanceLoss
from jaxdet.ops.losses import masked_sum
from tests.ops import oracles
from tests.ops.test_instances import BOXES, CANVAS, GRID, sigmoid, slow_expanded, slow_inside

LOSSES: tuple[InstanceLoss, ...] = (CroppedEntropy(), CroppedEntropy(hard_background=False), CutEntropy(), Dice())


def masks_of(number: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and bitmaps, blobs inside the boxes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (number, *GRID)).astype(np.float32)
    bitmaps = (rng.random((number, *GRID)) < 0.4) & slow_inside(BOXES[:number])
    return logits, bitmaps.astype(np.float32)


@partial(jax.jit, static_argnums=0)
def _run(loss: InstanceLoss, logits: jax.Array, bitmaps: jax.Array, boxes: jax.Array) -> jax.Array:
    return loss(logits, bitmaps, boxes, CANVAS)


def run(loss: InstanceLoss, logits: Any, bitmaps: Any, boxes: Any = BOXES) -> np.ndarray:
    return np.asarray(_run(loss, np.float32(logits), np.float32(bitmaps), np.float32(boxes)))


@partial(jax.jit, static_argnums=0)
def gradient_of(loss: InstanceLoss, logits: Any, bitmaps: Any, boxes: Any, valid: Any) -> jax.Array:
    """Of the sum of the losses of valid slots, ``[N, y, x]``."""
    return jax.grad(lambda x: masked_sum(loss(x, bitmaps, boxes, CANVAS), valid))(logits)


def entropy(logit: float, truth: float) -> float:
    p = sigmoid(logit)
    return float(-math.log(p if truth else 1 - p))


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_cropped_entropy_by_sorting(hard: bool, seed: int) -> None:
    """All of the object inside the box that is half again as large, and as many of the largest background."""
    logits, bitmaps = masks_of(seed=seed)
    expected = []
    for n, (x1, y1, x2, y2) in enumerate(slow_expanded(BOXES, 1.5, GRID)):
        cells = [(i, j) for i in range(y1, y2) for j in range(x1, x2)]
        objects = [entropy(logits[n, i, j], 1) for i, j in cells if bitmaps[n, i, j]]
        others = sorted((entropy(logits[n, i, j], 0) for i, j in cells if not bitmaps[n, i, j]), reverse=True)
        counted = objects + (others[: len(objects)] if hard else others)
        expected.append(sum(counted) / (len(counted) + 1))
    np.testing.assert_allclose(run(CroppedEntropy(hard_background=hard), logits, bitmaps), expected, rtol=1e-5)


def test_cut_entropy_is_that_of_the_cut_probability() -> None:
    """torch's binary cross entropy: no logarithm is below -100."""
    logits, bitmaps = masks_of()
    bitmaps[0, 0, 0] = bitmaps[3, 7, 11] = 1  # outside of their boxes
    inside = slow_inside(BOXES)
    expected = []
    for n, (x1, y1, x2, y2) in enumerate(BOXES):
        total = 0.0
        for i, j in np.ndindex(GRID):
            p = sigmoid(logits[n, i, j]) if inside[n, i, j] else 0.0
            right = p if bitmaps[n, i, j] else 1 - p
            total += min(-math.log(right), 100) if right else 100
        expected.append(6.125 * total / (8 * 12) / ((x2 - x1) / 48 * (y2 - y1) / 32))
    assert not inside[0, 0, 0]
    np.testing.assert_allclose(run(CutEntropy(), logits, bitmaps), expected, rtol=1e-5)
    np.testing.assert_allclose(run(CutEntropy(weight=1.0), logits, bitmaps), np.array(expected) / 6.125, rtol=1e-5)


def test_dice_by_its_formula() -> None:
    logits, bitmaps = masks_of()
    expected = []
    for x, t in zip(sigmoid(logits), bitmaps, strict=True):
        expected.append(1 - 2 * (x * t).sum() / ((x**2).sum() + (t**2).sum() + 1e-5))
    np.testing.assert_allclose(run(Dice(), logits, bitmaps), expected, rtol=1e-5)
    sure = np.where(bitmaps > 0, 50.0, -50.0)
    np.testing.assert_allclose(run(Dice(), sure, bitmaps), 0, atol=1e-5)
    np.testing.assert_allclose(run(Dice(), -sure, bitmaps), 1, atol=1e-5)


def test_an_undecided_mask_by_hand() -> None:
    """8 cells of the object and 96 in all, each with a cross entropy of log 2 and a probability of one half."""
    bitmaps = np.zeros((1, *GRID))
    bitmaps[0, 2:4, 4:8] = 1
    box, zeros = BOXES[1:2], np.zeros((1, *GRID))
    np.testing.assert_allclose(run(CroppedEntropy(), zeros, bitmaps, box), 16 * np.log(2) / 17, rtol=1e-6)
    np.testing.assert_allclose(run(LOSSES[1], zeros, bitmaps, box), 96 * np.log(2) / 97, rtol=1e-6)
    np.testing.assert_allclose(run(CutEntropy(1.0), zeros, bitmaps, box), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(run(Dice(), zeros, bitmaps, box), 1 - 8 / (24 + 8), rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_losses(loss: InstanceLoss) -> None:
    """Also where a logit is large, and where the hardest background ties."""
    logits, bitmaps = masks_of(seed=3)
    tame = jnp.asarray(logits / 2)
    check_grads(lambda x: loss(x, jnp.asarray(bitmaps), jnp.asarray(BOXES), CANVAS), (tame,), order=1, rtol=2e-2)
    wild = np.where(np.arange(12) % 2, 1e4, -1e4) + 0 * logits
    for values in (wild, 0 * logits):
        assert np.isfinite(gradient_of(loss, np.float32(values), bitmaps, BOXES, np.ones(4, bool))).all()
        assert np.isfinite(run(loss, values, bitmaps)).all()


def test_no_gradient_flows_into_what_is_left_out() -> None:
    """Outside of the box, and of background that is easier than the hardest."""
    logits, bitmaps = masks_of(1)
    gradient = np.asarray(gradient_of(CroppedEntropy(), logits, bitmaps, BOXES[:1], np.ones(1, bool)))
    (x1, y1, x2, y2) = slow_expanded(BOXES[:1], 1.5, GRID)[0]
    inside = np.zeros(GRID, bool)
    inside[y1:y2, x1:x2] = True
    objects = inside & (bitmaps[0] > 0)
    assert (gradient[0] != 0).sum() == 2 * objects.sum()
    assert (gradient[0][objects] < 0).all()
    background = gradient[0][inside & ~objects]
    easiest = np.sort(logits[0][inside & ~objects])[: -int(objects.sum())].max()
    assert (background[logits[0][inside & ~objects] <= easiest] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_instances_have_losses_of_their_own(loss: InstanceLoss) -> None:
    logits, bitmaps = masks_of()
    found = run(loss, logits, bitmaps)
    np.testing.assert_allclose(run(loss, logits[::-1], bitmaps[::-1], BOXES[::-1]), found[::-1], rtol=1e-6)
    for value in oracles.GARBAGE:
        more = run(loss, *(oracles.padded(a, 2, value) for a in (logits, bitmaps, BOXES)))
        np.testing.assert_allclose(more[:4], found, rtol=1e-6)
    assert run(loss, logits[:0], bitmaps[:0], BOXES[:0]).shape == (0,)


@pytest.mark.parametrize("loss", LOSSES)
def test_slots_that_do_not_count_leave_gradients_alone(loss: InstanceLoss) -> None:
    """As the part calls it: unit boxes and empty bitmaps in their places, and a sum over valid ones."""
    logits, bitmaps = masks_of()
    valid = np.arange(4) < 2
    bitmaps = np.where(valid[:, None, None], bitmaps, 0)
    alone = gradient_of(loss, logits[:2], bitmaps[:2], BOXES[:2], valid[:2])
    for value in oracles.GARBAGE:
        boxes = safe(jnp.asarray(np.where(valid[:, None], BOXES, np.float32(value))), jnp.asarray(valid))
        gradient = gradient_of(loss, logits, bitmaps, boxes, valid)
        np.testing.assert_allclose(gradient[:2], alone, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(gradient[2:], 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_empty_and_full_bitmaps(loss: InstanceLoss, fill: float) -> None:
    """Finite, not negative, and a right answer costs nothing."""
    bitmaps = np.full((4, *GRID), fill)
    for logit in (-60.0, 0.0, 60.0):
        found = run(loss, np.full((4, *GRID), logit), bitmaps)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
    right = run(loss, np.full((4, *GRID), 60.0 if fill else -60.0), bitmaps, np.tile(BOXES[1:2], (4, 1)))
    # The dice coefficient of two empty masks is 0 over 0, for which the reference's bound gives a loss of 1.
    np.testing.assert_allclose(right, 1.0 if isinstance(loss, Dice) and not fill else 0.0, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("corner", [(0.0, 0.0), (47.0, 31.0), (23.0, 15.0)])
def test_a_box_of_a_pixel(loss: InstanceLoss, corner: tuple[float, float]) -> None:
    box = np.float32([[*corner, corner[0] + 1, corner[1] + 1]])
    bitmaps = np.zeros((1, *GRID))
    bitmaps[0, int(corner[1] / 4), int(corner[0] / 4)] = 1
    wrong, right = (run(loss, sign * np.where(bitmaps > 0, 20.0, -20.0), bitmaps, box) for sign in (-1, 1))
    assert np.isfinite(wrong).all()
    assert wrong > right
    np.testing.assert_allclose(right, 0, atol=1e-3)


def test_what_is_added_to_the_number_of_instances() -> None:
    assert [loss.spare for loss in LOSSES] == [1, 1, 0, 0]


@pytest.mark.parametrize("loss", [Dice(), LOSSES[1]])
def test_mirrored_masks_cost_the_same(loss: InstanceLoss) -> None:
    """Of the whole canvas: boxes on the grid are rounded down on both sides and do not mirror."""
    logits, bitmaps = masks_of()
    whole = np.tile(BOXES[1:2], (4, 1))
    mirrored = run(loss, logits[..., ::-1], bitmaps[..., ::-1], whole)
    np.testing.assert_allclose(mirrored, run(loss, logits, bitmaps, whole), rtol=1e-5)


def test_in_and_out_of_jit() -> None:
    logits, bitmaps = masks_of(seed=5)
    for loss in LOSSES:
        with jax.disable_jit():
            slow = loss(*map(partial(jnp.asarray, dtype=jnp.float32), (logits, bitmaps, BOXES)), CANVAS)
        np.testing.assert_allclose(slow, run(loss, logits, bitmaps), rtol=1e-5)
