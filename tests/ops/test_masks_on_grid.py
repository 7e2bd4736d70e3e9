"""Masks on a grid over the canvas, and their centres of mass: against loops, OpenCV and the references' ways."""

import cv2
import jax
import numpy as np
import pytest

from jaxdet.data.masks import crop_mask
from jaxdet.ops.masks import centroids, masks_on_grid
from jaxdet.structures import Masks
from tests.ops import oracles
from tests.ops.test_masks import blobs, whole

_on_grid = jax.jit(masks_on_grid, static_argnums=(1, 2, 3))


def on_grid(masks: Masks, stride: int, hw: tuple[int, int], shift: float = 0.0) -> jax.Array:
    """Masks on a grid of cells of ``stride`` pixels."""
    found: jax.Array = _on_grid(masks, (stride * hw[0], stride * hw[1]), hw, shift)
    return found


def slow_grid(values: np.ndarray, frame: np.ndarray, stride: int, hw: tuple[int, int]) -> np.ndarray:
    """One cell of the grid after the other, in float64: the four pixels around its centre, 0 outside the frame."""
    grid = np.zeros(hw)
    x1, y1, x2, y2 = (float(side) for side in frame)
    rows, columns = values.shape
    for i, j in np.ndindex(hw):
        y, x = (i + 0.5) * stride, (j + 0.5) * stride
        if y1 <= y < y2 and x1 <= x < x2:
            v, u = (y - y1) / (y2 - y1) * rows - 0.5, (x - x1) / (x2 - x1) * columns - 0.5
            v, u = min(max(v, 0.0), rows - 1.0), min(max(u, 0.0), columns - 1.0)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            above = values[top, left] * (1 - (u - left)) + values[top, right] * (u - left)
            below = values[bottom, left] * (1 - (u - left)) + values[bottom, right] * (u - left)
            grid[i, j] = above * (1 - (v - top)) + below * (v - top)
    return grid


@pytest.mark.parametrize(("stride", "hw"), [(4, (6, 7)), (8, (3, 3)), (1, (24, 28))])
def test_grid_by_a_slow_one(stride: int, hw: tuple[int, int]) -> None:
    """Bitmaps inside boxes, which may reach beyond the canvas, and a bitmap of the canvas."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (2, 5, 7, 9)).astype(np.uint8)
    frames = np.stack([oracles.random_boxes(rng, 5, 27.0) for _ in range(2)])
    frames[0, 0], frames[1, 1] = [-6, -5, 40, 33], [0, 0, 28, 24]
    found = np.asarray(on_grid(Masks(masks, frames), stride, hw))
    assert (found.shape, found.dtype) == ((2, 5, *hw), np.float32)
    for b, g in np.ndindex(2, 5):
        np.testing.assert_allclose(found[b, g], slow_grid(masks[b, g], frames[b, g], stride, hw), atol=1e-5)
    assert 0.05 < found.mean() < 0.9, "a test of nothing"


@pytest.mark.parametrize("stride", [4, 8])
def test_a_whole_canvas_gives_the_mean_of_the_four_pixels_in_the_middle(stride: int) -> None:
    canvas = np.random.default_rng(1).integers(0, 2, (1, 2, 16, 24)).astype(np.uint8)
    found = on_grid(Masks(canvas, whole(canvas[0])[None]), stride, (16 // stride, 24 // stride))
    middle = slice(stride // 2 - 1, None, stride), slice(stride // 2, None, stride)
    four = [canvas[..., rows, columns] for rows in middle for columns in middle]
    np.testing.assert_allclose(found, np.mean(four, axis=0), atol=1e-6)


def test_a_mask_and_its_crop_say_the_same_on_a_grid() -> None:
    """A crop that lost nothing, on the pixels whose centres it covers; outside there is no object."""
    rng = np.random.default_rng(2)
    masks = np.zeros((3, 32, 40), np.uint8)
    masks[:, 4:28, 8:36] = blobs(rng, 3, (24, 28))
    crops, frames = (np.stack(part)[None] for part in zip(*(crop_mask(mask, 30) for mask in masks), strict=True))
    cut = np.asarray(on_grid(Masks(crops, np.float32(frames)), 1, (32, 40)))
    np.testing.assert_array_equal(cut[0] >= 0.5, masks > 0)
    np.testing.assert_array_equal(on_grid(Masks(masks[None], whole(masks)[None]), 1, (32, 40))[0], masks)


def test_frames_that_are_none_give_nothing() -> None:
    frames = np.float32([[0, 0, 0, 8], [5, 5, 5, 5], [8, 8, 0, 0], [np.nan, 0, 8, 8], [0, 0, np.inf, 8], [0, 0, 8, 8]])
    found = np.asarray(on_grid(Masks(np.ones((1, 6, 4, 4), np.uint8), frames[None]), 4, (2, 2)))
    np.testing.assert_array_equal(found[0, :5], 0)
    np.testing.assert_array_equal(found[0, 5], 1)
    far = np.float32([[[100, 100, 108, 108], [-1e6, -1e6, 1e6, 1e6]]])
    found = np.asarray(on_grid(Masks(np.ones((1, 2, 4, 4), np.uint8), far), 4, (2, 2)))
    np.testing.assert_array_equal(found, np.float32([0, 1])[None, :, None, None] * np.ones((2, 2)))


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padded_masks_change_no_grid(value: float) -> None:
    rng = np.random.default_rng(3)
    masks, frames = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 3, 22.0)
    expected = on_grid(Masks(masks[None], frames[None]), 4, (5, 6))
    more = Masks(*(oracles.padded(a, 2, value)[None] for a in (masks, frames)))
    np.testing.assert_array_equal(on_grid(more, 4, (5, 6))[:, :3], expected)


def test_a_mirrored_mask_gives_a_mirrored_grid() -> None:
    rng = np.random.default_rng(4)
    masks, frames = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 3, 22.0)
    flipped = np.float32([32, 0, 32, 0]) + np.float32([-1, 1, -1, 1]) * frames[:, [2, 1, 0, 3]]
    found = on_grid(Masks(masks[None, ..., ::-1].copy(), flipped[None]), 4, (8, 8))
    np.testing.assert_allclose(found[..., ::-1], on_grid(Masks(masks[None], frames[None]), 4, (8, 8)), atol=1e-5)


def large_masks(seed: int, hw: tuple[int, int]) -> np.ndarray:
    """Ellipses, as bitmaps of a canvas."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[: hw[0], : hw[1]]
    centres, sides = rng.uniform(0, 1, (3, 2)) * hw, rng.uniform(0.05, 0.5, (3, 2)) * hw
    ovals = [((y - c[0]) / s[0]) ** 2 + ((x - c[1]) / s[1]) ** 2 < 1 for c, s in zip(centres, sides, strict=True)]
    return np.stack(ovals).astype(np.uint8)


@pytest.mark.parametrize(("canvas", "grid"), [((550, 550), (138, 138)), ((550, 550), (69, 69)), ((37, 61), (10, 7))])
def test_a_grid_of_odd_cells_is_opencvs(canvas: tuple[int, int], grid: tuple[int, int]) -> None:
    """YOLACT's targets: bilinear without smoothing, where cells are no whole number of pixels."""
    masks = large_masks(0, canvas)
    found = np.asarray(_on_grid(Masks(masks[None], whole(masks)[None]), canvas, grid, 0.0)[0])
    for mask, values in zip(masks, found, strict=True):
        expected = cv2.resize(mask.astype(np.float32), grid[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(values, expected, atol=1e-3)
        clear = np.abs(expected - 0.5) > 1e-3
        np.testing.assert_array_equal((values > 0.5)[clear], (expected > 0.5)[clear])
    assert 0 < (found > 0.5).mean() < 1


@pytest.mark.parametrize("canvas", [(32, 48), (36, 44)])
def test_a_shift_of_half_a_pixel_takes_single_pixels(canvas: tuple[int, int]) -> None:
    """CondInst's targets: every fourth pixel, from the third one on."""
    masks = large_masks(1, canvas)
    grid = (canvas[0] // 4, canvas[1] // 4)
    found = _on_grid(Masks(masks[None], whole(masks)[None]), canvas, grid, 0.5)[0]
    np.testing.assert_array_equal(found, masks[:, 2::4, 2::4])


def test_a_shift_moves_the_grid_over_crops_too() -> None:
    masks = np.zeros((3, 32, 48), np.uint8)
    masks[:, 4:28, 8:36] = large_masks(2, (24, 28))
    crops, frames = (np.stack(part)[None] for part in zip(*(crop_mask(mask, 30) for mask in masks), strict=True))
    found = _on_grid(Masks(crops, np.float32(frames)), (32, 48), (8, 12), 0.5)[0]
    np.testing.assert_array_equal(np.asarray(found) > 0.5, masks[:, 2::4, 2::4] > 0)


# Centres of mass.


def slow_centroid(mask: np.ndarray) -> list[float]:
    """CondInst's code: the mean index of the pixels of a bitmap of the canvas, (x, y)."""
    places = [(x, y) for y, x in np.ndindex(mask.shape) if mask[y, x]]
    return [sum(place[axis] for place in places) / len(places) for axis in (0, 1)]


def test_centroids_of_canvases_and_of_crops() -> None:
    masks = np.zeros((3, 32, 40), np.uint8)
    masks[:, 4:28, 8:36] = large_masks(3, (24, 28))
    expected = [slow_centroid(mask) for mask in masks]
    np.testing.assert_allclose(centroids(Masks(masks, whole(masks))), expected, rtol=1e-5)
    crops, frames = (np.stack(part) for part in zip(*(crop_mask(mask, 30) for mask in masks), strict=True))
    np.testing.assert_allclose(jax.jit(centroids)(Masks(crops, np.float32(frames))), expected, rtol=1e-5)
    together = centroids(Masks(np.stack([masks, masks]), np.stack([whole(masks)] * 2)))
    np.testing.assert_allclose(together, [expected] * 2, rtol=1e-5)


def test_centroids_of_large_objects_are_exact() -> None:
    """A million pixels, whose indices sum up to more than a float32 counts."""
    full = np.ones((1, 1000, 1400), np.uint8)
    np.testing.assert_allclose(centroids(Masks(full, whole(full))), [[699.5, 499.5]], rtol=1e-6)


def test_centroids_of_what_has_no_pixels() -> None:
    """The centre of the frame; a slot that does not count may have any frame, and leaves the others alone."""
    values, frames = np.zeros((3, 4, 4), np.uint8), np.float32([[0, 0, 8, 12], [np.nan] * 4, [3, 3, 3, 3]])
    values[1] = 1
    np.testing.assert_array_equal(centroids(Masks(values, frames)), [[4, 6], [np.nan] * 2, [3, 3]])
    np.testing.assert_array_equal(centroids(Masks(values[:, :0, :0], frames)), [[4, 6], [np.nan] * 2, [3, 3]])
