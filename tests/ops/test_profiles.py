"""Profiles of masks against masks that are painted whole, by another implementation and by loops."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.data.masks import crop_mask
from jaxdet.evaluation.paste import paste_mask
from jaxdet.ops import profiles
from jaxdet.ops.profiles import Profiles, bitmap_extent, enclosing, mask_profiles
from jaxdet.structures import Masks
from tests.ops import oracles

HW = (30, 41)
WHOLE = np.float32([0, 0, 41, 30])
Array = np.ndarray


def profiles_of(masks: Masks, **settings: object) -> Profiles:
    found: Profiles = jax.jit(partial(mask_profiles, canvas_hw=HW, **settings))(masks)
    return found


def boxes_around(rng: np.random.Generator, number: int) -> Array:
    """Boxes inside the image, across its border, and beyond it."""
    low = rng.uniform(-15, 35, (number, 2))
    return np.concatenate([low, low + rng.uniform(0.3, 40, (number, 2))], 1).astype(np.float32)


def random_masks(kind: str, number: int = 12) -> Masks:
    """Masks of a mask head in their boxes, coarse and fine ones on the whole canvas with a crop, and bitmaps."""
    rng = np.random.default_rng(3)
    boxes = boxes_around(rng, number)
    if kind == "box":
        return Masks(rng.uniform(0, 1, (number, 5, 7)).astype(np.float32), boxes)
    if kind == "bitmap":
        return Masks(rng.integers(0, 2, (number, *HW)).astype(np.uint8), np.tile(WHOLE, (number, 1)))
    shape = {"coarse": (8, 11), "fine": (60, 82)}[kind]
    frames = np.tile(np.float32([0, 0, 44, 32]) if kind == "coarse" else WHOLE, (number, 1))
    return Masks(rng.uniform(0, 1, (number, *shape)).astype(np.float32), frames, boxes)


def painted(masks: Masks, n: int, threshold: float, hw: tuple[int, int] = HW) -> Array:
    crop = None if masks.crop is None else masks.crop[n]
    return paste_mask(masks.values[n].astype(np.float32), masks.frames[n], hw, threshold, crop)


@pytest.mark.parametrize("kind", ["box", "coarse", "fine", "bitmap"])
def test_profiles_are_those_of_pasted_masks(kind: str) -> None:
    """At every threshold a column reaches it if one of its pasted pixels does."""
    masks = random_masks(kind)
    found = profiles_of(masks)
    for n in range(len(masks.values)):
        for threshold in (0.05, 0.3, 0.5, 0.8, 0.95):
            pixels = painted(masks, n, threshold)
            for profile, axis in ((np.asarray(found.columns[n]), 0), (np.asarray(found.rows[n]), 1)):
                certain = np.abs(profile - threshold) > 1e-5
                np.testing.assert_array_equal((profile >= threshold)[certain], pixels.any(axis)[certain])
    assert 0.02 < (np.asarray(found.columns) > 0.5).mean() <= 1, "a test of nothing"


def painted_logits(values: Array, frame: Array, cut: Array) -> Array:
    """Probability of each pixel, one at a time: logits between cells, then the sigmoid, 0 outside of the cut."""
    rows, columns = values.shape
    found = np.zeros(HW)
    for i in range(HW[0]):
        for j in range(HW[1]):
            if not (cut[0] <= j + 0.5 < cut[2] and cut[1] <= i + 0.5 < cut[3]):
                continue
            y = np.clip((i + 0.5 - frame[1]) / (frame[3] - frame[1]) * rows - 0.5, 0, rows - 1)
            x = np.clip((j + 0.5 - frame[0]) / (frame[2] - frame[0]) * columns - 0.5, 0, columns - 1)
            found[i, j] = 1 / (1 + np.exp(-oracles.bilinear(values[:, :, None].astype(float), y, x)[0]))
    return found


@pytest.mark.parametrize("kind", ["box", "coarse"])
def test_logits_become_probabilities_behind_the_interpolation(kind: str) -> None:
    """With a crop they end there, without one at their frame: the mean of logits -9 and 9 is one half."""
    masks = random_masks(kind, 5)
    masks = masks.replace(values=np.sign(masks.values - 0.5) * 9, logits=True)
    found = profiles_of(masks)
    for n in range(5):
        pixels = painted_logits(masks.values[n], masks.frames[n], (masks.frames if kind == "box" else masks.crop)[n])
        np.testing.assert_allclose(found.columns[n], pixels.max(0), atol=1e-4)
        np.testing.assert_allclose(found.rows[n], pixels.max(1), atol=1e-4)


def test_nothing_lies_beyond_the_image() -> None:
    """The profiles of an image on a larger canvas are those of the image alone, and 0 behind it."""
    masks = random_masks("box")
    found = profiles_of(masks, true_hw=np.float32([20, 25]))
    for n in range(len(masks.values)):
        pixels = painted(masks, n, 0.3, (20, 25))
        np.testing.assert_array_equal(found.columns[n, :25] >= 0.3, pixels.any(0))
        np.testing.assert_array_equal(found.rows[n, :20] >= 0.3, pixels.any(1))
    assert not found.columns[:, 25:].any()
    assert not found.rows[:, 20:].any()


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_nothing(value: float) -> None:
    masks = random_masks("coarse")
    expected = profiles_of(masks)
    more = jax.tree.map(lambda leaf: oracles.padded(leaf, 3, value), masks)
    found = profiles_of(more)
    np.testing.assert_array_equal(found.columns[:12], expected.columns)
    np.testing.assert_array_equal(found.rows[:12], expected.rows)
    assert not found.columns[12:].any(), "their frames have no extent"


def test_frames_and_crops_that_are_none_give_nothing() -> None:
    wrong = np.float32([[5, 5, 5, 9], [9, 9, 2, 2], [np.nan, 0, 9, 9], [0, 0, np.inf, 9], [50, 50, 60, 60]])
    ones, whole = np.ones((5, 4, 4), np.float32), np.tile(WHOLE, (5, 1))
    for masks in (Masks(ones, wrong), Masks(ones, whole, wrong)):
        for logits in (False, True):
            found = profiles_of(masks.replace(logits=logits))
            assert not np.any(found.columns)
            assert not np.any(found.rows)


@pytest.mark.parametrize("kind", ["box", "coarse"])
def test_a_mirrored_mask_has_a_mirrored_profile(kind: str) -> None:
    masks = random_masks(kind)

    def mirror(boxes: Array | None) -> Array | None:
        return None if boxes is None else np.float32([41, 0, 41, 0]) + boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1] * 2)

    mirrored = Masks(masks.values[..., ::-1].copy(), mirror(masks.frames), mirror(masks.crop))
    expected, found = profiles_of(masks), profiles_of(mirrored)
    np.testing.assert_allclose(found.columns[:, ::-1], expected.columns, atol=1e-4)
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-4)


def test_masks_in_groups_are_masks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks("box")
    expected = profiles_of(masks)
    monkeypatch.setattr(profiles, "_GROUP", 5 * (5 * 41 + 7 * 30))  # 5, 5 and 2 masks
    found = profiles_of(masks)
    np.testing.assert_allclose(found.columns, expected.columns, atol=1e-6)
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-6)


def test_a_hundred_masks_of_a_large_image_take_little_memory() -> None:
    """Painted whole they would be 430 MB."""
    shapes = jax.eval_shape(lambda: Masks(np.ones((100, 200, 336), np.float32), np.ones((100, 4), np.float32)))
    compiled = jax.jit(partial(mask_profiles, canvas_hw=(800, 1344))).lower(shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64e6


def test_the_smallest_rectangle_around_a_mask() -> None:
    masks = random_masks("coarse")
    masks.values[5] = 0
    rectangles, some = enclosing(profiles_of(masks), 0.7)
    for n in range(12):
        y, x = np.nonzero(painted(masks, n, 0.7))
        assert some[n] == bool(len(y))
        if len(y):
            np.testing.assert_array_equal(rectangles[n], [x.min(), y.min(), x.max(), y.max()])
    assert not some[5]
    assert 3 < int(some.sum()) < 12


def test_extent_of_bitmaps_as_they_travel() -> None:
    """Small objects pixel for pixel, and long ones in a crop that is averaged down."""
    boxes = np.array([[3, 4, 8, 30], [0, 0, 1, 1], [10, 5, 139, 98], [139, 99, 140, 100], [2, 0, 125, 61]])
    small, frames = [], []
    for x1, y1, x2, y2 in boxes:
        mask = np.zeros((100, 140), np.uint8)
        mask[y1:y2, x1:x2] = 1
        for form, frame in (crop_mask(mask, 28), crop_mask(mask, 112)):
            small.append(np.pad(form, (0, 112 - len(form))))
            # The frame grows with the bitmap.
            low, cell = frame[:2], (frame[2:] - frame[:2]) / len(form)
            frames.append(np.concatenate([low, low + 112 * cell]))
    masks = Masks(np.stack(small), np.float32(frames))
    pixels, some = bitmap_extent(masks)
    assert np.all(some)
    np.testing.assert_array_equal(pixels, np.repeat(boxes - [0, 0, 1, 1], 2, axis=0))
    _, some = bitmap_extent(masks.replace(values=0 * masks.values))
    assert not np.any(some)
    _, some = bitmap_extent(masks.replace(frames=np.nan * masks.frames))
    assert not np.any(some)
