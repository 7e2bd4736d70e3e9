import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxdet.evaluation.inference import for_host
from jaxdet.evaluation.paste import LOGIT_RANGE, paste_mask, paste_masks, paste_rle, snapped
from jaxdet.structures import Detections, Masks
from tests.modules import module_at

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def oracle(probabilities: np.ndarray, box: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """One pixel at a time, in float64, by the definition of bilinear interpolation with zeros outside."""
    rows, columns = probabilities.shape
    x1, y1, x2, y2 = (float(side) for side in box)
    values = np.zeros(hw)
    for y in range(hw[0]):
        for x in range(hw[1]):
            v = (y + 0.5 - y1) / (y2 - y1) * rows - 0.5
            u = (x + 0.5 - x1) / (x2 - x1) * columns - 0.5
            for i in range(rows):
                for j in range(columns):
                    values[y, x] += probabilities[i, j] * max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
    return values


def decode(rle: Any) -> np.ndarray:
    return coco_mask.decode(rle).astype(bool)


def encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_constant_map_fills_the_pixels_whose_centres_are_half_a_cell_inside() -> None:
    # map of 2 cells on 4 pixels: a cell is 2 pixels; outside the outermost cell centres the value falls to 0
    # half a cell beyond the box's side, and is 1/2 exactly on the side
    mask = paste_mask(np.ones((2, 2), np.float32), np.asarray([2.0, 1.0, 6.0, 5.0], np.float32), (7, 9))
    # pixel centres 2.5, 5.5 of x are 0.5 px = 1/4 cell inside the side: value 3/4 in x; corners 9/16: inside
    expected = np.zeros((7, 9), bool)
    expected[1:5, 2:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_corner_of_a_constant_map_is_rounded_off() -> None:
    # box 8 px, 2 cells of 4 px: the corner pixel is 1/8 cell inside: (5/8)^2 = 0.39 < 1/2; its neighbour along the
    # side is 3/8 inside: 5/8 * 7/8 = 0.55
    mask = paste_mask(np.ones((2, 2), np.float32), np.asarray([0.0, 0.0, 8.0, 8.0], np.float32), (8, 8))
    assert not mask[0, 0]
    assert mask[0, 1]
    assert mask[1, 0]
    assert mask.sum() == 60


def test_exactly_the_threshold_is_inside() -> None:
    assert paste_mask(np.full((4, 4), 0.5, np.float32), np.asarray([-4.0, -4.0, 8.0, 8.0]), (4, 4)).all()


def test_one_cell_map_and_other_threshold() -> None:
    box = np.asarray([1.0, 1.0, 2.0, 2.0])
    assert paste_mask(np.ones((1, 1)), box, (3, 3), threshold=1.0).sum() == 1


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_slow_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    hw = (int(random.integers(5, 30)), int(random.integers(5, 30)))
    corner = random.uniform(-10, 20, 2)
    box = np.concatenate([corner, corner + random.uniform(0.3, 40, 2)]).astype(np.float32)
    probabilities = random.uniform(0, 1, (7, 5)).astype(np.float32)
    values = oracle(probabilities, box, hw)
    clear = np.abs(values - 0.5) > 1e-4
    assert clear.mean() > 0.99
    mask = paste_mask(probabilities, box, hw)
    np.testing.assert_array_equal(mask[clear], (values >= 0.5)[clear])


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_byte_for_byte_those_of_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    hw = (17, 13)
    boxes = random.uniform(-8, 18, (20, 4))
    boxes[:, 2:] = boxes[:, :2] + random.uniform(0, 30, (20, 2))
    boxes[0] = [-50, -50, 100, 100]  # everything inside, if the map is
    probabilities = random.uniform(0, 1, (20, 6, 6))
    probabilities[0] = 1
    for rle, each, box in zip(paste_masks(Masks(probabilities, boxes), hw), probabilities, boxes, strict=True):
        mask = paste_mask(each, box, hw)
        assert rle["size"] == [17, 13]
        assert rle["counts"] == encode(mask)
        np.testing.assert_array_equal(decode(rle), mask)


def test_runs_join_from_column_to_column() -> None:
    box = np.asarray([1.0, -30.0, 3.0, 40.0])  # far above and below: columns 1 and 2 are full, one run
    rle = paste_rle(np.ones((3, 3)), box, (10, 6))
    assert rle["counts"] == encode(np.repeat([[False, True, True, False, False, False]], 10, axis=0))


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 9),
        (5, 5, 9, 5),
        (5, 5, 5, 5),
        (9, 9, 5, 5),
        (np.nan, 1, 5, 5),
        (1, 1, np.inf, 5),
        (-np.inf, -np.inf, np.inf, np.inf),
        (-3e38, 0, 3e38, 9),
        (50, 50, 60, 60),
        (-60, -60, -50, -50),
        (1e30, 1e30, 2e30, 2e30),
    ],
)
def test_box_without_pixels_gives_an_empty_mask(box: tuple[float, ...]) -> None:
    ones = np.ones((28, 28), np.float32)
    assert not paste_mask(ones, np.asarray(box), (20, 30)).any()
    assert paste_rle(ones, np.asarray(box), (20, 30))["counts"] == encode(np.zeros((20, 30)))


def test_huge_box_shows_the_middle_of_the_map() -> None:
    ones = np.ones((28, 28), np.float32)
    assert paste_mask(ones, np.asarray([-1e9, -1e9, 1e9, 1e9]), (20, 30)).all()


def test_probabilities_that_are_not_numbers_are_outside() -> None:
    assert not paste_mask(np.full((4, 4), np.nan), np.asarray([0.0, 0.0, 5.0, 5.0]), (6, 6)).any()


def test_no_instances() -> None:
    assert paste_masks(Masks(np.zeros((0, 28, 28)), np.zeros((0, 4))), (5, 5)) == []


def test_image_sized_masks_are_never_made() -> None:
    probabilities, boxes = np.ones((50, 28, 28), np.float32), np.tile([100.0, 100.0, 140.0, 130.0], (50, 1))
    tracemalloc.start()
    paste_masks(Masks(probabilities, boxes), (8000, 8000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # one mask of the image alone would be 64 MB


@pytest.mark.parametrize(
    ("probabilities", "box", "hw"),
    [((1, 28, 28), (4,), (5, 5)), ((28, 28), (1, 4), (5, 5)), ((28, 28), (4,), (0, 5)), ((0, 28), (4,), (5, 5))],
)
def test_wrong_shapes_are_named(probabilities: tuple[int, ...], box: tuple[int, ...], hw: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        paste_mask(np.zeros(probabilities), np.ones(box), hw)


def test_unequal_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 masks, 3 frames"):
        paste_masks(Masks(np.zeros((2, 4, 4)), np.zeros((3, 4))), (5, 5))


def canvas_oracle(values: np.ndarray, frame: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """torch's ``interpolate(mode="bilinear", align_corners=False)`` of a map onto its frame, one pixel at a time.

    Beyond the outermost centres the nearest value counts.
    """
    rows, columns = values.shape
    x1, y1, x2, y2 = (float(side) for side in frame)
    out = np.zeros(hw)
    for y, x in np.ndindex(hw):
        v = min(max((y + 0.5 - y1) / (y2 - y1) * rows - 0.5, 0.0), rows - 1.0)
        u = min(max((x + 0.5 - x1) / (x2 - x1) * columns - 0.5, 0.0), columns - 1.0)
        top, left = int(v), int(u)
        bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        above = values[top, left] * (1 - (u - left)) + values[top, right] * (u - left)
        below = values[bottom, left] * (1 - (u - left)) + values[bottom, right] * (u - left)
        out[y, x] = above * (1 - (v - top)) + below * (v - top)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_of_the_canvas_is_interpolated_and_cut(seed: int) -> None:
    """The map covers a canvas of 24 x 32 pixels, the image is what of it is no padding."""
    random = np.random.default_rng(seed)
    hw, frame = (21, 27), np.float32([0, 0, 32, 24])
    values = random.uniform(0, 1, (6, 8)).astype(np.float32)
    corner = random.uniform(-5, 15, 2)
    crop = np.concatenate([corner, corner + random.uniform(5, 25, 2)]).astype(np.float32)
    found = paste_mask(values, frame, hw, 0.4, crop)
    expected = canvas_oracle(values, frame, hw)
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    inside = (x >= crop[0]) & (x < crop[2]) & (y >= crop[1]) & (y < crop[3])
    clear = np.abs(expected - 0.4) > 1e-5
    np.testing.assert_array_equal(found[clear], ((expected >= 0.4) & inside)[clear])
    assert found.any()
    assert not found[~inside].any()
    np.testing.assert_array_equal(decode(paste_rle(values, frame, hw, 0.4, crop)), found)


def test_a_crop_of_the_whole_canvas_keeps_the_edge() -> None:
    """Without a crop the frame is where the mask ends: its corners are rounded off."""
    ones, frame = np.ones((2, 2), np.float32), np.float32([0, 0, 8, 8])
    assert paste_mask(ones, frame, (8, 8), crop=frame).all()
    assert not paste_mask(ones, frame, (8, 8)).all()


@pytest.mark.parametrize(
    ("crop", "columns"),
    [((2.5, 0, 5.5, 8), [2, 3, 4]), ((2.6, 0, 5.6, 8), [3, 4, 5]), ((2.4, 0, 2.6, 8), [2]), ((2.6, 0, 3.4, 8), [])],
)
def test_a_pixel_belongs_to_the_crop_that_holds_its_centre(crop: tuple[float, ...], columns: list[int]) -> None:
    """On the left side too, on the right side no more."""
    ones, frame = np.ones((2, 2), np.float32), np.float32([0, 0, 8, 8])
    for box in (np.float32(crop), np.float64(crop)):
        mask = paste_mask(ones, frame, (8, 8), crop=box)
        np.testing.assert_array_equal(np.flatnonzero(mask.any(0)), columns)
        np.testing.assert_array_equal(mask.any(1), bool(columns))
        turned = paste_mask(ones, frame, (8, 8), crop=box[[1, 0, 3, 2]])
        np.testing.assert_array_equal(turned, mask.T)


@pytest.mark.parametrize(
    "crop", [(5, 5, 5, 9), (9, 9, 5, 5), (np.nan, 1, 5, 5), (1, 1, np.inf, 5), (50, 50, 60, 60), (-9, -9, -1, -1)]
)
def test_a_crop_without_pixels_gives_an_empty_mask(crop: tuple[float, ...]) -> None:
    ones, frame = np.ones((4, 4), np.float32), np.float32([0, 0, 30, 20])
    assert not paste_mask(ones, frame, (20, 30), crop=np.asarray(crop)).any()


def test_a_huge_crop_cuts_nothing() -> None:
    ones, frame = np.ones((4, 4), np.float32), np.float32([0, 0, 30, 20])
    assert paste_mask(ones, frame, (20, 30), crop=np.asarray([-1e30, -1e30, 1e30, 1e30])).all()


@pytest.mark.parametrize("crop", [None, np.float32([3, 2, 20, 17])])
def test_eight_bits_say_the_same_but_near_the_threshold(crop: np.ndarray | None) -> None:
    random = np.random.default_rng(0)
    values, frame, hw = random.uniform(0, 1, (6, 8)).astype(np.float32), np.float32([0, 0, 32, 24]), (24, 32)
    coarse = np.round(values * 255).astype(np.uint8)
    fine, found = paste_mask(values, frame, hw, 0.4, crop), paste_mask(coarse, frame, hw, 0.4, crop)
    np.testing.assert_array_equal(found, paste_mask(coarse / np.float32(255), frame, hw, 0.4, crop))
    exact = canvas_oracle(values, frame, hw) if crop is not None else oracle(values, frame, hw)
    clear = np.abs(exact - 0.4) > 1 / 510
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], fine[clear])
    half = np.full((2, 2), 128, np.uint8)  # what one half becomes
    assert paste_mask(half, np.float32([-9, -9, 18, 18]), (4, 4)).all()
    assert not paste_mask(half - 1, np.float32([-9, -9, 18, 18]), (4, 4)).any()


def test_masks_bring_their_threshold_and_their_crops() -> None:
    values = np.stack([np.full((4, 4), 0.45), np.full((4, 4), 0.55)]).astype(np.float32)
    frames = np.tile(np.float32([0, 0, 9, 9]), (2, 1))
    crops = np.float32([[1, 1, 4, 4], [2, 2, 4, 4]])

    def areas(**settings: Any) -> list[int]:
        return [int(coco_mask.area(rle)) for rle in paste_masks(Masks(values, frames, crops, **settings), (9, 9))]

    assert areas() == [0, 4]
    assert areas(threshold=0.4) == [9, 4]
    assert areas(threshold=0.6) == [0, 0]


@pytest.mark.parametrize("crop", [(1, 4), (3,)])
def test_a_wrong_crop_is_named(crop: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a box \[4\]"):
        paste_mask(np.ones((4, 4)), np.ones(4), (5, 5), crop=np.ones(crop))


def test_golden() -> None:
    path = REFERENCE / "golden" / "golden_ops.npz"
    if not path.exists():
        pytest.skip(f"the reference's numbers are not here: {path}")
    golden = np.load(path)
    hw = (200, 248)
    logits = _recipe().normal("ops/paste", (12, 1, 28, 28))[:, 0]
    probabilities = 1 / (1 + np.exp(-2 * logits))
    pairs = zip(probabilities, golden["paste/boxes"], strict=True)
    masks = np.stack([paste_mask(each, box, hw) for each, box in pairs])
    expected = np.unpackbits(golden["paste/bin_packbits"])[: masks.size].reshape(masks.shape).astype(bool)
    np.testing.assert_array_equal(masks, expected)
    np.testing.assert_array_equal(masks.sum((1, 2)), golden["paste/area"])


def _recipe() -> Any:
    return module_at(REFERENCE / "recipe.py")


# Masks that are logits.


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(2))
def test_logits_are_interpolated_before_the_sigmoid(seed: int, threshold: float) -> None:
    """By OpenCV, and otherwise than probabilities would be."""
    logits, hw = np.random.default_rng(seed).normal(0, 6, (6, 8)).astype(np.float32), (37, 53)
    frame = np.float32([0, 0, 53, 37])
    found = paste_mask(logits, frame, hw, threshold, frame, logits=True)
    values = sigmoid(cv2.resize(logits, hw[::-1], interpolation=cv2.INTER_LINEAR))
    clear = np.abs(values - threshold) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], (values >= threshold)[clear])
    others = paste_mask(sigmoid(logits).astype(np.float32), frame, hw, threshold, frame)
    assert (found != others).mean() > 0.01
    cut = np.float32([10, 5, 30, 20])
    inside = np.zeros(hw, bool)
    inside[5:20, 10:30] = True
    np.testing.assert_array_equal(paste_mask(logits, frame, hw, threshold, cut, logits=True), found & inside)
    rle = paste_rle(logits, frame, hw, threshold, cut, logits=True)
    np.testing.assert_array_equal(decode(rle), found & inside)


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.5, 0.8])
def test_a_constant_logit_at_the_threshold_is_inside(threshold: float) -> None:
    frame, exact = np.float32([0, 0, 8, 8]), np.log(threshold / (1 - threshold))
    for step, inside in ((0.0, True), (1e-3, True), (-1e-3, False)):
        values = np.full((2, 2), exact + step, np.float32)
        if step or threshold == 0.5:  # float32 may round the exact one to either side
            assert paste_mask(values, frame, (8, 8), threshold, frame, logits=True).all() == inside
    assert not paste_mask(np.full((2, 2), np.nan, np.float32), frame, (8, 8), threshold, frame, logits=True).any()
    assert paste_mask(np.full((2, 2), np.inf, np.float32), frame, (8, 8), threshold, frame, logits=True).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 1.5])
def test_a_threshold_that_is_no_probability_of_a_logit_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold of logits: expected more than 0 and less than 1, got"):
        paste_mask(np.zeros((2, 2)), np.float32([0, 0, 4, 4]), (4, 4), threshold, logits=True)


@pytest.mark.parametrize("threshold", [0.4, 0.5])
def test_logits_in_eight_bits_say_the_same_but_near_the_threshold(threshold: float) -> None:
    """Half a step of 255 over the range is 0.031 of a logit."""
    logits, hw = np.random.default_rng(2).normal(0, 6, (80, 70)).astype(np.float32), (80, 70)
    assert np.abs(logits).max() > LOGIT_RANGE
    frames = np.float32([[[0, 0, 70, 80]]])
    one = np.ones((1, 1))
    masks = Masks(logits[None, None], frames, frames, threshold, logits=True)
    sent = for_host(Detections(frames, one, one.astype(int), one > 0, one.astype(int), masks)).masks
    assert sent is not None
    assert (sent.values.dtype, sent.logits, sent.threshold) == (np.uint8, True, threshold)
    coarse = np.asarray(sent.values[0, 0])
    assert (coarse.min(), coarse.max()) == (0, 255)
    assert (coarse[logits > LOGIT_RANGE] == 255).all()
    found, fine = (paste_mask(x, frames[0, 0], hw, threshold, frames[0, 0], True) for x in (coarse, logits))
    clear = np.abs(logits - np.log(threshold / (1 - threshold))) > LOGIT_RANGE / 255 + 1e-4
    assert 0.98 < clear.mean() < 1
    np.testing.assert_array_equal(found[clear], fine[clear])
    together = paste_masks(jax.tree.map(lambda leaf: np.asarray(leaf)[0], sent), hw)
    np.testing.assert_array_equal(decode(together[0]), found)


def test_frames_of_whole_pixels_by_hand() -> None:
    """Two cells and their ring, of the box 1.3..5.3: 4 pixels become 8 around the centre 3.3, from -0.7 to 7.3.

    Cut to whole pixels they are 0 to 7, of which the last one counts: 8 pixels, a cell has two, the ring two each.
    """
    frame = np.float32([1.3, 1.3, 5.3, 5.3])
    np.testing.assert_array_equal(snapped(frame, (2, 2)), [2, 2, 6, 6])
    ones = np.ones((1, 2, 2), np.float32)
    found = decode(paste_masks(Masks(ones, frame[None], snapped=True), (8, 8))[0])
    assert found[2:6, 2:6].all()
    # Beyond the cells' outer centres values fall to those of the ring: 0.75 and 0.25 at the two pixels on either side.
    assert found.sum() == 16
    np.testing.assert_array_equal(snapped(np.zeros((0, 4), np.float32), (2, 2)), np.zeros((0, 4)))
    # A frame without extent has one pixel, as there.
    np.testing.assert_array_equal(snapped(np.float32([[3, 3, 3, 3]]), (2, 2)), [[3.25, 3.25, 3.75, 3.75]])
