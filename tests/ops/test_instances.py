"""Masks of one-stage models: against loops over pixels, by hand, and as they are pasted."""

import math
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.evaluation.paste import paste_mask
from jaxdet.ops.instances import (
    Correlation,
    CroppedEntropy,
    CutEntropy,
    DynamicConvs,
    MaskMaker,
    Prototypes,
    cells_inside,
    expanded,
)
from jaxdet.structures import Masks
from tests.ops import oracles

CANVAS = (32, 48)
GRID = (8, 12)
"""Cells of 4 pixels."""
MAKERS: tuple[MaskMaker, ...] = (Correlation(size=3), Prototypes(size=3), DynamicConvs(channels=2, inputs=3))
BOXES = np.float32([[8, 4, 25, 22], [0, 0, 48, 32], [30.5, 9.25, 47, 31], [13, 17, 14, 18]])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.float64(x)))


def inputs(maker: MaskMaker, number: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map of 4 x 6 cells of 8 pixels, codes, and places of 8 and 16 pixels."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(-4, 30, (number, 2)), np.where(np.arange(number) % 2, 16, 8)[:, None]
    places = np.concatenate([corner, corner + side], 1)
    return rng.normal(size=(4, 6, 3)), rng.normal(size=(number, maker.code)), places


def logits_of(maker: MaskMaker, *arrays: np.ndarray) -> np.ndarray:
    found: jax.Array = _logits_of(maker, *map(np.float32, arrays))
    assert found.dtype == jnp.float32
    return np.asarray(found)


@partial(jax.jit, static_argnums=0)
def _logits_of(maker: MaskMaker, pixels: jax.Array, codes: jax.Array, places: jax.Array) -> jax.Array:
    return maker.logits(pixels, codes, places, CANVAS)


def slow_networks(maker: DynamicConvs, pixels: np.ndarray, codes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """One pixel after the other: a code is all weights, each matrix [out, in] row by row, and then all biases."""
    height, width, inside = pixels.shape
    sizes = [(inside + 2, maker.channels), *[(maker.channels, maker.channels)] * (maker.layers - 2)]
    sizes += [(maker.channels, 1)]
    out = np.zeros((1, height, width, len(codes)))
    for n, (code, (x1, y1, x2, y2)) in enumerate(zip(codes, places, strict=True)):
        for i, j in np.ndindex(height, width):
            # The place minus the pixel, both in pixels of the image, in units of ``reach`` sides of the place.
            away = [(x1 + x2) / 2 - (j + 0.5) * 8, (y1 + y2) / 2 - (i + 0.5) * 8]
            x = np.array([away[0] / (maker.reach * (x2 - x1)), away[1] / (maker.reach * (y2 - y1)), *pixels[i, j]])
            start, bias = 0, sum(a * b for a, b in sizes)
            for number, (a, b) in enumerate(sizes):
                x = code[start : start + a * b].reshape(b, a) @ x + code[bias : bias + b]
                start, bias = start + a * b, bias + b
                x = np.maximum(x, 0) if number < len(sizes) - 1 else x
            out[0, i, j, n] = x[0]
    return oracles.resize(out, (2 * height, 2 * width), "strided")[0].transpose(2, 0, 1)


@pytest.mark.parametrize("maker", [MAKERS[2], DynamicConvs(4, 3, layers=2), DynamicConvs(2, 3, layers=4, reach=2.0)])
def test_dynamic_convolutions_pixel_by_pixel(maker: DynamicConvs) -> None:
    given = inputs(maker)
    np.testing.assert_allclose(logits_of(maker, *given), slow_networks(maker, *given), rtol=1e-4, atol=1e-4)


def test_a_dynamic_convolution_that_tells_the_distance() -> None:
    """Its two layers hand on how far a pixel lies to the left of the place, of 8 pixels, in units of 64 pixels."""
    maker = DynamicConvs(channels=1, inputs=1, layers=2)
    assert (maker.code, DynamicConvs().code) == (3 + 1 + 1 + 1, 169)
    code, place = np.float32([[1, 0, 0, 1, 0, 0]]), np.float32([[40, 8, 48, 16]])
    found = logits_of(maker, np.zeros((4, 6, 1)), code, place)[0]
    assert found.shape == (8, 12)
    # Cell centres are at 4, 12, .., 44; column 2 j + 1 of the doubled map is column j, 2 j lies between j - 1 and j.
    np.testing.assert_allclose(found[3, 1::2], np.arange(5, -1, -1) / 8, atol=1e-6)
    np.testing.assert_allclose(found[0, :4], [5 / 8, 5 / 8, 4.5 / 8, 4 / 8], atol=1e-6)


def test_correlation_is_the_softmax_of_two_products() -> None:
    maker = MAKERS[0]
    pixels, codes, places = inputs(maker)
    found = sigmoid(logits_of(maker, pixels, codes, places))
    for n, i, j in np.ndindex(found.shape):
        background, foreground = (math.exp(codes[n, k : k + 3] @ pixels[i, j]) for k in (0, 3))
        assert found[n, i, j] == pytest.approx(foreground / (background + foreground), rel=1e-4)


def test_prototypes_are_summed_up() -> None:
    pixels, codes, places = inputs(MAKERS[1])
    expected = [[[code @ pixel for pixel in row] for row in pixels] for code in codes]
    np.testing.assert_allclose(logits_of(MAKERS[1], pixels, codes, places), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
def test_instances_do_not_see_each_other(maker: MaskMaker) -> None:
    """In another order they say the same, and so they do beside slots that hold anything."""
    pixels, codes, places = inputs(maker)
    found = logits_of(maker, pixels, codes, places)
    np.testing.assert_allclose(logits_of(maker, pixels, codes[::-1], places[::-1]), found[::-1], rtol=1e-5, atol=1e-5)
    for value in oracles.GARBAGE:
        more = logits_of(maker, pixels, *(oracles.padded(a, 2, value) for a in (codes, places)))
        np.testing.assert_allclose(more[:4], found, rtol=1e-5, atol=1e-5)
    none = logits_of(maker, pixels, codes[:0], places[:0])
    assert none.shape == (0, *found.shape[1:])


@pytest.mark.parametrize("maker", MAKERS[:2])
def test_a_mirrored_map_gives_mirrored_masks(maker: MaskMaker) -> None:
    pixels, codes, places = inputs(maker)
    found = logits_of(maker, pixels[:, ::-1], codes, places)
    np.testing.assert_allclose(found[..., ::-1], logits_of(maker, pixels, codes, places), rtol=1e-5, atol=1e-6)


def test_distances_mirror_with_their_weights() -> None:
    """Dynamic convolutions whose weight of x has the other sign, on a mirrored map, before they are doubled."""
    maker = DynamicConvs(channels=2, inputs=3, layers=2)
    pixels, codes, places = inputs(maker)
    other = codes.copy()
    other[:, [0, 5]] *= -1  # of 5 inputs, x is the first
    mirrored = 48 - places[:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 48, 0, 48]
    found, expected = logits_of(maker, pixels[:, ::-1], other, mirrored), logits_of(maker, pixels, codes, places)
    np.testing.assert_allclose(found[:, 1::2, 1::2][..., ::-1], expected[:, 1::2, 1::2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
def test_gradients_of_makers(maker: MaskMaker) -> None:
    pixels, codes, places = (jnp.asarray(a, jnp.float32) for a in inputs(maker, 2))
    check_grads(lambda p, c: maker.logits(p, c, places, CANVAS), (pixels, codes), order=1, eps=1e-3, rtol=2e-2)


@pytest.mark.parametrize("maker", MAKERS)
def test_maps_and_codes_in_bfloat16_are_read_in_float32(maker: MaskMaker) -> None:
    pixels, codes, places = (jnp.asarray(a, jnp.bfloat16) for a in inputs(maker))
    low = maker.logits(pixels, codes, places.astype(jnp.float32), CANVAS)
    high = maker.logits(*(a.astype(jnp.float32) for a in (pixels, codes, places)), CANVAS)
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(low, high)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_map_of_other_numbers_is_an_error(maker: MaskMaker) -> None:
    pixels, codes, places = inputs(maker)
    name = "DynamicConvs.inputs" if isinstance(maker, DynamicConvs) else f"{type(maker).__name__}.size"
    with pytest.raises(ValueError, match=rf"{name}: expected the 2 numbers of the map, got 3"):
        maker.logits(jnp.asarray(pixels[..., :2]), jnp.asarray(codes), jnp.asarray(places), CANVAS)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DynamicConvs(layers=1), "DynamicConvs.layers: expected a number from 2"),
        (lambda: DynamicConvs(reach=0), "DynamicConvs.reach"),
        (lambda: Correlation(threshold=1.0), r"Correlation.threshold: .* from 0 to 1, not 0 or 1, got 1.0"),
        (lambda: Correlation(expand=0.9), "Correlation.expand"),
        (lambda: Prototypes(size=0), "Prototypes.size"),
        (lambda: CroppedEntropy(expand=0.5), "CroppedEntropy.expand"),
        (lambda: CutEntropy(weight=-1), "CutEntropy.weight"),
    ],
)
def test_ranges(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


# Masks of detections, as they are pasted.


def pasted(masks: Masks, i: int) -> np.ndarray:
    assert masks.crop is not None
    values, frame, crop = (np.asarray(a[i]) for a in (masks.values, masks.frames, masks.crop))
    return paste_mask(values, frame, CANVAS, masks.threshold, crop, masks.logits)


def far_from(values: np.ndarray, threshold: float) -> np.ndarray:
    return np.abs(values - threshold) > 1e-4


def test_dynamic_masks_are_probabilities_brought_to_the_image_and_not_cut() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, *GRID)).astype(np.float32)
    masks = DynamicConvs().masks(jnp.asarray(logits), jnp.asarray(BOXES), CANVAS)
    for i in range(4):
        values = oracles.resize(sigmoid(logits[i])[None, ..., None], CANVAS, "strided")[0, ..., 0]
        clear = far_from(values, 0.5)
        np.testing.assert_array_equal(pasted(masks, i)[clear], (values > 0.5)[clear])


def test_prototype_masks_are_cut_on_the_grid() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (4, *GRID)).astype(np.float32)
    masks = Prototypes().masks(jnp.asarray(logits), jnp.asarray(BOXES), CANVAS)
    inside = slow_inside(BOXES)
    for i in range(4):
        values = cv2.resize(np.where(inside[i], sigmoid(logits[i]), 0), CANVAS[::-1], interpolation=cv2.INTER_LINEAR)
        clear = far_from(values, 0.5)
        np.testing.assert_array_equal(pasted(masks, i)[clear], (values > 0.5)[clear])


def test_correlated_masks_are_interpolated_as_logits_and_cut_in_the_image() -> None:
    logits = np.random.default_rng(2).normal(0, 3, (4, *GRID)).astype(np.float32)
    masks = Correlation().masks(jnp.asarray(logits), jnp.asarray(BOXES), CANVAS)
    for i, (x1, y1, x2, y2) in enumerate(slow_expanded(BOXES, 1.2, CANVAS)):
        values = sigmoid(cv2.resize(logits[i], CANVAS[::-1], interpolation=cv2.INTER_LINEAR))
        expected = np.zeros(CANVAS, bool)
        expected[y1:y2, x1:x2] = values[y1:y2, x1:x2] >= 0.4
        clear = far_from(values, 0.4)
        np.testing.assert_array_equal(pasted(masks, i)[clear], expected[clear])


# Boxes on the grid.


def slow_expanded(boxes: np.ndarray, factor: float, grid: tuple[int, int]) -> list[tuple[int, ...]]:
    """RDSNet's code, where a box ends at its last pixel: ``crop`` of its correlation head, a number at a time."""
    found = []
    for x1, y1, x2, y2 in boxes:
        sides = []
        for low, high, cells, pixels in ((x1, x2, grid[1], CANVAS[1]), (y1, y2, grid[0], CANVAS[0])):
            first, last = low * cells / pixels, (high - 1) * cells / pixels
            more = max((factor - 1) / 2 * (last - first + 1), 1)
            sides.append([int(min(max(first - more, 0), cells)), int(min(max(last + more, 0), cells))])
        found.append((sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
    return found


def slow_inside(boxes: np.ndarray, grid: tuple[int, int] = GRID) -> np.ndarray:
    """YOLACT's ``crop`` with a padding of one cell."""
    inside = np.zeros((len(boxes), *grid), bool)
    for n, i, j in np.ndindex(inside.shape):
        x1, y1, x2, y2 = boxes[n] * np.float32([grid[1] / CANVAS[1], grid[0] / CANVAS[0]] * 2)
        inside[n, i, j] = max(x1 - 1, 0) <= j < min(x2 + 1, grid[1]) and max(y1 - 1, 0) <= i < min(y2 + 1, grid[0])
    return inside


@pytest.mark.parametrize("factor", [1.2, 1.5, 3.0])
@pytest.mark.parametrize("grid", [GRID, CANVAS, (5, 7)])
def test_expanded_boxes_and_cells_inside(factor: float, grid: tuple[int, int]) -> None:
    boxes = np.concatenate([BOXES, oracles.random_boxes(np.random.default_rng(0), 20, 31.0)])
    np.testing.assert_array_equal(
        expanded(jnp.asarray(boxes), factor, grid, CANVAS), slow_expanded(boxes, factor, grid)
    )
    np.testing.assert_array_equal(cells_inside(jnp.asarray(boxes), grid, CANVAS), slow_inside(boxes, grid))


def test_expanded_boxes_by_hand() -> None:
    """Pixels 8 to 23 in cells of 4 are 2 to 5.75, a quarter of 4.75 more on each side is 0.81 to 6.94."""
    box = jnp.asarray([[8.0, 8, 24, 24]])
    np.testing.assert_array_equal(expanded(box, 1.5, GRID, CANVAS), [[0, 0, 6, 6]])
    np.testing.assert_array_equal(expanded(box, 1.0, CANVAS, CANVAS), box)  # a factor of 1 adds nothing
    np.testing.assert_array_equal(expanded(box, 1.01, CANVAS, CANVAS), [[7, 7, 24, 24]])  # and another one a pixel
