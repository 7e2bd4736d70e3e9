import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.losses import binary_cross_entropy, cross_entropy, l1, mask_iou, masked_sum, smooth_l1
from tests.ops import oracles
from tests.ops.golden import OPS, normal

LOGITS = (2 * normal("ops/logits", (30, 81))).astype(np.float32)
LABELS = np.arange(30) * 7 % 81
A, B = (normal(f"ops/l1{side}", (30, 4)).astype(np.float32) for side in "ab")


def test_smooth_l1_by_hand() -> None:
    """Quadratic below beta, linear above, continuous with a continuous slope where they meet."""
    d = jnp.array([-3.0, -2.0, -1.0, 0.0, 0.5, 2.0, 4.0])
    np.testing.assert_allclose(smooth_l1(d, jnp.zeros(7), 2.0), [2.0, 1.0, 0.25, 0.0, 0.0625, 1.0, 3.0], rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: smooth_l1(x, 0.0, 2.0)))(d)
    np.testing.assert_allclose(slope, [-1.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.0], rtol=1e-6)


def test_l1_by_hand() -> None:
    np.testing.assert_array_equal(l1(jnp.array([1.0, -2.0]), jnp.array([3.0, -2.0])), [2.0, 0.0])


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
    losses = cross_entropy(low, labels), binary_cross_entropy(low, like), l1(low, like), smooth_l1(low, like)
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
        return masked_sum(smooth_l1(predicted, jnp.where(mask[:, None], targets, 0.0)), mask[:, None])

    gradient = jax.grad(loss)(oracles.padded(A, 7, 0.0))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[30:], 0.0)
    assert (gradient[:30] != 0).all()


def test_golden_losses() -> None:
    found = {
        "ce_avg512": cross_entropy(LOGITS, LABELS).sum() / 512,
        "l1_avg512": l1(A, B).sum() / 512,
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
