import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxdet.data.masks import crop_mask, decode_mask, read_counts, resize_mask

HW = (6, 8)
SQUARE = np.zeros(HW, np.uint8)
SQUARE[1:4, 2:7] = 1
# Column by column: two columns and one pixel of zeros, then 3 ones and 3 zeros five times, and a column of zeros.
SQUARE_RUNS = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]


def test_hand_counted_runs():
    np.testing.assert_array_equal(decode_mask({"size": list(HW), "counts": SQUARE_RUNS}, HW), SQUARE)


def test_polygon_of_pixel_borders_covers_those_pixels():
    np.testing.assert_array_equal(decode_mask([[2, 1, 7, 1, 7, 4, 2, 4]], HW), SQUARE)


def test_several_polygons_are_one_mask():
    left, right = [[2, 1, 4, 1, 4, 4, 2, 4]], [[4, 1, 7, 1, 7, 4, 4, 4]]
    np.testing.assert_array_equal(decode_mask(left + right, HW), SQUARE)


@pytest.mark.parametrize("text", [str, bytes])
def test_compressed_runs(text):
    counts = coco_mask.encode(np.asfortranarray(SQUARE))["counts"]
    counts = counts.decode() if text is str else counts
    np.testing.assert_array_equal(decode_mask({"size": list(HW), "counts": counts}, HW), SQUARE)


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (300, 200), (1000, 1)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_run_length_strings_are_read_as_pycocotools_writes_them(shape, density):
    mask = (np.random.default_rng(1).random(shape) < density).astype(np.uint8)
    runs = np.array(read_counts(coco_mask.encode(np.asfortranarray(mask))["counts"]))
    assert runs.sum() == mask.size
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(flat, mask.ravel(order="F"))


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        {},
        "text",
        7,
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [["a", "b", "c", "d", "e", "f"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, None]],
        [1, 2, 3, 4, 5, 6],
        [[[1, 2], [3, 4], [5, 6]]],
        {"size": [6, 8]},
        {"size": [6, 8], "counts": None},
        {"size": [6, 8], "counts": [48.0]},
        {"size": [6, 8], "counts": [10, 10]},
        {"size": [6, 8], "counts": [-2, 50]},
        {"size": [6, 8], "counts": [100]},
        {"size": [8, 6], "counts": SQUARE_RUNS},
        {"size": None, "counts": SQUARE_RUNS},
        {"size": [6, 8], "counts": ""},
        {"size": [6, 8], "counts": "11"},
        {"size": [6, 8], "counts": "\xff\xff"},
        {"size": [6, 8], "counts": "1P"},
        {"size": [6, 8], "counts": "o" * 50},
        {"size": [6, 8], "counts": "0" + "o3" * 50},
    ],
)
def test_hostile_segmentations_are_refused(segmentation):
    with pytest.raises(ValueError, match="segmentation: "):
        decode_mask(segmentation, HW)


def test_degenerate_polygons_beside_a_good_one_count_for_nothing():
    np.testing.assert_array_equal(decode_mask([[1, 1], [0, 0, 9, 9], [2, 1, 7, 1, 7, 4, 2, 4]], HW), SQUARE)


def test_resize_takes_the_pixel_at_the_scaled_corner():
    mask = np.random.default_rng(0).integers(0, 2, (7, 11)).astype(np.uint8)
    for hw in ((14, 22), (5, 30), (3, 4), (7, 11)):
        rows = np.arange(hw[0]) * 7 // hw[0]
        columns = np.arange(hw[1]) * 11 // hw[1]
        np.testing.assert_array_equal(resize_mask(mask, hw), mask[np.ix_(rows, columns)])


def test_small_masks_travel_pixel_for_pixel():
    bitmap, frame = crop_mask(SQUARE, 8)
    expected = np.zeros((8, 8), np.uint8)
    expected[1:4, 1:6] = 1
    np.testing.assert_array_equal(bitmap, expected)
    np.testing.assert_array_equal(frame, [1, 0, 9, 8])


def test_large_masks_are_averaged_inside_a_ring_of_zeros():
    mask = np.zeros((50, 40), np.uint8)
    mask[10:30, 5:25] = 1
    mask[10:20, 15:25] = 0
    bitmap, frame = crop_mask(mask, 12)
    expected = np.zeros((12, 12), np.uint8)
    expected[1:11, 1:11] = 1
    expected[1:6, 6:11] = 0
    np.testing.assert_array_equal(bitmap, expected)
    np.testing.assert_array_equal(frame, [3, 8, 27, 32])


def test_each_axis_has_its_own_scale():
    mask = np.zeros((50, 40), np.uint8)
    mask[:40, 7] = 1
    bitmap, frame = crop_mask(mask, 12)
    assert bitmap[1:11, 1].all()
    assert bitmap.sum() == 10
    np.testing.assert_array_equal(frame, [6, -4, 18, 44])


def test_an_empty_mask_has_a_frame_that_can_be_divided_by():
    bitmap, frame = crop_mask(np.zeros((5, 5), np.uint8), 6)
    assert not bitmap.any()
    np.testing.assert_array_equal(frame, [0, 0, 6, 6])
