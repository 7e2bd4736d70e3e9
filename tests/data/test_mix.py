"""Images made of several: what is painted in the colour of an instance is its mask, wherever it comes to lie."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxdet.data import Annotation, CopyPaste, Data, LargeScaleJitter, Mosaic, Record, train_batches
from jaxdet.data.masks import decode_mask
from jaxdet.data.pipeline.augment import check_augment, draw_view
from jaxdet.data.pipeline.mix import mix

HW = (40, 60)


def painted(boxes, first: int, hw=HW, ground: int = 0) -> Record:
    """Rectangles (x, y, width, height), each in a grey that is its id times 20 and no other's."""
    image = np.full((*hw, 3), ground, np.uint8)
    annotations = []
    for n, (x, y, width, height) in enumerate(boxes, first):
        mask = np.zeros(hw, np.uint8)
        mask[y : y + height, x : x + width] = 1
        image[mask > 0] = 20 * n
        encoded = coco_mask.encode(np.asfortranarray(mask))
        box = (float(x), float(y), float(width), float(height))
        annotations.append(Annotation(n, 0, box, float(mask.sum()), False, False, encoded))
    return Record(0, 7, "a.png", image, tuple(annotations))


def masks_of(record: Record) -> dict[int, np.ndarray]:
    hw = record.image.shape[:2]
    return {a.id: decode_mask(a.segmentation, hw) > 0 for a in record.annotations}


def test_without_such_a_setting_the_image_stays_and_no_other_is_read():
    record = painted([(5, 5, 10, 10)], 1)

    def another() -> Record:
        raise AssertionError

    never = Data(augment=(CopyPaste(probability=0), Mosaic(probability=0), LargeScaleJitter()))
    for data in (Data(), never):
        assert mix(record, another, data, np.random.default_rng(0)) is record


def test_masks_of_pasted_and_hidden_instances_are_the_pixels_that_show():
    behind, front = painted([(5, 5, 30, 25), (40, 8, 15, 30)], 1), painted([(0, 0, 20, 20), (22, 10, 30, 28)], 5)
    data = Data(augment=(CopyPaste(probability=1, least=1, most=1, visible=0),))
    hidden = 0
    for seed in range(40):
        mixed = mix(behind, lambda: front, data, np.random.default_rng(seed))
        assert mixed.image.shape == behind.image.shape
        masks = masks_of(mixed)
        assert set(masks) & {5, 6}  # one at least is pasted
        for annotation in mixed.annotations:
            shown = (mixed.image == 20 * annotation.id).all(axis=2)
            np.testing.assert_array_equal(masks[annotation.id], shown)
            rows, columns = np.nonzero(shown)
            box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
            assert annotation.bbox == box
            assert annotation.area == shown.sum()
        hidden += sum(a.area for a in mixed.annotations if a.id < 5) < sum(a.area for a in behind.annotations)
        assert [a.id for a in mixed.annotations] == sorted(masks)  # the order: own ones first
    assert hidden > 20
    assert {a.area for a in behind.annotations} == {750.0, 450.0}  # the source's record is not written into


def test_an_instance_that_is_hidden_is_none():
    behind, front = painted([(10, 10, 10, 10), (40, 5, 10, 10)], 1), painted([(0, 0, 60, 40)], 5)
    data = Data(augment=(CopyPaste(probability=1, least=1, most=1),))
    assert [a.id for a in mix(behind, lambda: front, data, np.random.default_rng(0)).annotations] == [5]
    # Of the first 4 of 10 columns are left, of the second all.
    front = painted([(14, 0, 12, 40), (34, 0, 1, 40)], 5)
    for visible, ids in ((0.39, [1, 2, 5]), (0.41, [2, 5])):
        data = Data(augment=(CopyPaste(probability=1, least=1, most=1, visible=visible),))
        found = [
            [a.id for a in mix(behind, lambda: front, data, np.random.default_rng(s)).annotations] for s in range(9)
        ]
        assert ids in found or [*ids, 6] in found


def test_nothing_to_paste_changes_nothing():
    record, empty = painted([(5, 5, 10, 10)], 1), painted([], 1, ground=200)
    mixed = mix(record, lambda: empty, Data(augment=(CopyPaste(probability=1),)), np.random.default_rng(0))
    np.testing.assert_array_equal(mixed.image, record.image)
    assert mixed.annotations == record.annotations


def test_a_mosaic_is_full_and_its_masks_lie_on_their_instances():
    sources = [
        painted([(20, 8, 24, 24)], n, hw, ground=250) for n, hw in ((3, HW), (5, (64, 48)), (7, HW), (9, (90, 90)))
    ]
    data = Data(augment=(Mosaic(probability=1),))
    seen = 0
    for seed in range(40):
        others = iter(sources[1:])
        mixed = mix(sources[0], lambda others=others: next(others), data, np.random.default_rng(seed))
        assert mixed.image.shape == (*HW, 3)
        assert mixed.image.min() >= 50  # no place is empty: the darkest instance has 60
        for annotation in mixed.annotations:
            mask = decode_mask(annotation.segmentation, HW) > 0
            # Resizing blends colours along the edges, so a border of two pixels is left out.
            shown = np.abs(mixed.image[..., 0].astype(int) - 20 * annotation.id) < 8
            assert (mask & shown).sum() >= 0.6 * mask.sum()
            x, y, width, height = annotation.bbox
            rows, columns = np.nonzero(mask)
            assert x - 1 <= columns.min()
            assert columns.max() <= x + width + 1
            assert y - 1 <= rows.min()
            assert rows.max() <= y + height + 1
            assert annotation.area == mask.sum()
            seen += 1
    assert seen > 60


def test_without_masks_a_mosaic_has_boxes_alone():
    record = painted([(20, 8, 24, 24)], 1)
    data = Data(masks=False, augment=(Mosaic(probability=1),))
    mixed = mix(record, lambda: record, data, np.random.default_rng(1))
    assert mixed.annotations
    assert all(a.segmentation is None and a.area == a.bbox[2] * a.bbox[3] for a in mixed.annotations)
    with pytest.raises(ValueError, match=r"data\.augment\.0: expected data\.masks=True with CopyPaste"):
        check_augment(Data(masks=False, augment=(CopyPaste(),)))


def test_large_scale_jitter_fills_the_canvas_at_scales_of_its_range():
    data = Data(short_side=80, long_side=120, pad_multiple=8, flip_probability=0, augment=(LargeScaleJitter(),))
    record = painted([], 1)  # 40 x 60, so that a scale of 1 is twice the stored size
    drawn = [draw_view(record, data, np.random.default_rng([5, n])) for n in range(300)]
    assert {(view.hw, view.canvas) for view in drawn} == {((80, 120), (80, 120))}
    scales = np.array([view.scale[0] / 2 for view in drawn])
    assert 0.08 < scales.min() < 0.2
    assert 1.9 < scales.max() < 2.02
    assert abs(np.median(scales) - 1.05) < 0.12
    for view, scale in zip(drawn, scales, strict=True):
        if scale < 0.98:
            assert view.offset == (0, 0)
        elif scale > 1.02:  # a part, inside of the image but for rounding
            assert all(-1 <= -o <= r - s + 1 for o, r, s in zip(view.offset, view.resized_hw, view.hw, strict=True))
    assert len({view.offset for view in drawn}) > 50


@pytest.mark.parametrize(("kind", "word"), [(LargeScaleJitter, "LargeScaleJitter"), (CopyPaste, "CopyPaste")])
def test_scales_in_the_wrong_order_are_refused(kind, word):
    with pytest.raises(ValueError, match=rf"{word}\.most: expected at least least=1"):
        kind(least=1, most=0.5)


def test_batches_are_the_same_from_any_step_and_have_one_canvas(scenes, small):
    data = dataclasses.replace(small, augment=(CopyPaste(), Mosaic(), LargeScaleJitter()))
    with train_batches(scenes, data, seed=3, start_step=0, steps=4) as batches:
        whole = list(batches)
    with train_batches(scenes, data, seed=3, start_step=2, steps=2) as batches:
        resumed = list(batches)
    for a, b in zip(whole[2:], resumed, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.targets.masks.values, b.targets.masks.values)
        np.testing.assert_array_equal(a.targets.boxes, b.targets.boxes)
    assert {batch.image.shape[1:3] for batch in whole} <= {(64, 96), (96, 64)}
