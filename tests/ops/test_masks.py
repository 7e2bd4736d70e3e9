from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.masks import crop_mask
from jaxdet.ops.losses import mask_iou
from jaxdet.ops.masks import instance_share, mask_iou_targets, mask_targets
from jaxdet.structures import Masks
from tests.ops import oracles
from tests.ops.golden import INPUTS, OPS, normal

targets_of = jax.jit(mask_targets, static_argnames="size")
share_of = jax.jit(instance_share)
ious_of = jax.jit(mask_iou_targets)


def whole(masks: np.ndarray) -> np.ndarray:
    """Frames of bitmaps ``[G, h, w]`` that are the whole canvas."""
    return np.tile(np.float32([0, 0, masks.shape[2], masks.shape[1]]), (len(masks), 1))


def one_image(
    masks: np.ndarray, frames: np.ndarray, boxes: np.ndarray, index: np.ndarray, size: int, invalid: int = 0
) -> np.ndarray:
    """Targets of one image, of whose boxes the last few are invalid."""
    valid = np.arange(len(boxes)) < len(boxes) - invalid
    given = Masks(masks.astype(np.uint8)[None], np.float32(frames)[None])
    where = np.float32(boxes)[None], index.astype(np.int32)[None], valid[None]
    return np.asarray(targets_of(given, *where, size=size)[0])


def blobs(rng: np.random.Generator, number: int, hw: tuple[int, int]) -> np.ndarray:
    """Smooth random bitmaps: a coarse one, each pixel enlarged."""
    coarse = rng.integers(0, 2, (number, -(-hw[0] // 4), -(-hw[1] // 4)), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)[:, : hw[0], : hw[1]]


def test_a_half_full_box_by_hand() -> None:
    """The left half of the canvas is set; the box looks at its middle, so its left half is."""
    mask = np.zeros((1, 8, 8))
    mask[:, :, :4] = 1
    target = one_image(mask, whole(mask), np.array([[2, 2, 6, 6]]), np.zeros(1), 4)
    np.testing.assert_array_equal(target[0], [[1, 1, 0, 0]] * 4)


def test_exactly_one_half_counts_as_set() -> None:
    mask = np.zeros((1, 4, 4))
    mask[:, :, ::2] = 1
    assert one_image(mask, whole(mask), np.array([[0, 0, 4, 4]]), np.zeros(1), 2).all()


def test_frame_of_a_crop_maps_onto_the_box() -> None:
    """The bitmap covers x 10..18, y 20..24 with half-pixel cells; its upper left quarter is set."""
    mask, frame = np.zeros((1, 8, 16)), [[10, 20, 18, 24]]
    mask[:, :4, :8] = 1
    same = one_image(mask, frame, np.array(frame), np.zeros(1), 2)
    np.testing.assert_array_equal(same[0], [[1, 0], [0, 0]])
    wider = one_image(mask, frame, np.array([[6, 18, 14, 22]]), np.zeros(1), 2)
    np.testing.assert_array_equal(wider[0], [[0, 0], [0, 1]])


@pytest.mark.parametrize("seed", range(3))
def test_against_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks, boxes, index = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 10, 22.0), rng.integers(0, 3, 10)
    target = one_image(masks, whole(masks), boxes, index, 5)
    for i in range(10):
        share = oracles.roi_align(masks[index[i], :, :, None], boxes[i], 1.0, (5, 5), 0, True)[:, :, 0]
        certain = np.abs(share - 0.5) > 1e-5
        np.testing.assert_array_equal(target[i][certain], (share >= 0.5)[certain])
    assert 0.1 < target.mean() < 0.9, "a test of nothing"


def test_a_frame_moved_and_scaled_with_its_box_gives_the_same_target() -> None:
    rng = np.random.default_rng(3)
    masks, boxes, index = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 10, 22.0), rng.integers(0, 3, 10)
    expected = one_image(masks, whole(masks), boxes, index, 5)
    moved = np.float32([32, 64, 32, 64])  # exact in float32, as is the factor
    np.testing.assert_array_equal(one_image(masks, whole(masks) * 2 + moved, boxes * 2 + moved, index, 5), expected)


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_nothing(value: float) -> None:
    rng = np.random.default_rng(4)
    masks, boxes, index = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 10, 22.0), rng.integers(0, 3, 10)
    expected = one_image(masks, whole(masks), boxes, index, 5)
    more = [oracles.padded(a, 2, value) for a in (masks, whole(masks))]
    boxes, index = oracles.padded(boxes, 4, value), np.concatenate([index, [3, 4, 0, 0]])
    target = one_image(*more, boxes, index, 5, invalid=4)
    np.testing.assert_array_equal(target[:10], expected)
    np.testing.assert_array_equal(target[10:], 0.0)


@pytest.mark.parametrize("frame", [[0, 0, 0, 0], [5, 5, 5, 9], [np.nan] * 4, [0, 0, 1e-3, 1e-3]])
def test_hostile_frames_and_boxes_end_in_zeros_or_ones(frame: list[float]) -> None:
    mask = np.ones((1, 8, 8))
    boxes = np.array([[0, 0, 9, 9], [5, 5, 5, 5], [np.nan] * 4, [-1e6, 0, 1e6, 1], [9, 9, 1, 1]])
    target = one_image(mask, np.array([frame]), boxes, np.zeros(5), 5)
    assert np.isin(target, (0.0, 1.0)).all()
    np.testing.assert_array_equal(target[[1, 2, 4]], 0.0)


def test_a_batch_is_its_images() -> None:
    rng = np.random.default_rng(5)
    masks = np.stack([blobs(rng, 3, (20, 24)) for _ in range(2)])
    boxes = np.stack([oracles.random_boxes(rng, 10, 22.0) for _ in range(2)])
    index, valid = rng.integers(0, 3, (2, 10)).astype(np.int32), np.arange(10)[None] < [[7], [10]]
    frames = np.stack([whole(m) for m in masks])
    together = targets_of(Masks(masks, frames), boxes, index, valid, size=5)
    for b in range(2):
        np.testing.assert_array_equal(together[b], one_image(masks[b], frames[b], boxes[b], index[b], 5, (3, 0)[b]))
    mapped = jax.vmap(lambda *image: mask_targets(*jax.tree.map(lambda a: a[None], image), size=5)[0])
    np.testing.assert_array_equal(mapped(Masks(masks, frames), boxes, jnp.asarray(index), valid), together)


def golden_targets(masks: np.ndarray, frames: np.ndarray) -> np.ndarray:
    return one_image(masks, frames, INPUTS["fixed_proposals"][:80], np.arange(80) // 16, 28)


def expected_targets() -> np.ndarray:
    return np.unpackbits(OPS["mask_target/packbits28"])[: 80 * 28 * 28].reshape(80, 28, 28)


def test_golden_targets_from_whole_masks() -> None:
    target = golden_targets(INPUTS["gt_masks"], whole(INPUTS["gt_masks"]))
    different = (target != expected_targets()).mean()
    assert different < 1e-4, "more than a sample or two at exactly one half"
    np.testing.assert_allclose(target.sum((1, 2)), OPS["mask_target/sum"], atol=1)


def test_golden_targets_from_crops() -> None:
    """Bitmaps of 112 x 112 pixels inside each instance's box lose little."""
    frames = INPUTS["gt_boxes"]
    crops = [oracle_crop(m, f) for m, f in zip(INPUTS["gt_masks"], frames, strict=True)]
    target, expected = golden_targets(np.stack(crops), frames) > 0, expected_targets() > 0
    ious = (target & expected).sum((1, 2)) / (target | expected).sum((1, 2))
    assert ious.mean() > 0.98


def oracle_crop(mask: np.ndarray, frame: np.ndarray, size: int = 112) -> np.ndarray:
    """The nearest pixel of each cell's centre."""
    sample = partial(np.linspace, num=2 * size + 1)
    x, y = (sample(frame[a], frame[a + 2])[1::2].astype(int) for a in (0, 1))
    return mask[y[:, None], x[None]]


def shares(masks: np.ndarray, frames: np.ndarray, boxes: np.ndarray, index: np.ndarray, invalid: int = 0) -> np.ndarray:
    """Shares of one image, of whose boxes the last few are invalid."""
    valid = np.arange(len(boxes)) < len(boxes) - invalid
    given = Masks(masks.astype(np.uint8)[None], np.float32(frames)[None])
    return np.asarray(share_of(given, np.float32(boxes)[None], index.astype(np.int32)[None], valid[None])[0])


def slow_share(mask: np.ndarray, box: np.ndarray) -> float:
    """Pixels from the box's first to before its last, at least one along each axis."""
    (left, top), (right, bottom) = (np.clip(box[a : a + 2].astype(int), 0, mask.shape[::-1]) for a in (0, 2))
    inside = mask[top : max(bottom, top + 1), left : max(right, left + 1)]
    return inside.sum() / max(mask.sum(), 1)


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([0, 0, 8, 8], 32),
        ([2, 1, 6, 3], 4),
        ([2.9, 1.9, 6.9, 3.9], 4),  # corners are cut to pixels
        ([3.5, 2.5, 3.6, 2.6], 1),
        ([4.5, 2.5, 4.6, 2.6], 0),
        ([-3, -3, -1, -1], 1),  # clipped to the canvas, and one pixel at least
        ([3, 3, 1, 1], 1),
        ([0, 0, 1e6, 1e6], 32),
        ([9, 9, 12, 12], 0),
        ([np.nan] * 4, 0),
    ],
)
def test_share_of_the_left_half_of_a_canvas(box: list[float], pixels: int) -> None:
    mask = np.zeros((1, 8, 8))
    mask[:, :, :4] = 1
    np.testing.assert_allclose(shares(mask, whole(mask), np.array([box]), np.zeros(1)), pixels / 32, rtol=1e-6)


def test_share_against_the_oracle_from_canvases_and_from_crops() -> None:
    """Objects that fit their bitmaps lose nothing: the crop says what the canvas says."""
    rng = np.random.default_rng(0)
    masks, boxes, index = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 40, 22.0), rng.integers(0, 3, 40)
    expected = [slow_share(masks[g], box) for g, box in zip(index, boxes, strict=True)]
    np.testing.assert_allclose(shares(masks, whole(masks), boxes, index), expected, atol=1e-6)
    crops, frames = (np.stack(part) for part in zip(*(crop_mask(mask, 30) for mask in masks), strict=True))
    np.testing.assert_allclose(shares(crops, frames, boxes, index), expected, atol=1e-6)
    assert 0.02 < np.mean(expected) < 0.9, "a test of nothing"


def test_share_from_an_averaged_crop_is_close() -> None:
    """Bitmaps of 28 pixels for objects of 100: a side that cuts a cell takes its part, half a cell off at the most."""
    rng = np.random.default_rng(1)
    masks = blobs(rng, 3, (20, 24)).repeat(5, 1).repeat(5, 2)
    boxes, index = 5 * oracles.random_boxes(rng, 40, 22.0), rng.integers(0, 3, 40)
    expected = [slow_share(masks[g], box) for g, box in zip(index, boxes, strict=True)]
    crops, frames = (np.stack(part) for part in zip(*(crop_mask(mask, 28) for mask in masks), strict=True))
    error = np.abs(shares(crops, frames, boxes, index) - expected)
    assert error.max() < 0.03
    assert error.mean() < 0.01


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_no_share(value: float) -> None:
    rng = np.random.default_rng(2)
    masks, boxes, index = blobs(rng, 3, (20, 24)), oracles.random_boxes(rng, 10, 22.0), rng.integers(0, 3, 10)
    expected = shares(masks, whole(masks), boxes, index)
    more = [oracles.padded(a, 2, value) for a in (masks, whole(masks))]
    boxes, index = oracles.padded(boxes, 4, value), np.concatenate([index, [3, 4, 0, 0]])
    found = shares(*more, boxes, index, invalid=4)
    np.testing.assert_array_equal(found[:10], expected)
    np.testing.assert_array_equal(found[10:], 0.0)


def iou_of(predicted: list[list[float]], box: list[float], **options: float) -> float:
    """IoU target of a 2x2 mask inside ``box``, for an object that is the left half of an 8x8 canvas."""
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[:, :, :4] = 1
    where = Masks(mask[None], whole(mask)[None]), np.float32([[box]]), np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
    return float(ious_of(*where, np.float32([[predicted]]), targets_of(*where, size=2), **options)[0, 0])


def test_mask_iou_by_hand() -> None:
    """The whole canvas: target [[1, 0], [1, 0]]. The lower half: the target covers half of the object."""
    canvas, lower = [0, 0, 8, 8], [0, 4, 8, 8]
    assert iou_of([[9, -9], [9, -9]], canvas) == pytest.approx(1)
    assert iou_of([[9, 9], [9, 9]], canvas) == pytest.approx(1 / 2)
    assert iou_of([[9, -9], [-9, -9]], canvas) == pytest.approx(1 / 2)
    assert iou_of([[-9, 9], [-9, 9]], canvas) == 0
    assert iou_of([[9, -9], [9, -9]], lower) == pytest.approx(2 / 4)
    assert iou_of([[9, 9], [9, -9]], lower) == pytest.approx(2 / 5)
    assert iou_of([[9, 9], [9, 9]], [5, 0, 8, 8]) == 0  # misses the object: nothing to compare with
    assert iou_of([[-9, -9], [-9, -9]], [5, 0, 8, 8]) == 0


def test_mask_iou_cuts_logits_not_probabilities() -> None:
    assert iou_of([[0.4, -9], [9, -9]], [0, 0, 8, 8]) == pytest.approx(1 / 2)
    assert iou_of([[0.6, -9], [9, -9]], [0, 0, 8, 8]) == pytest.approx(1)
    assert iou_of([[0.4, -9], [9, -9]], [0, 0, 8, 8], threshold=0.0) == pytest.approx(1)


def golden_ious() -> tuple[np.ndarray, np.ndarray]:
    """Shares and IoU targets of the reference's 80 boxes, from whole canvases."""
    masks, boxes = INPUTS["gt_masks"], np.float32(INPUTS["fixed_proposals"][:80])
    index, valid = (np.arange(80) // 16).astype(np.int32), np.ones(80, bool)
    where = [Masks(masks[None], whole(masks)[None]), *(a[None] for a in (boxes, index, valid))]
    target = expected_targets().astype(np.float32)
    logits = np.float32(normal("ops/miou_pred", (80, 28, 28)) + 2 * (target - 0.5))
    return np.asarray(share_of(*where)[0]), np.asarray(ious_of(*where, logits[None], target[None])[0])


def test_golden_mask_ious_and_loss() -> None:
    share, target = golden_ious()
    np.testing.assert_allclose(share, OPS["maskiou/area_ratio"], atol=1e-6)
    np.testing.assert_allclose(target, OPS["maskiou/targets"], atol=1e-6)
    np.testing.assert_allclose(mask_iou(np.linspace(0, 1, 80), target), OPS["maskiou/loss"], rtol=1e-5)
