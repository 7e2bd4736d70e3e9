"""Views of a part of an image, or of an image and what is beyond it: pixels, boxes and masks move by the same."""

import dataclasses

import numpy as np
import pytest

from jaxdet.data import Annotation, Data, Record
from jaxdet.data.pipeline.transforms import IGNORED, View, Window, image_arrays, target_arrays, view_of

HW = (24, 40)
DATA = Data(short_side=30, long_side=50, pad_multiple=8, max_boxes=4, mask_size=64)
SQUARE = dataclasses.replace(DATA, short_side=50, long_side=50, keep_ratio=False)
SMALL = dataclasses.replace(DATA, short_side=13, long_side=30)


def windows(count: int, seed: int = 0) -> list[Window]:
    """Windows that lie inside of the image, reach beyond it, or do both."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.3, 2, (count, 2)) * HW
    corners = rng.uniform(-0.5, 0.5, (count, 2)) * HW
    return [Window(*corner, *side) for corner, side in zip(corners.tolist(), sides.tolist(), strict=True)]


def rectangle(y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
    mask = np.zeros(HW, np.uint8, order="F")  # as masks are decoded
    mask[y1:y2, x1:x2] = 1
    return mask


def box_of(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def record(annotations: list[Annotation]) -> Record:
    return Record(0, 7, "a.png", np.full((*HW, 3), 9, np.uint8), tuple(annotations))


def instance(y1: float, x1: float, y2: float, x2: float, **changes) -> Annotation:
    box = (x1, y1, x2 - x1, y2 - y1)
    outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    return dataclasses.replace(Annotation(1, 1, box, box[2] * box[3], False, False, outline), **changes)


def test_a_part_by_hand():
    view = view_of((10, 20), Data(short_side=20, long_side=40, pad_multiple=8), window=Window(2, 4, 5, 10))
    assert (view.scale, view.offset, view.hw, view.canvas) == ((4, 4), (-8, -16), (20, 40), (24, 40))
    boxes = np.array([[5.0, 3, 4, 2], [0, 0, 6, 4], [0, 0, 4, 2]])
    np.testing.assert_array_equal(view.boxes(boxes), [[4, 4, 20, 12], [0, 0, 8, 8], [0, 0, 0, 0]])
    np.testing.assert_array_equal(view.has_centre(boxes), [True, False, False])
    mirrored = dataclasses.replace(view, flip=True)
    np.testing.assert_array_equal(mirrored.boxes(boxes)[:2], [[20, 4, 36, 12], [32, 0, 40, 8]])
    mask = np.zeros((10, 20), np.uint8)
    mask[3:5, 5:9] = 1
    expected = np.zeros((24, 40), np.uint8)
    expected[4:12, 20:36] = 1
    np.testing.assert_array_equal(mirrored.mask(mask), expected)


def test_more_than_the_image_by_hand():
    data = Data(short_side=20, long_side=40, pad_multiple=8)
    view = view_of((10, 20), data, flip=True, window=Window(-10, 0, 20, 40), fill=(1, 2, 3))
    assert (view.scale, view.offset, view.hw) == ((1, 1), (10, 0), (20, 40))
    image = np.random.default_rng(0).integers(4, 256, (10, 20, 3), dtype=np.uint8)
    expected = np.zeros((24, 40, 3), np.uint8)
    expected[:20] = (1, 2, 3)
    expected[10:20, 20:] = image[:, ::-1]
    np.testing.assert_array_equal(view.image(image), expected)
    # A box ends where the image does: what it has beyond is not there.
    np.testing.assert_array_equal(view.boxes(np.array([[15.0, 5, 10, 10]])), [[20, 15, 25, 20]])


def test_a_part_that_is_higher_than_wide_fits_the_canvas_of_a_wide_image():
    for window in windows(50):
        view = view_of(HW, DATA, window=window)
        assert view.canvas == (32, 56)
        assert view.hw[0] <= 30
        assert view.hw[1] <= 50
        assert view.hw[0] == 30 or view.hw[1] == 50


@pytest.mark.parametrize("data", [DATA, SQUARE, SMALL])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_masks_are_the_boxes(data, flip):
    rng = np.random.default_rng(1)
    seen = 0
    for window in windows(60):
        view = view_of(HW, data, flip, window=window)
        y1, x1 = (int(rng.integers(0, side - 3)) for side in HW)
        y2, x2 = int(rng.integers(y1 + 3, HW[0] + 1)), int(rng.integers(x1 + 3, HW[1] + 1))
        mask = rectangle(y1, x1, y2, x2)
        box = view.boxes(np.array([[x1, y1, x2 - x1, y2 - y1]], np.float64))[0]
        if (box[2:] - box[:2]).min() < 2:  # so little is seen that no pixel need have its centre in it
            continue
        seen += 1
        whole = view.mask(mask)
        # A nearest neighbour is within a pixel.
        np.testing.assert_allclose(box_of(whole), box, atol=1.001)
        bitmap, frame = view.cropped_mask(mask, data.mask_size)
        unit = (frame[2:] - frame[:2]) / data.mask_size
        np.testing.assert_allclose(np.tile(frame[:2], 2) + box_of(bitmap) * np.tile(unit, 2), box, atol=1.501)
        # The painted image and the mask show the same pixels, but for those along the outline, which are mixed.
        painted = view.image(np.repeat(np.asarray(mask)[..., None] * np.uint8(255), 3, axis=2))[..., 0] > 127
        outline = 2 * ((box[2:] - box[:2]).sum() + 4)
        assert (painted != whole).sum() <= outline
    assert seen > 20


@pytest.mark.parametrize("data", [DATA, SQUARE])
def test_areas_scale(data):
    for window in windows(40):
        view = view_of(HW, data, window=window)
        mask = rectangle(0, 0, *HW)
        height, width = (
            max(min(begin + size, side) - max(begin, 0), 0)
            for begin, size, side in zip(window[:2], window[2:], HW, strict=True)
        )
        expected = height * width * view.scale[0] * view.scale[1]
        assert abs(int(view.mask(mask).sum()) - expected) <= sum(view.hw) + 2  # a row and a column of pixels


@pytest.mark.parametrize("data", [DATA, SQUARE, SMALL])
def test_a_flip_of_a_flip_is_the_view(data):
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (*HW, 3), dtype=np.uint8)
    boxes = np.concatenate([rng.uniform(0, 20, (9, 2)), rng.uniform(1, 20, (9, 2))], axis=1)
    for window in windows(20):
        plain = view_of(HW, data, window=window, fill=(9, 8, 7))
        flipped = dataclasses.replace(plain, flip=True)
        height, width = plain.hw
        there = flipped.image(image)
        np.testing.assert_array_equal(there[:height, :width][:, ::-1], plain.image(image)[:height, :width])
        assert not there[height:].any()
        assert not there[:, width:].any()
        np.testing.assert_allclose(flipped.mirrored(flipped.boxes(boxes)), plain.boxes(boxes), atol=1e-4)
        np.testing.assert_array_equal(flipped.has_centre(boxes), plain.has_centre(boxes))


@pytest.mark.parametrize("flip", [False, True])
def test_semantic_maps_move_with_the_pixels(flip):
    classes = np.random.default_rng(3).integers(0, 200, HW, dtype=np.uint8)
    for window in windows(30):
        view = view_of(HW, DATA, flip, window=window)
        assert view.semantic(classes).shape == (4, 7)
        # One more than the class, as an image: 0 is beyond the image.
        whole = view.mask(classes + 1).astype(int) - 1
        np.testing.assert_array_equal(view.semantic(classes), np.where(whole < 0, IGNORED, whole)[::8, ::8])


def test_instances_go_with_their_centres_and_crowds_with_their_pixels():
    view = view_of(HW, DATA, window=Window(0, 8, 24, 32))  # a scale of 1.25, and 10 pixels cut off
    inside, cut, gone = instance(2, 12, 9, 20), instance(10, 5, 18, 16), instance(10, 2, 18, 13, label=5)
    crowd = dataclasses.replace(gone, crowd=True, label=9)
    targets = target_arrays(record([gone, crowd, inside, cut]), view, DATA)
    np.testing.assert_array_equal(targets["labels"], [1, 1, 9, 0])
    np.testing.assert_array_equal(targets["valid"], [True, True, True, False])
    np.testing.assert_array_equal(targets["boxes"][1], [0, 12.5, 10, 22.5])
    # Of the cut one's mask only what is seen.
    whole = target_arrays(record([cut]), view, dataclasses.replace(DATA, whole_masks=True))["masks"][0]
    np.testing.assert_array_equal(box_of(whole), [0, 13, 10, 23])
    assert targets["masks"][1].sum() == whole.sum() == 100


def test_a_box_that_the_image_cuts_has_its_centre_in_the_image():
    beyond = instance(2, 30, 12, 90, segmentation=None)
    data = dataclasses.replace(DATA, masks=False)
    assert target_arrays(record([beyond]), view_of(HW, data), data)["valid"][0]
    # What the image has of it, 30 to 40, is cut at 36 and at 34.
    for end, expected in ((36, True), (34, False)):
        view = view_of(HW, data, window=Window(0, 0, 24, end))
        assert target_arrays(record([beyond]), view, data)["valid"][0] == expected


def test_an_object_whose_pixels_are_out_of_sight_has_an_empty_mask():
    view = view_of(HW, DATA, window=Window(0, 10, 24, 30))
    c_shape = [[4.0, 2, 6, 2, 6, 20, 4, 20]]
    hidden = instance(2, 4, 20, 24, segmentation=c_shape)
    for data in (DATA, dataclasses.replace(DATA, short_side=12)):
        targets = target_arrays(record([hidden]), view_of(HW, data, window=Window(0, 10, 24, 30)), data)
        assert targets["valid"][0]
        assert not targets["masks"].any()
        assert (targets["frames"][0, 2:] > targets["frames"][0, :2]).all()
    assert not target_arrays(record([hidden]), view, dataclasses.replace(DATA, whole_masks=True))["masks"].any()


def test_small_objects_are_left_out_and_counted():
    data = dataclasses.replace(DATA, min_box=5.0)
    things = [
        instance(2, 2, 6, 10),
        instance(2, 12, 5.9, 20),
        instance(2, 22, 20, 24),
        instance(2, 26, 22, 30, label=4),
    ]
    targets = target_arrays(record(things), view_of(HW, data), data)  # a scale of 1.25: 4 pixels are 5
    np.testing.assert_array_equal(targets["labels"], [1, 4, 0, 0])
    assert (targets["small"], targets["dropped"]) == (2, 0)
    assert target_arrays(record(things), view_of(HW, DATA), DATA)["small"] == 0


def test_without_the_ratio_an_image_fills_its_canvas():
    for hw, expected in (((24, 40), (50, 50)), ((90, 20), (50, 50)), ((1, 999), (50, 50))):
        view = view_of(hw, dataclasses.replace(SQUARE, pad_multiple=1))
        assert view.hw == view.canvas == expected
        arrays = image_arrays(np.zeros((*hw, 3), np.uint8), view, 0)
        np.testing.assert_allclose(arrays["true_hw"] / arrays["scale"], hw, rtol=1e-6)
    wide = dataclasses.replace(SQUARE, short_side=30)
    assert view_of((24, 80), wide).hw == (30, 50)
    assert view_of((80, 24), wide).hw == (50, 30)


@pytest.mark.parametrize("hw", [(48, 30), (30, 48), (80, 30)])
def test_a_mask_that_gets_smaller_along_one_axis_keeps_its_stored_pixels(hw):
    mask = np.zeros(hw, np.uint8, order="F")
    mask[5:12, 3:14] = np.random.default_rng(4).integers(0, 2, (7, 11))
    mask[5, 3] = mask[11, 13] = 1
    view = View(hw, (40, 40), (40, 40))
    bitmap, frame = view.cropped_mask(mask, 28)
    np.testing.assert_array_equal(bitmap[1:8, 1:12], mask[5:12, 3:14])
    scale_y, scale_x = view.scale
    np.testing.assert_allclose(frame, [2 * scale_x, 4 * scale_y, 30 * scale_x, 32 * scale_y], rtol=1e-6)
