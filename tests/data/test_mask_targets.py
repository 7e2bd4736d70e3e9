"""The crops that data makes and the op that samples them, against the benchmark's plain NumPy version."""

from pathlib import Path

import numpy as np
import pytest

from jaxdet.data import Data
from jaxdet.data.masks import decode_mask
from jaxdet.data.pipeline.transforms import view_of
from jaxdet.ops.masks import mask_targets
from jaxdet.structures import Masks
from tests.modules import module_at

_PATH = Path(__file__).parents[2] / "benchmarks" / "ops" / "mask_crops.py"


@pytest.fixture(scope="module")
def oracle():
    return module_at(_PATH)


def test_oracle_by_hand(oracle):
    """A left half at twice the resolution of the target, seen by four boxes."""
    bitmap = np.zeros((8, 8), np.uint8)
    bitmap[:, :4] = 1
    frame = np.float32([10, 20, 26, 36])
    half = np.zeros((4, 4), bool)
    half[:, :2] = True
    for box, expected in (
        (frame, half),
        ([18, 20, 34, 36], np.zeros((4, 4))),
        ([10, 20, 18, 36], np.ones((4, 4))),
        ([90, 90, 95, 95], np.zeros((4, 4))),
    ):
        np.testing.assert_array_equal(oracle.target(bitmap, frame, np.float32(box), 4), expected)


def _instances(scenes, size):
    """Bitmap, frame and box of the instances of some scenes, mirrored and not."""
    data = Data(short_side=200, long_side=300, mask_size=size)
    for index in range(4):
        record = scenes[index]
        for flip in (False, True):
            view = view_of(record.image.shape[:2], data, flip)
            for annotation in record.annotations:
                mask = decode_mask(annotation.segmentation, view.original_hw)
                yield *view.cropped_mask(mask, size), view.boxes(np.array([annotation.bbox]))[0]


@pytest.mark.parametrize("size", [28, 64])
def test_the_op_makes_the_oracle_s_targets(oracle, scenes, size):
    bitmaps, frames, boxes = (np.array(column) for column in zip(*_instances(scenes, size), strict=True))
    boxes = boxes + np.random.default_rng(0).uniform(-5, 5, boxes.shape).astype(np.float32) * [[1, 1, 0.5, 0.5]]
    boxes = boxes.astype(np.float32)
    count = np.arange(len(boxes))[None]
    masks = Masks(bitmaps[None], frames[None])
    targets = mask_targets(masks, boxes[None], count, np.ones_like(count, bool))[0]
    expected = [oracle.target(*parts) for parts in zip(bitmaps, frames, boxes, strict=True)]
    assert (np.asarray(targets) != expected).mean() < 1e-3  # sums in 32 bits may fall on the other side of one half


def test_a_mirrored_view_has_mirrored_targets(oracle, scenes):
    instances = list(_instances(scenes, 28))
    for index in range(4):
        count = len(scenes[index].annotations)
        here, instances = instances[: 2 * count], instances[2 * count :]
        for plain, mirrored in zip(here[:count], here[count:], strict=True):
            a, b = oracle.target(*plain), oracle.target(*mirrored)
            assert (a != b[:, ::-1]).mean() < 0.02  # sums that are one half up to rounding
