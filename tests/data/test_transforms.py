import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxdet.data import Annotation, Data, Record
from jaxdet.data.masks import crop_mask, crop_polygons, decode_mask, resize_mask
from jaxdet.data.pipeline.transforms import View, Window, canvas_hw, canvas_sides, image_arrays, target_arrays, view_of


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((300, 1000), (400, 1333)),
        ((1, 5000), (1, 1333)),
        ((800, 1333), (800, 1333)),
        ((100, 100), (800, 800)),
    ],
)
def test_resized_sizes(hw, expected):
    assert view_of(hw, Data()).hw == expected


@pytest.mark.parametrize("ratios", [(), (1.36, 1.0), (1.2, 3.0)])
def test_every_resized_image_fits_its_canvas(ratios):
    data = Data(canvas_ratios=ratios)
    rng = np.random.default_rng(0)
    for hw in rng.integers(1, 3000, (500, 2)).tolist():
        size, canvas = view_of(tuple(hw), data).hw, canvas_hw(tuple(hw), data)
        assert size[0] <= canvas[0]
        assert size[1] <= canvas[1]
        assert size == view_of(tuple(hw), Data()).hw  # a canvas adds margins and changes no size


def test_an_image_lies_on_the_narrowest_canvas_that_has_room_for_it():
    data = Data(canvas_ratios=(4 / 3, 1.0))
    expected = {(480, 640): (800, 1088), (640, 480): (1088, 800), (500, 500): (800, 800), (427, 640): (800, 1344)}
    # 1088 pixels fit, though the ratio is that of 1067; one pixel more does not.
    expected |= {(1000, 1360): (800, 1088), (1000, 1361): (800, 1344), (1361, 1000): (1344, 800)}
    assert {hw: canvas_hw(hw, data) for hw in expected} == expected
    assert canvas_sides(data) == (800, (800, 1088, 1344))
    assert canvas_sides(Data(canvas_ratios=(5.0,))) == canvas_sides(Data()) == (800, (1344,))


def test_what_is_drawn_stays_on_the_canvas_of_the_image():
    data = Data(short_side=64, long_side=128, canvas_ratios=(1.25,))
    wide = view_of((40, 50), data, window=Window(0, 0, 10, 50))  # 1:5, of an image of 4:5
    assert wide.canvas == (64, 96)
    assert wide.hw == (19, 96)


def test_canvases():
    data = Data()
    assert canvas_hw((480, 640), data) == (800, 1344)
    assert canvas_hw((640, 480), data) == (1344, 800)
    assert canvas_hw((500, 500), data) == (1344, 800)


def test_boxes_are_scaled_clipped_and_mirrored():
    view = View((10, 20), (20, 40), (32, 64))
    boxes = np.array([[1.0, 2, 3, 4], [-5, -5, 100, 100]])
    np.testing.assert_array_equal(view.boxes(boxes), [[2, 4, 8, 12], [0, 0, 40, 20]])
    mirrored = dataclasses.replace(view, flip=True)
    np.testing.assert_array_equal(mirrored.boxes(boxes), [[32, 4, 38, 12], [0, 0, 40, 20]])


def test_the_image_lies_top_left_and_mirrors_in_itself():
    image = np.random.default_rng(0).integers(1, 256, (4, 6, 3), dtype=np.uint8)
    view = View((4, 6), (4, 6), (8, 8))
    canvas = view.image(image)
    np.testing.assert_array_equal(canvas[:4, :6], image)
    assert not canvas[4:].any()
    assert not canvas[:, 6:].any()
    np.testing.assert_array_equal(dataclasses.replace(view, flip=True).image(image)[:4, :6], image[:, ::-1])


def _record(annotations: list[Annotation], hw: tuple[int, int] = (20, 30)) -> Record:
    return Record(0, 7, "a.png", np.zeros((*hw, 3), np.uint8), tuple(annotations))


def _square(number: int, **changes) -> Annotation:
    polygon = [[2.0, 3, 12, 3, 12, 11, 2, 11]]
    return dataclasses.replace(Annotation(number, 1, (2.0, 3.0, 10.0, 8.0), 80.0, False, False, polygon), **changes)


DATA = Data(short_side=40, long_side=60, pad_multiple=8, max_boxes=3, mask_size=28)


def test_targets_by_hand():
    record = _record([_square(1)])
    targets = target_arrays(record, view_of((20, 30), DATA), DATA)
    np.testing.assert_array_equal(targets["boxes"][0], [4, 6, 24, 22])
    np.testing.assert_array_equal(targets["valid"], [True, False, False])
    np.testing.assert_array_equal(targets["labels"], [1, 0, 0])
    expected = np.zeros((28, 28), np.uint8)
    expected[1:17, 1:21] = 1
    np.testing.assert_array_equal(targets["masks"][0], expected)
    np.testing.assert_array_equal(targets["frames"][0], [3, 5, 31, 33])
    assert targets["dropped"] == 0
    assert (targets["frames"][:, 2:] > targets["frames"][:, :2]).all()


def test_whole_masks_cover_the_canvas():
    data = dataclasses.replace(DATA, whole_masks=True)
    targets = target_arrays(_record([_square(1)]), view_of((20, 30), data, flip=True), data)
    expected = np.zeros((40, 64), np.uint8)
    expected[6:22, 36:56] = 1
    np.testing.assert_array_equal(targets["masks"][0], expected)
    np.testing.assert_array_equal(targets["frames"][0], [0, 0, 64, 40])


def test_crop_and_whole_mask_are_the_same_pixels():
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:10] = np.random.default_rng(0).integers(0, 2, (6, 6))
    for flip in (False, True):
        view = view_of((20, 30), DATA, flip)
        whole = view.mask(mask)
        bitmap, frame = view.cropped_mask(mask, 28)
        padded = np.pad(whole, 28)
        x1, y1, x2, y2 = (frame + 28).astype(int)
        np.testing.assert_array_equal(padded[y1:y2, x1:x2], bitmap)


@pytest.mark.parametrize("hw", [(7, 11), (31, 17), (40, 60)])
@pytest.mark.parametrize("flip", [False, True])
def test_cropping_before_the_resize_changes_nothing(hw, flip):
    rng = np.random.default_rng(hw[0])
    for _ in range(20):
        mask = np.zeros(hw, np.uint8)
        top, left = rng.integers(0, hw[0]), rng.integers(0, hw[1])
        part = mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)]
        part[:] = rng.integers(0, 2, part.shape)
        view = view_of(hw, DATA, flip)
        bitmap, frame = view.cropped_mask(mask, 28)
        expected, expected_frame = crop_mask(resize_mask(mask, view.hw), 28)
        np.testing.assert_array_equal(bitmap, expected[:, ::-1] if flip else expected)
        if expected.any():
            np.testing.assert_array_equal(frame, view.mirrored(expected_frame))


def _drawn(polygons, view: View) -> np.ndarray:
    """Polygons on the canvas by pycocotools, the plain way."""
    moved = [points * view.scale[::-1] + view.offset[::-1] for points in polygons]
    whole = np.zeros(view.canvas, np.uint8)
    for points in moved:
        whole |= coco_mask.decode(coco_mask.frPyObjects([points.ravel()], *view.canvas)[0])
    return whole[:, : view.hw[1]][:, ::-1] if view.flip else whole


def _polygons(rng: np.random.Generator, least: float, most: float) -> list[np.ndarray]:
    """Two of them, of which one may lie in the other, or both apart."""
    return [rng.integers(2 * least, 2 * most, (points, 2)) / 2 for points in rng.integers(3, 9, 2)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (-11, 6)])
def test_polygons_that_fit_are_drawn_pixel_for_pixel_at_the_scale_of_the_view(flip, offset):
    view = View((20, 30), (40, 60), (48, 72), flip, offset, (40, 60))
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygons = _polygons(rng, 8, 20)
        bitmap, frame = view.cropped_polygons(polygons, 28)
        expected = _drawn(polygons, view)
        expected[max(40 + offset[0], 0) :] = 0  # beyond the image, though not beyond the view
        x1, y1, x2, y2 = (frame + 28).astype(int)
        assert (frame == (x1 - 28, y1 - 28, x1, y1)).all()
        np.testing.assert_array_equal(np.pad(expected, 28)[y1:y2, x1:x2], bitmap)
        assert bitmap.sum() == expected.sum()


def test_larger_polygons_are_drawn_in_larger_cells():
    view = View((200, 100), (400, 200), (400, 200))
    square = np.array([[10.0, 20], [70, 20], [70, 140], [10, 140]])
    bitmap, frame = view.cropped_polygons([square], 32)
    np.testing.assert_allclose(frame, [20 - 4, 40 - 8, 20 + 31 * 4, 40 + 31 * 8])  # of 30 x 30 cells, 4 x 8 pixels each
    expected = np.zeros((32, 32), np.uint8)
    expected[1:31, 1:31] = 1
    np.testing.assert_array_equal(bitmap, expected)


def test_polygons_of_an_image_made_smaller_have_cells_of_stored_pixels():
    view = View((200, 200), (50, 100), (64, 128))
    square = np.array([[10.0, 20], [20, 20], [20, 28], [10, 28]])
    bitmap, frame = view.cropped_polygons([square], 28)
    np.testing.assert_allclose(frame, [4.5, 4.75, 18.5, 11.75])
    assert bitmap.sum() == bitmap[1:9, 1:11].sum() == 80


def test_polygons_of_which_nothing_is_seen_are_an_empty_bitmap_with_a_frame():
    view = View((20, 30), (40, 60), (48, 72), offset=(-39, 0), seen_hw=(40, 60))
    bitmap, frame = view.cropped_polygons([np.array([[2.0, 3], [12, 3], [12, 11]])], 28)
    assert not bitmap.any()
    assert (frame[2:] > frame[:2]).all()


def test_outlines_that_are_long_in_a_view_are_drawn_in_the_image(monkeypatch):
    view = View((20, 30), (4000, 6000), (64, 64), offset=(-2000, -2000), seen_hw=(64, 64))
    comb = np.array([[x, y] for x in range(2, 28) for y in ((2, 18), (18, 2))[x % 2]], np.float64)
    assert crop_polygons([comb * 2000], ((0, 64), (0, 64)), (1.0, 1.0), 28) is None
    monkeypatch.setattr("jaxdet.data.masks.MAX_OUTLINE", 1000)
    np.testing.assert_array_equal(
        view.cropped_polygons([comb], 28)[0], view.cropped_mask(decode_mask([comb.ravel().tolist()], (20, 30)), 28)[0]
    )


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_of_an_image_made_smaller_keeps_the_stored_pixels(flip):
    mask = np.zeros((100, 128), np.uint8)
    mask[11:18, 30:41] = np.random.default_rng(1).integers(0, 2, (7, 11))
    mask[11, 30] = mask[17, 40] = 1
    view = view_of(mask.shape, DATA, flip)
    bitmap, frame = view.cropped_mask(mask, 28)
    expected = mask[11:18, 30:41]
    if flip:
        np.testing.assert_array_equal(bitmap[1:8, -12:-1], expected[:, ::-1])
    else:
        np.testing.assert_array_equal(bitmap[1:8, 1:12], expected)
    assert bitmap.sum() == expected.sum()
    scale_y, scale_x = view.scale
    x1, x2 = 29 * scale_x, 57 * scale_x
    wanted = (
        [view.hw[1] - x2, 10 * scale_y, view.hw[1] - x1, 38 * scale_y] if flip else [x1, 10 * scale_y, x2, 38 * scale_y]
    )
    np.testing.assert_allclose(frame, wanted, rtol=1e-5)


def test_a_box_that_clipping_leaves_without_width_is_not_trained_on():
    # In float64 it reaches into the image; in the float32 of a batch both sides are the border.
    sliver = dataclasses.replace(_square(1), bbox=(29.9999999, 5.0, 10.0, 10.0))
    targets = target_arrays(_record([sliver, _square(2)]), view_of((20, 30), DATA), DATA)
    np.testing.assert_array_equal(targets["valid"], [True, False, False])
    sides = targets["boxes"][:, 2:] - targets["boxes"][:, :2]
    assert (sides[targets["valid"]] > 0).all()


def test_without_masks_none_are_read():
    data = dataclasses.replace(DATA, masks=False)
    targets = target_arrays(_record([_square(1, segmentation=None)]), view_of((20, 30), data), data)
    assert targets["masks"].shape == (3, 0, 0)
    assert targets["valid"][0]


def test_crowds_come_last_and_carry_no_bitmap():
    record = _record([_square(1, crowd=True, segmentation=None), _square(2, label=4)])
    targets = target_arrays(record, view_of((20, 30), DATA), DATA)
    np.testing.assert_array_equal(targets["crowd"], [False, True, False])
    np.testing.assert_array_equal(targets["labels"], [4, 1, 0])
    assert not targets["masks"][1].any()


def test_the_unusable_is_left_out_and_what_has_no_slot_is_counted():
    unusable = [
        _square(10, ignore=True),
        _square(11, area=0.0),
        _square(12, bbox=(2.0, 3.0, 0.5, 9.0)),
        _square(13, bbox=(31.0, 3.0, 5.0, 9.0)),
    ]
    record = _record([*unusable, *(_square(n, label=n) for n in range(5))])
    targets = target_arrays(record, view_of((20, 30), DATA), DATA)
    np.testing.assert_array_equal(targets["labels"], [0, 1, 2])
    assert targets["dropped"] == 2


def test_a_mask_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"annotation 5 of image a\.png: segmentation"):
        target_arrays(_record([_square(5, segmentation=[[1.0, 2.0]])]), view_of((20, 30), DATA), DATA)


def test_image_arrays_map_back():
    image = np.zeros((20, 30, 3), np.uint8)
    arrays = image_arrays(image, view_of((20, 30), DATA), 4)
    np.testing.assert_array_equal(arrays["true_hw"] / arrays["scale"], arrays["original_hw"])
    assert arrays["index"] == 4
    assert {key: value.dtype.name for key, value in arrays.items()} == {
        "image": "uint8",
        "true_hw": "float32",
        "scale": "float32",
        "original_hw": "int32",
        "index": "int32",
        "valid": "bool",
    }
