"""The boundary refinement, against loops over single pixels, the reference's numbers and cases worked by hand."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.boundaries import boundary_loss, covered_pixels, log_posteriors, refine, to_boxes, to_pixels
from jaxdet.ops.profiles import Profiles
from tests.ops import oracles

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "golden"
GAMMA = 0.05
HW = (37, 52)
Array = np.ndarray

WEIGHTS = np.float32([-0.2968, -0.2892, -0.2635, -3.2545, -0.1874, 2.5041, 0.0196, 0.0651, 0.0917])
BIAS = np.float32([-1.9536])
CRISP = np.float32([0, 0, 0, -8, 8, 0, 0, 0, 0]), np.float32([-4.0])
"""A kernel that asks for a step from 0 to 1, and nothing else."""

refined = jax.jit(partial(refine, gamma=GAMMA))
posteriors_of = jax.jit(partial(log_posteriors, gamma=GAMMA))
loss_of = jax.jit(partial(boundary_loss, gamma=GAMMA))


def posterior_oracle(profile: Array, mu: float, width: float, weights: Array, bias: Array, size: int) -> Array:
    """One side, one pixel at a time, as the reference does it; float64."""
    deviation, reach = max(GAMMA * width, 1.0), len(weights) // 2
    found = np.zeros(len(profile))
    for i in range(size):
        prior = math.exp(-((i - mu) ** 2) / (2 * deviation**2))
        z = float(bias[0])
        for k in range(-reach, reach + 1):
            if 0 <= i + k < len(profile):
                z += float(weights[k + reach]) * float(profile[i + k])
        found[i] = (prior if prior > 0.0044 else 0.0) / (1 + math.exp(-z))
    return found / found.sum() if found.sum() else found


def oracle(profiles: Profiles, pixels: Array, weights: Array, bias: Array) -> list[list[Array]]:
    """Posteriors of the four sides of each rectangle."""
    found = []
    for columns, rows, (x1, y1, x2, y2) in zip(profiles.columns, profiles.rows, np.float64(pixels), strict=True):
        height, width = (int(side) for side in profiles.hw)
        found.append(
            [
                posterior_oracle(columns, x1, x2 - x1, weights, bias, width),
                posterior_oracle(rows, y1, y2 - y1, weights, bias, height),
                posterior_oracle(columns, x2, x2 - x1, weights[::-1], bias, width),
                posterior_oracle(rows, y2, y2 - y1, weights[::-1], bias, height),
            ]
        )
    return found


def loss_oracle(profiles: Profiles, pixels: Array, targets: Array, weights: Array, bias: Array) -> tuple[Array, Array]:
    value, counted = np.zeros((len(pixels), 4)), np.zeros((len(pixels), 4), bool)
    for n, sides in enumerate(oracle(profiles, pixels, weights, bias)):
        for side, posterior in enumerate(sides):
            limit = int(profiles.hw[1 - side % 2]) - 1
            share = posterior[min(max(int(targets[n, side]), 0), limit)]
            counted[n, side] = share > 0
            value[n, side] = -math.log(share) if share > 0 else 0
    return value, counted


def rectangles(number: int, seed: int = 0, blur: float = 0.0) -> tuple[Profiles, Array, Array]:
    """Profiles of full rectangles, their sides, and sides that are off by some pixels."""
    rng = np.random.default_rng(seed)
    low = rng.integers(4, 14, (number, 2))
    high = np.minimum(low + rng.integers(8, 30, (number, 2)), np.array(HW)[::-1] - 5)
    truth = np.concatenate([low, high], 1)
    off = truth + rng.uniform(-2.4, 2.4, truth.shape)
    profiles = []
    for axis in (0, 1):
        index = np.arange(HW[1 - axis])
        inside = (index >= low[:, axis, None]) & (index <= high[:, axis, None])
        profiles.append(inside * rng.uniform(1 - blur, 1, inside.shape) + ~inside * rng.uniform(0, blur, inside.shape))
    return Profiles(np.float32(profiles[0]), np.float32(profiles[1]), np.float32(HW)), truth, np.float32(off)


@pytest.mark.parametrize("reach", [1, 4])
def test_posteriors_against_loops(reach: int) -> None:
    """Also where no pixel of the image is near: 0 everywhere, as in the loops."""
    profiles, _, pixels = rectangles(6, blur=0.4)
    pixels[5, [0, 2]] = 500, 510
    weights = np.random.default_rng(1).normal(size=2 * reach + 1).astype(np.float32)
    found = posteriors_of(profiles, pixels, weights, BIAS)
    for n, sides in enumerate(oracle(profiles, pixels, weights, BIAS)):
        for side, expected in enumerate(sides):
            np.testing.assert_allclose(np.exp(found[side][n]), expected, atol=1e-5)


def test_a_side_by_hand() -> None:
    """Columns 2 and 3 of five are set; a regressed box from 1 to 4 moves there, a pixel on either side."""
    profiles = Profiles(np.float32([[0, 0, 1, 1, 0]]), np.float32([[0, 0, 1, 1, 0]]), np.float32([5, 5]))
    weights, bias = np.float32([-10, 10, 0]), np.float32([-5])
    left, _, right, _ = posteriors_of(profiles, np.float32([[1, 1, 4, 4]]), weights, bias)
    # Priors exp(-d^2 / 2) of distances 1, 0, 1, 2, 3; likelihoods of -10 m(i - 1) + 10 m(i) - 5.
    joint = np.exp([-0.5, 0, -0.5, -2, -4.5]) / (1 + np.exp([5.0, 5, -5, 5, 15]))
    np.testing.assert_allclose(np.exp(left[0]), joint / joint.sum(), rtol=1e-4)
    # The kernel turned around: 10 m(i) - 10 m(i + 1) - 5.  Four pixels away the prior is 0.
    joint = np.array([0, *np.exp([-4.5, -2, -0.5, 0])]) / (1 + np.exp([5.0, 15, 5, -5, 5]))
    np.testing.assert_allclose(np.exp(right[0]), joint / joint.sum(), rtol=1e-4)
    np.testing.assert_array_equal(refined(profiles, np.float32([[1, 1, 4, 4]]), weights, bias), [[2, 2, 3, 3]])


def test_pixels_of_boxes() -> None:
    """The box around columns 3 to 5 is from 3 to 6; half a pixel more covers a column more."""
    boxes = np.float32([[3, 0, 6, 1], [2.5, 0.2, 6.5, 0.9]])
    np.testing.assert_array_equal(to_pixels(boxes)[0], [3, 0, 5, 0])
    np.testing.assert_array_equal(covered_pixels(boxes), [[3, 0, 5, 0], [2, 0, 6, 0]])
    np.testing.assert_array_equal(to_boxes(to_pixels(boxes)), boxes)


@pytest.mark.parametrize("rescale", [0, 1])
def test_the_reference_refines_the_same_way(rescale: int) -> None:
    """RDSNet's masks, boxes and published weights: its posteriors, and its boxes to the pixel."""
    file = REFERENCE / "golden_rdsnet_refine_r50.npz"
    if not file.exists():
        pytest.skip("reference numbers absent")
    golden = {key.rpartition("/")[2]: value for key, value in np.load(file).items() if f"test_rescale{rescale}/" in key}
    columns, rows = golden["mask_rowmax"], golden["mask_colmax"]
    profiles = Profiles(columns, rows, np.float32([rows.shape[1], columns.shape[1]]))
    pixels = golden["det_bboxes"][: len(rows), :4]
    for side, found in zip("ltrb", posteriors_of(profiles, pixels, WEIGHTS, BIAS), strict=True):
        np.testing.assert_allclose(np.exp(found), golden[f"mbrm_dist_{side}"], atol=1e-6)
    np.testing.assert_array_equal(refined(profiles, pixels, WEIGHTS, BIAS), golden["mbrm_boxes"][: len(rows), :4])


def test_a_crisp_mask_moves_each_side_to_its_last_pixel() -> None:
    profiles, truth, pixels = rectangles(40)
    assert np.abs(np.round(pixels) - truth).max() == 2
    np.testing.assert_array_equal(refined(profiles, pixels, *CRISP), truth)


def test_weights_of_zero_leave_the_prior() -> None:
    profiles, _, pixels = rectangles(5, blur=0.3)
    found = posteriors_of(profiles, pixels, 0 * WEIGHTS, BIAS)
    index = np.arange(HW[1])
    for n in range(5):
        deviation = max(GAMMA * (pixels[n, 2] - pixels[n, 0]), 1)
        prior = np.exp(-((index - pixels[n, 0]) ** 2) / (2 * deviation**2))
        prior[prior <= 0.0044] = 0
        np.testing.assert_allclose(np.exp(found[0][n]), prior / prior.sum(), atol=1e-6)
    np.testing.assert_array_equal(refined(profiles, pixels, 0 * WEIGHTS, BIAS), np.round(pixels))


def test_an_empty_mask_rounds_the_box() -> None:
    profiles, _, pixels = rectangles(5)
    empty = profiles.replace(columns=0 * profiles.columns, rows=0 * profiles.rows)
    np.testing.assert_array_equal(refined(empty, pixels, WEIGHTS, BIAS), np.round(pixels))
    halves = np.float32([[10.5, 9.5, 30.5, 20.5]])
    one = jax.tree.map(lambda leaf: leaf[:1], (empty.columns, empty.rows))
    expected = [[10, 9, 30, 20]]  # the first of two equal ones
    np.testing.assert_array_equal(refined(Profiles(*one, empty.hw), halves, WEIGHTS, BIAS), expected)


def test_the_image_ends_before_the_canvas() -> None:
    """A box behind the last column of the image ends in it."""
    columns, rows = np.ones((1, HW[1]), np.float32), np.ones((1, HW[0]), np.float32)
    profiles = Profiles(columns, rows, np.float32([20, 30]))
    found = refined(profiles, np.float32([[5, 5, 30.8, 20.8]]), 0 * WEIGHTS, BIAS)
    np.testing.assert_array_equal(found, [[5, 5, 29, 19]])


def test_a_mirrored_image_has_mirrored_boxes() -> None:
    profiles, _, pixels = rectangles(20, seed=5, blur=0.3)
    found = np.asarray(refined(profiles, pixels, WEIGHTS, BIAS))
    mirrored = profiles.replace(columns=profiles.columns[:, ::-1].copy())
    last = HW[1] - 1
    turned = pixels.copy()
    turned[:, [0, 2]] = last - pixels[:, [2, 0]]
    again = np.asarray(refined(mirrored, turned, WEIGHTS, BIAS))
    np.testing.assert_array_equal(last - again[:, [2, 0]], found[:, [0, 2]])
    np.testing.assert_array_equal(again[:, 1::2], found[:, 1::2])


def test_boxes_without_sense_stay_finite_and_leave_others_alone() -> None:
    profiles, _, pixels = rectangles(7, blur=0.3)
    expected = np.asarray(refined(profiles, pixels, WEIGHTS, BIAS))
    strange = np.asarray(pixels).copy()
    strange[1] = np.nan
    strange[2] = [20, 20, 20, 20]  # a single pixel
    strange[3] = to_pixels(np.float32([20, 20, 20, 20]))  # no extent
    strange[4] = [500, 5, 510, 12]  # far from the image
    found = np.asarray(refined(profiles, strange, WEIGHTS, BIAS))
    np.testing.assert_array_equal(found[[0, 5, 6]], expected[[0, 5, 6]])
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[2:]).all()
    np.testing.assert_array_equal(found[3], strange[3])  # would turn inside out
    np.testing.assert_array_equal(found[4, [0, 2]], [500, 510])
    broken = profiles.replace(columns=np.where(np.arange(7)[:, None] == 5, np.nan, profiles.columns))
    found = np.asarray(refined(broken, pixels, WEIGHTS, BIAS))
    np.testing.assert_array_equal(found[5, [0, 2]], pixels[5, [0, 2]])
    np.testing.assert_array_equal(np.delete(found, 5, 0), np.delete(expected, 5, 0))


def test_sides_that_would_pass_each_other_stay() -> None:
    """A box in the hole of a mask: what begins there is behind it, and what ends there before it."""
    columns, rows = np.zeros((1, HW[1]), np.float32), np.zeros((1, HW[0]), np.float32)
    columns[0, 10:20] = columns[0, 22:30] = rows[0, 5:10] = 1
    profiles, pixels = Profiles(columns, rows, np.float32(HW)), np.float32([[20.4, 4, 20.8, 9]])
    left, _, right, _ = posteriors_of(profiles, pixels, *CRISP)
    assert (left.argmax(), right.argmax()) == (22, 19)
    np.testing.assert_array_equal(refined(profiles, pixels, *CRISP), np.float32([[20.4, 5, 20.8, 9]]))


def test_compiled_or_not_it_is_the_same_pixel() -> None:
    profiles, _, pixels = rectangles(100, seed=7, blur=0.5)
    pixels[::2] = np.round(pixels[::2] * 2) / 2  # half of them with ties in the prior
    profiles.columns[::4] = 0
    eager = refine(profiles, jnp.asarray(pixels), jnp.asarray(WEIGHTS), jnp.asarray(BIAS), GAMMA)
    np.testing.assert_array_equal(refined(profiles, pixels, WEIGHTS, BIAS), eager)


def test_the_loss_against_loops() -> None:
    """With targets outside of the image, and such that the prior does not reach."""
    profiles, truth, pixels = rectangles(8, blur=0.4)
    targets = truth.copy()
    targets[1, 0] += 12
    targets[2] = [-3, 5, 60, 70]
    pixels[2] = [1.2, 4, 50, 35.5]
    values, counted = loss_of(profiles, pixels, np.float32(targets), np.ones(8, bool), WEIGHTS, BIAS)
    expected, reached = loss_oracle(profiles, pixels, targets, WEIGHTS, BIAS)
    np.testing.assert_array_equal(counted, reached)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert not reached[1, 0]
    assert reached[2, 0]
    assert reached.mean() > 0.9


def mean_loss(parameters: tuple[Any, Any], *given: Any) -> Any:
    values, counted = boundary_loss(*given, *parameters, GAMMA)
    return values.sum() / counted.sum()


gradients_of = jax.jit(jax.grad(mean_loss))


def test_gradients_of_all_ten_parameters() -> None:
    """Against finite differences of the loops' loss in float64."""
    profiles, truth, pixels = rectangles(4, blur=0.5)
    truth[1, 0] += 12  # out of reach
    pixels[3, [0, 2]] = 500, 510  # with no pixel of the image near
    found = np.concatenate(gradients_of((WEIGHTS, BIAS), profiles, pixels, np.float32(truth), np.ones(4, bool)))

    def loss(parameters: Array) -> float:
        values, counted = loss_oracle(profiles, pixels, truth, parameters[:9], parameters[9:])
        return float(values.sum() / counted.sum())

    middle = np.float64([*WEIGHTS, *BIAS])
    for i in range(10):
        step = np.zeros(10)
        step[i] = 1e-4
        slope = (loss(middle + step) - loss(middle - step)) / 2e-4
        assert found[i] == pytest.approx(slope, rel=1e-3, abs=1e-5)
    assert np.abs(found).min() > 1e-4, "a test of nothing"


@pytest.mark.parametrize("value", [*oracles.GARBAGE, np.inf])
def test_slots_that_do_not_count_have_no_effect(value: float) -> None:
    profiles, truth, pixels = rectangles(4, blur=0.4)
    given = profiles, pixels, np.float32(truth), np.ones(4, bool)
    more = jax.tree.map(lambda leaf: oracles.padded(leaf, 3, value) if leaf.shape[0] == 4 else leaf, given)
    values, _ = loss_of(*given, WEIGHTS, BIAS)
    padded_values, padded_counted = loss_of(*more, WEIGHTS, BIAS)
    np.testing.assert_allclose(padded_values[:4], values, rtol=1e-5)
    assert not np.any(padded_values[4:])
    assert not np.any(padded_counted[4:])
    # Also where such a slot is said to count, as long as it is not finite.
    told = (*more[:3], np.ones(7, bool)) if not np.isfinite(value) else more
    for found, expected in zip(
        gradients_of((WEIGHTS, BIAS), *told), gradients_of((WEIGHTS, BIAS), *given), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    found = refined(more[0], more[1], WEIGHTS, BIAS)
    np.testing.assert_array_equal(found[:4], refined(profiles, pixels, WEIGHTS, BIAS))


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_learning_on_rectangles_finds_their_sides(start: float) -> None:
    """From nothing, and from an edge detector: the loss falls below that of the prior alone."""
    profiles, truth, pixels = rectangles(60, seed=2, blur=0.2)
    given = profiles, pixels, np.float32(truth), np.ones(60, bool)
    parameters = (start * np.sign(np.arange(-4, 5)).astype(np.float32), np.float32([-2 * start]))
    prior = mean_loss((0 * WEIGHTS, BIAS), *given)

    @jax.jit
    def learn(parameters: Any) -> Any:
        def step(_: Any, parameters: Any) -> Any:
            slopes = jax.grad(mean_loss)(parameters, *given)
            return jax.tree.map(lambda value, slope: value - slope, parameters, slopes)

        return jax.lax.fori_loop(0, 400, step, parameters)

    weights, bias = learn(parameters)
    assert mean_loss((weights, bias), *given) < 0.5 * prior
    assert weights[3] < -1
    assert weights[4:6].max() > 1
    others, truth, pixels = rectangles(60, seed=3, blur=0.2)
    found = np.asarray(refined(others, pixels, weights, bias))
    assert (found == truth).mean() > 0.99
    assert np.abs(pixels - truth).mean() > 1
