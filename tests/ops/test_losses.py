import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.boxes import DeltaCoder, DistanceCoder, safe
from jaxdet.ops.losses import (
    BinaryCrossEntropy,
    BoxLoss,
    ClassLoss,
    CrossEntropy,
    Focal,
    GIoU,
    SmoothL1,
    binary_cross_entropy,
    centerness,
    cross_entropy,
    mask_iou,
    masked_sum,
)
from tests.ops import oracles
from tests.ops.golden import OPS, normal

LOGITS = (2 * normal("ops/logits", (30, 81))).astype(np.float32)
LABELS = np.arange(30) * 7 % 81
A, B = (normal(f"ops/l1{side}", (30, 4)).astype(np.float32) for side in "ab")


CODER = DeltaCoder()
UNIT = jnp.asarray([0.0, 0.0, 1.0, 1.0])


def at_zero(loss: BoxLoss, deltas: jax.Array) -> jax.Array:
    """Loss ``[...]`` of ``deltas [..., 4]`` where the true ones are 0."""
    boxes = jnp.broadcast_to(UNIT, deltas.shape)
    return loss(CODER, boxes, deltas, boxes)


def smooth_l1(predicted: jax.Array, target: jax.Array, beta: float) -> jax.Array:
    """Of deltas ``[N, 4]`` whose targets are any numbers: boxes that need these deltas."""
    references = jnp.broadcast_to(UNIT, target.shape)
    coder = DeltaCoder(max_ratio=1e9)
    return SmoothL1(beta)(coder, references, predicted, coder.decode(references, target))


def test_smooth_l1_by_hand() -> None:
    """Quadratic below beta, linear above, continuous with a continuous slope where they meet; four are summed."""
    d = jnp.array([-3.0, -2.0, -1.0, 0.0, 0.5, 2.0, 4.0])
    first = jnp.eye(1, 4)[0]

    def loss(x: jax.Array) -> jax.Array:
        return at_zero(SmoothL1(2.0), x * first)

    np.testing.assert_allclose(jax.vmap(loss)(d), [2.0, 1.0, 0.25, 0.0, 0.0625, 1.0, 3.0], rtol=1e-6)
    slope = jax.vmap(jax.grad(loss))(d)
    np.testing.assert_allclose(slope, [-1.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(at_zero(SmoothL1(2.0), d[:4]), 2.0 + 1.0 + 0.25, rtol=1e-6)


def test_deltas_are_judged_in_the_units_of_the_coder() -> None:
    """Twice as wide is log 2 in width, ten times that where the coder divides by .1."""
    coder, wide = DeltaCoder(stds=(1.0, 1.0, 0.1, 1.0)), jnp.asarray([[-0.5, 0.0, 1.5, 1.0]])
    loss = SmoothL1(1.0)(coder, UNIT[None], jnp.zeros((1, 4)), wide)
    np.testing.assert_allclose(loss, [10 * np.log(2) - 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("found", "wanted", "loss"),
    [
        ([2, 2, 6, 8], [2, 2, 6, 8], 0.0),
        ([0, 0, 4, 4], [1, 1, 3, 3], 1 - 4 / 16),  # inside: the box around both is the larger one
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 - 2 / 6),  # overlapping along one side
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 - (1 / 7 - 2 / 9)),
        ([0, 0, 1, 1], [1, 0, 2, 1], 1.0),  # side by side: no overlap, and nothing in between
        ([0, 0, 1, 1], [3, 0, 4, 1], 1 + 2 / 4),  # apart
        ([0, 0, 1, 1], [9, 9, 10, 10], 1 + 98 / 100),
    ],
)
def test_giou_by_hand(found: list[float], wanted: list[float], loss: float) -> None:
    """Rezatofighi et al. 2019, algorithm 1; either box may be the prediction, and scale does not matter."""
    for scale in (1.0, 64.0):
        a, b = (jnp.asarray([box]) * scale for box in (found, wanted))
        for predicted, true in ((a, b), (b, a)):
            reference = jnp.asarray([[-3.0, 2.0, 8.0, 11.0]]) * scale
            deltas = CODER.encode(reference, predicted)
            np.testing.assert_allclose(GIoU()(CODER, reference, deltas, true), [loss], rtol=1e-5, atol=1e-5)


def slow_giou(found: np.ndarray, wanted: np.ndarray) -> float:
    """1 - GIoU of two boxes in float64, side by side."""
    overlap = [max(0.0, min(found[a + 2], wanted[a + 2]) - max(found[a], wanted[a])) for a in (0, 1)]
    around = [max(found[a + 2], wanted[a + 2]) - min(found[a], wanted[a]) for a in (0, 1)]
    shared, hull = overlap[0] * overlap[1], around[0] * around[1]
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (found, wanted)) - shared
    return float(1 - shared / union + (hull - union) / hull)


def slow_decode(reference: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    size = reference[2:] - reference[:2]
    centre = (reference[:2] + reference[2:]) / 2 + size * deltas[:2]
    half = size * np.exp(deltas[2:]) / 2
    return np.concatenate([centre - half, centre + half])


def test_giou_and_its_gradient_by_finite_differences() -> None:
    """Against float64, also where boxes are apart: there IoU has no slope, this has."""
    rng = np.random.default_rng(0)
    references, boxes = oracles.random_boxes(rng, 12), oracles.random_boxes(rng, 12)
    references[:, 2:] += 4
    boxes[:, 2:] += 4
    boxes[:4] += 60  # apart
    deltas = rng.normal(0, 0.3, (12, 4)).astype(np.float32)

    def total(deltas: jax.Array) -> jax.Array:
        return GIoU()(CODER, jnp.asarray(references), deltas, jnp.asarray(boxes)).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(deltas)

    def slow(i: int, changed: np.ndarray) -> float:
        return slow_giou(slow_decode(np.float64(references[i]), changed), np.float64(boxes[i]))

    assert value == pytest.approx(sum(slow(i, np.float64(deltas[i])) for i in range(12)), rel=1e-5)
    for i, k in np.ndindex(12, 4):
        up, down = (np.float64(deltas[i]) + sign * 1e-6 * np.eye(4)[k] for sign in (1, -1))
        assert gradient[i, k] == pytest.approx((slow(i, up) - slow(i, down)) / 2e-6, rel=1e-3, abs=1e-4)
    assert (np.abs(gradient[:4, :2]).max(1) > 0).all()


def test_giou_is_the_same_for_mirrored_and_swapped_axes() -> None:
    rng = np.random.default_rng(1)
    references, boxes = oracles.random_boxes(rng, 9), oracles.random_boxes(rng, 9)
    deltas = rng.normal(0, 0.3, (9, 4)).astype(np.float32)
    expected = GIoU()(CODER, references, deltas, boxes)
    mirror = [2, 1, 0, 3]
    flip = np.float32([64, 0, 64, 0]) + np.float32([-1, 1, -1, 1]) * np.stack([references, boxes])[..., mirror]
    mirrored = GIoU()(CODER, flip[0], deltas * np.float32([-1, 1, 1, 1]), flip[1])
    np.testing.assert_allclose(mirrored, expected, rtol=1e-4, atol=1e-5)
    swap = [1, 0, 3, 2]
    np.testing.assert_allclose(GIoU()(CODER, references[:, swap], deltas[:, swap], boxes[:, swap]), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [GIoU(), SmoothL1(1.0), SmoothL1(1e-9)])
def test_wild_deltas_and_empty_slots_have_finite_gradients(loss: BoxLoss) -> None:
    """References of slots that do not count are the unit box; a growth of e^100 is bounded by the coder."""
    deltas = np.float32([[0, 0, 0, 0], [9, -9, 100, -100], [1e6, 0, 0, 0], [0, 0, -100, 100]])
    boxes = np.float32([[0, 0, 4, 4], [1, 1, 9, 9], [0, 0, 1, 1], [2, 2, 3, 5]])
    mask = np.array([True, True, False, False])
    garbage = np.where(mask[:, None], boxes, np.nan)

    def total(deltas: jax.Array) -> jax.Array:
        clean = safe(jnp.asarray(garbage), mask)
        return masked_sum(loss(CODER, clean, deltas, clean), mask)

    value, gradient = jax.value_and_grad(total)(deltas)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_focal_loss_by_its_formula(alpha: float, gamma: float) -> None:
    """Equation 5 of Lin et al. 2017 in float64; the label K is background, which is 0 in every class."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (9, 4)).astype(np.float32), np.arange(9) % 5
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = np.zeros(9)
    for i, k in np.ndindex(9, 4):
        hit, weight = (p[i, k], alpha) if labels[i] == k else (1 - p[i, k], 1 - alpha)
        expected[i] -= weight * (1 - hit) ** gamma * np.log(hit)
    np.testing.assert_allclose(Focal(alpha, gamma)(logits, labels), expected, rtol=1e-4)
    if gamma == 0:
        np.testing.assert_allclose(2 * expected, BinaryCrossEntropy()(logits, labels), rtol=1e-4)


def test_focal_loss_by_hand() -> None:
    """Undecided: 1/4 log 2 times the weights; sure and right: next to nothing; sure and wrong: the logit."""
    undecided = jnp.zeros((2, 3))
    expected = [0.25 * np.log(2) * (0.25 + 2 * 0.75), 0.25 * np.log(2) * 3 * 0.75]
    np.testing.assert_allclose(Focal()(undecided, jnp.array([1, 3])), expected, rtol=1e-6)
    sure = jnp.array([[30.0], [30.0], [-1000.0], [1000.0]])
    found, gradient = jax.value_and_grad(lambda x: Focal()(x, jnp.array([0, 1, 0, 1])).sum())(sure)
    np.testing.assert_allclose(found, 0.75 * 30 + 0.25 * 1000 + 0.75 * 1000, rtol=1e-5)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[:, 0], [0, 0.75, -0.25, 0.75], atol=1e-5)


def test_binary_cross_entropy_of_classes_by_hand() -> None:
    """Three classes, undecided but for one of probability 3/4; the last row is background."""
    logits = jnp.array([[np.log(3.0), 0, 0], [np.log(3.0), 0, 0], [np.log(3.0), 0, 0]])
    expected = [-np.log(0.75) + 2 * np.log(2), -np.log(0.25) + 2 * np.log(2), -np.log(0.25) + 2 * np.log(2)]
    np.testing.assert_allclose(BinaryCrossEntropy()(logits, jnp.array([0, 2, 3])), expected, rtol=1e-6)


def test_cross_entropies_by_hand() -> None:
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(binary_cross_entropy(jnp.zeros(2), jnp.array([0, 1])), np.log(2), rtol=1e-6)
    certain = jnp.array([0.0, np.log(3.0)])  # probabilities 1/4 and 3/4
    np.testing.assert_allclose(cross_entropy(certain, jnp.array(1)), -np.log(0.75), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (9, 5)).astype(np.float32), rng.integers(0, 5, 9)
    odds = np.exp(logits.astype(np.float64))
    expected = [-np.log(odds[i, labels[i]] / odds[i].sum()) for i in range(9)]
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5)
    truth = rng.integers(0, 2, (9, 5))
    probability = odds / (1 + odds)
    expected = np.where(truth == 1, -np.log(probability), -np.log(1 - probability))
    np.testing.assert_allclose(binary_cross_entropy(logits, truth), expected, rtol=1e-4, atol=1e-6)


def test_large_logits_neither_overflow_nor_lose_the_gradient() -> None:
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0, 0])), [0.0, 2e4])
    np.testing.assert_allclose(binary_cross_entropy(logits[0], jnp.array([1, 1])), [0.0, 1e4])
    np.testing.assert_allclose(jax.grad(binary_cross_entropy)(jnp.float32(-1e4), jnp.float32(1.0)), -1.0)


def test_bfloat16_predictions_are_judged_in_float32() -> None:
    low = jnp.ones((2, 3), jnp.bfloat16)
    labels, like = jnp.zeros(2, jnp.int32), jnp.zeros((2, 3))
    deltas, boxes = jnp.ones((2, 4), jnp.bfloat16), jnp.broadcast_to(UNIT, (2, 4))
    losses = [cross_entropy(low, labels), binary_cross_entropy(low, like)]
    losses += [loss(low, labels) for loss in (BinaryCrossEntropy(), Focal())]
    losses += [loss(CODER, boxes, deltas, boxes) for loss in (GIoU(), SmoothL1(1.0))]
    assert {loss.dtype for loss in losses} == {jnp.dtype("float32")}


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_masked_sum_leaves_out_value_and_gradient(value: float) -> None:
    values, mask = oracles.padded(np.float32([1, 2, 3]), 2, value), np.arange(5) < 3
    assert masked_sum(values, mask) == 6.0
    np.testing.assert_array_equal(jax.grad(lambda v: masked_sum(v, mask))(values), [1, 1, 1, 0, 0])
    assert masked_sum(values, np.zeros(5, bool)) == 0.0


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padded_predictions_that_were_made_safe_get_no_gradient(value: float) -> None:
    mask = np.arange(37) < 30
    targets = oracles.padded(B, 7, value)

    def loss(predicted: jax.Array) -> jax.Array:
        return masked_sum(smooth_l1(predicted, jnp.where(mask[:, None], targets, 0.0), 1.0), mask)

    gradient = jax.grad(loss)(oracles.padded(A, 7, 0.0))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[30:], 0.0)
    assert (gradient[:30] != 0).all()


def test_golden_losses() -> None:
    found = {
        "ce_avg512": cross_entropy(LOGITS, LABELS).sum() / 512,
        "l1_avg512": smooth_l1(A, B, 1e-9).sum() / 512,
        "sl1_b1_avg512": smooth_l1(A, B, 1.0).sum() / 512,
        "sl1_b9_avg512": smooth_l1(A, B, 1 / 9).sum() / 512,
        # the reference counts class 0 as foreground here, where i % 3 is not 0
        "rpn_bce_avg256": binary_cross_entropy(LOGITS[:, 0], np.arange(30) % 3 != 0).sum() / 256,
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, OPS[f"loss/{name}"], rtol=1e-5, err_msg=name)


def test_golden_mask_loss() -> None:
    logits = normal("ops/maskpred", (80, 80, 28, 28))[np.arange(80), np.arange(80)].astype(np.float32)
    truth = np.unpackbits(OPS["mask_target/packbits28"])[: 80 * 28 * 28].reshape(80, 28, 28)
    np.testing.assert_allclose(binary_cross_entropy(logits, truth).mean(), OPS["loss/mask_bce"][0], rtol=1e-5)


def test_mask_iou_by_hand() -> None:
    """Two slots count, with errors 0.5 and 0.1; what is predicted where the target is 0 does not matter."""
    predicted, target = jnp.array([[0.5, 0.9], [np.nan, 7.0]]), jnp.array([[1.0, 0.8], [0.0, 0.0]])
    np.testing.assert_allclose(mask_iou(predicted, target), 0.5 * (0.25 + 0.01) / 2, rtol=1e-6)
    gradient = jax.grad(mask_iou)(predicted, target)
    np.testing.assert_allclose(gradient, [[-0.25, 0.05], [0.0, 0.0]], rtol=1e-6)
    assert mask_iou(predicted, jnp.zeros((2, 2))) == 0
    assert mask_iou(predicted.astype(jnp.bfloat16), target).dtype == jnp.float32


# What logits mean: how many there are, and the scores of classes.


def test_columns_and_scores_of_sigmoids_and_of_a_softmax() -> None:
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]))
    for loss in (BinaryCrossEntropy(), Focal()):
        assert loss.columns(3) == 3
        np.testing.assert_allclose(loss.scores(logits), [[1 / 2, 2 / 3, 5 / 6], [1 / 2, 1 / 2, 2 / 3]], rtol=1e-6)
    # Two classes, and background behind them, of which there is no score.
    assert CrossEntropy().columns(2) == 3
    np.testing.assert_allclose(CrossEntropy().scores(logits), [[1 / 8, 2 / 8], [1 / 4, 1 / 4]], rtol=1e-6)
    np.testing.assert_allclose(CrossEntropy()(logits, jnp.array([0, 2])), np.log([8, 2]), rtol=1e-6)


def test_softmax_cross_entropy_of_places_against_loops() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 4, (2, 5, 4)).astype(np.float32), rng.integers(0, 4, (2, 5))
    found = CrossEntropy()(jnp.asarray(logits), jnp.asarray(labels))
    for place in np.ndindex(2, 5):
        exponents = np.exp(logits[place].astype(np.float64))
        assert float(found[place]) == pytest.approx(-np.log(exponents[labels[place]] / exponents.sum()), rel=1e-5)
    moved = CrossEntropy().scores(jnp.asarray(logits + 100))
    np.testing.assert_allclose(moved, CrossEntropy().scores(jnp.asarray(logits)), rtol=1e-4)
    assert float(CrossEntropy()(jnp.array([1e4, -1e4]), 1)) == pytest.approx(2e4)
    assert CrossEntropy()(jnp.ones((3, 2), jnp.bfloat16), jnp.zeros(3, int)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 8, 8], 1.0),  # the point (4, 4) is its middle
        ([2, 0, 8, 8], np.sqrt(2 / 4)),
        ([3, 1, 13, 10], np.sqrt(1 / 9 * 3 / 6)),
        ([4, 0, 8, 8], 0.0),  # on a side
        ([5, 0, 8, 8], 0.0),  # outside
        ([5, 5, 8, 8], 0.0),  # outside along both axes, where the product of two ratios below 0 would be above
        ([4, 4, 4, 4], 0.0),
    ],
)
def test_centerness_by_hand(box: list[float], expected: float) -> None:
    cell, box_ = jnp.array([0.0, 0.0, 8.0, 8.0]), jnp.asarray(box, jnp.float32)
    assert float(centerness(cell, box_)) == pytest.approx(expected, abs=1e-6)
    # In other units it is the same.
    assert float(centerness(4 * cell, 4 * box_)) == pytest.approx(expected, abs=1e-6)
    mirrored = [x[jnp.array([2, 1, 0, 3])] * jnp.array([-1.0, 1, -1, 1]) for x in (cell, box_)]
    assert float(centerness(*mirrored)) == pytest.approx(expected, abs=1e-6)


def test_giou_of_distances() -> None:
    """Boxes around one point: from (12, 20), a box of 16 x 16 inside one of 16 x 32, of which it is a half."""
    cell, box = jnp.array([8.0, 16.0, 16.0, 24.0]), jnp.array([4.0, 4.0, 20.0, 36.0])
    assert float(GIoU()(DistanceCoder(), cell, jnp.array([1.0, 1, 1, 1]), box)) == pytest.approx(0.5)
    assert float(GIoU()(DistanceCoder(), cell, jnp.array([1.0, 2, 1, 2]), box)) == pytest.approx(0, abs=1e-6)
    # A head that begins with distances of 0: a box without area, as far away as can be, and a gradient to grow.
    gradient = jax.grad(lambda d: GIoU()(DistanceCoder(), cell, d, box))(jnp.full(4, 1e-3))
    assert np.isfinite(gradient).all()
    assert (gradient < 0).all()


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), Focal(), CrossEntropy()])
def test_class_weights_multiply_what_a_place_of_a_class_loses(loss: ClassLoss) -> None:
    """Background counts 1, unless there is a number for it too."""
    rng = np.random.default_rng(3)
    labels = jnp.array([0, 1, 2, 3, 1])
    logits = jnp.asarray(rng.normal(0, 2, (5, loss.columns(3))), jnp.float32)
    plain = loss(logits, labels)
    weighted = dataclasses.replace(cast(Any, loss), weights=(2.0, 0.5, 0.0))
    np.testing.assert_allclose(weighted(logits, labels), plain * np.array([2, 0.5, 0, 1, 0.5]), rtol=1e-6)
    with_background = dataclasses.replace(cast(Any, loss), weights=(2.0, 0.5, 0.0, 0.25))
    np.testing.assert_allclose(with_background(logits, labels), plain * np.array([2, 0.5, 0, 0.25, 0.5]), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(weighted)(logits, labels), weighted(logits, labels))
    with pytest.raises(ValueError, match=r"class_loss\.weights: expected 3 numbers that are not all 0, .* got \(2"):
        dataclasses.replace(cast(Any, loss), weights=(2.0, 0.5))(logits, labels)
    with pytest.raises(ValueError, match=r"weights: expected a number from 0"):
        dataclasses.replace(cast(Any, loss), weights=(1.0, -1.0, 1.0))
