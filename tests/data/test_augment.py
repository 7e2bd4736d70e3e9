"""What is drawn for training images: sizes, parts, colours, and that nothing but seed, step and slot decides."""

import colorsys
import dataclasses

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxdet.config import override
from jaxdet.configs.base import condinst, yolact
from jaxdet.data import (
    Annotation,
    Data,
    Expand,
    LargeScaleJitter,
    MinIoUCrop,
    PhotometricDistortion,
    Record,
    ShortSide,
    eval_batches,
    single_batch,
    train_batches,
)
from jaxdet.data.pipeline.augment import Colours, check_augment, distort, draw_view
from jaxdet.data.pipeline.plans import AUGMENT, train_plan
from jaxdet.data.pipeline.ready import check_trainable
from jaxdet.data.pipeline.transforms import resize_image, view_of
from jaxdet.evaluation.results import image_results
from jaxdet.structures import Detections, Masks

HW = (60, 90)
BOXES = ((10.0, 5.0, 30.0, 20.0), (50.0, 20.0, 35.0, 38.0), (20.0, 40.0, 12.0, 12.0))  # x, y, width, height
EVERYTHING = (
    ShortSide(40, step=8),
    Expand(most=2.0),
    MinIoUCrop(ious=(0.1, 0.5)),
    PhotometricDistortion(),
)


def record(boxes=BOXES, hw=HW, **changes) -> Record:
    annotations = tuple(
        dataclasses.replace(Annotation(n, 0, box, box[2] * box[3], False, False, None), **changes)
        for n, box in enumerate(boxes)
    )
    return Record(0, 7, "a.png", np.zeros((*hw, 3), np.uint8), annotations)


def views(data: Data, count: int, one: Record | None = None) -> list:
    return [draw_view(one or record(), data, np.random.default_rng([3, n])) for n in range(count)]


def seen_of(view) -> np.ndarray:
    """What a view shows of the stored image: x1, y1, x2, y2 in its pixels, beyond its borders too."""
    (y, x), (height, width), (scale_y, scale_x) = view.offset, view.hw, view.scale
    return np.array([-x / scale_x, -y / scale_y, (width - x) / scale_x, (height - y) / scale_y])


def test_short_sides_are_drawn_evenly_and_the_canvas_stays():
    data = Data(short_side=80, long_side=133, pad_multiple=8, augment=(ShortSide(64, step=8),))
    drawn = views(data, 300)
    assert {view.canvas for view in drawn} == {(80, 136)}
    sides = [view.hw[0] for view in drawn]
    assert {side: sides.count(side) > 60 for side in set(sides)} == {64: True, 72: True, 80: True}
    assert all(abs(view.scale[0] - view.scale[1]) < 0.01 and view.offset == (0, 0) for view in drawn)
    # Any size without a step; the limit of the longer side holds as ever.
    data = dataclasses.replace(data, long_side=100, augment=(ShortSide(64),))
    assert {view.hw[0] for view in views(data, 300)} == {64, 65, 66, 67}
    assert max(view.hw[0] for view in views(data, 100, record(hw=(90, 90), boxes=()))) == 80


def test_an_expanded_image_is_whole_and_on_its_ground():
    data = Data(short_side=600, long_side=900, augment=(Expand(most=4.0, colour=(10.4, 20.6, 30)),))
    drawn = views(data, 400)
    plain = [view for view in drawn if view.resized_hw == view.hw]
    assert 150 < len(plain) < 250
    factors = []
    for view in drawn:
        x1, y1, x2, y2 = seen_of(view)
        unit = 0.51 / min(view.scale)  # sizes and offsets are whole pixels
        assert max(x1, y1) <= unit
        assert min(x2 - HW[1], y2 - HW[0]) >= -2 * unit
        factors.append((x2 - x1) / HW[1])
        assert abs((y2 - y1) / HW[0] - factors[-1]) < 0.02
        assert view.fill == (10, 21, 30)
    assert 3.8 < max(factors) < 4.1
    assert abs(np.mean([f for f in factors if f > 1.02]) - 2.5) < 0.25


@pytest.mark.parametrize(("crowd", "cut"), [(False, 150), (True, 225)])
def test_parts_are_parts_and_have_the_centre_of_an_instance(crowd, cut):
    """No part overlaps the smallest box by 0.2, so half of the draws end with the whole image; crowds ask nothing."""
    data = Data(short_side=600, long_side=900, augment=(MinIoUCrop(ious=(0.2, 0.4), least=0.5),), flip_probability=0)
    boxes = np.array(BOXES)
    found = 0
    for view in views(data, 300, record(crowd=crowd)):
        x1, y1, x2, y2 = seen_of(view)
        assert min(x1, y1) > -0.1
        assert x2 < HW[1] + 0.1
        assert y2 < HW[0] + 0.1
        assert (x2 - x1) / HW[1] > 0.49
        assert (y2 - y1) / HW[0] > 0.49
        if view.hw == view.resized_hw:
            continue
        found += 1
        assert 0.49 < (x2 - x1) / (y2 - y1) < 2.01
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        if not crowd:
            assert ((centres > [x1 - 0.1, y1 - 0.1]) & (centres < [x2 + 0.1, y2 + 0.1])).all(axis=1).any()
    assert abs(found - cut) < 30  # more than three standard deviations


def test_a_lonely_object_is_cut_out_at_each_overlap():
    one = record(boxes=((20.0, 10.0, 50.0, 40.0),))
    data = Data(short_side=600, long_side=900, augment=(MinIoUCrop(ious=(0.6,), least=0.3),), flip_probability=0)
    ious = []
    for view in views(data, 300, one):
        x1, y1, x2, y2 = seen_of(view)
        part = np.array([[x1, y1, x2 - x1, y2 - y1]])
        ious.append(float(coco_mask.iou(np.array([[20.0, 10.0, 50.0, 40.0]]), part, [0])[0, 0]))
    whole = 2000 / (HW[0] * HW[1])
    kinds = [sum(abs(iou - whole) < 0.01 for iou in ious), sum(iou > 0.59 for iou in ious)]
    # A third whole, a third at 0.6 or more, a third at anything.
    assert all(80 < kind < 160 for kind in kinds)
    assert min(ious) < 0.3


def test_a_part_has_an_instance_even_if_it_need_not_overlap_any():
    one = record(boxes=((4.0, 3.0, 8.0, 6.0),))
    data = Data(short_side=600, long_side=900, augment=(MinIoUCrop(ious=(0.0,), least=0.3),), flip_probability=0)
    drawn = views(data, 100, one)
    assert sum(view.hw != view.resized_hw for view in drawn) > 40
    for view in drawn:
        x1, y1, x2, y2 = seen_of(view)
        assert x1 - 0.1 < 8 < x2 + 0.1
        assert y1 - 0.1 < 6 < y2 + 0.1


def test_without_objects_parts_are_cut_all_the_same():
    data = Data(short_side=60, long_side=90, augment=(MinIoUCrop(),))
    assert any(view.hw != view.resized_hw for view in views(data, 30, record(boxes=())))
    # Ratios that no part of a strip has: it stays whole.
    strip = record(boxes=(), hw=(10, 200))
    assert all(view.hw == view.resized_hw for view in views(data, 30, strip))


@pytest.mark.parametrize(
    "colours",
    [
        Colours(),
        Colours(brightness=-31.5),
        Colours(contrast=1.37),
        Colours(saturation=0.53),
        Colours(saturation=1.5),
        Colours(hue=17.5),
        Colours(hue=-18),
        Colours(20, 0.6, False, 1.4, -9),
        Colours(20, 0.6, True, 1.4, -9),
        Colours(-20, 1.4, True, 0.7, 12),
        Colours(32, 1.5, False, 1.5, 18),
    ],
    ids=str,
)
def test_colours_are_those_of_a_slow_rendering(colours):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    expected = np.zeros(pixels.shape)
    for place in np.ndindex(12, 15):
        rgb = pixels[place].astype(float) + colours.brightness
        if not colours.contrast_last:
            rgb = rgb * colours.contrast
        # `colorsys` works on any unit: the value is the largest of the three.
        h, s, v = colorsys.rgb_to_hsv(*np.maximum(rgb, 0) if colours.saturation != 1 or colours.hue else rgb)
        rgb = np.array(colorsys.hsv_to_rgb((h + colours.hue / 360) % 1, s * colours.saturation, v))
        if colours.contrast_last:
            rgb = rgb * colours.contrast
        expected[place] = np.clip(rgb, 0, 255)
    assert np.abs(colours(pixels) - expected).max() <= 0.51


def test_grey_stays_grey_and_black_gets_no_colour():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    changed = Colours(brightness=-32, saturation=1.5, hue=18)(grey)
    np.testing.assert_array_equal(changed, np.maximum(grey.astype(int) - 32, 0))
    dark = np.full((2, 2, 3), (20, 5, 0), np.uint8)
    assert not Colours(brightness=-32, saturation=1.5)(dark).any()


def test_colours_are_drawn_from_their_ranges():
    settings = PhotometricDistortion(brightness=20, contrast=(0.9, 1), saturation=(1, 1), hue=0)
    data = Data(augment=(settings,))
    grey = np.full((1, 1, 3), 100, np.uint8)
    values = [int(distort(grey, data, np.random.default_rng(n))[0, 0, 0]) for n in range(300)]
    assert min(values) in range(72, 80)  # 80 at the darkest, times 0.9
    assert max(values) in (119, 120)
    assert 50 < values.count(100) < 110  # a quarter has neither
    np.testing.assert_array_equal(distort(grey, Data(augment=(Expand(),)), np.random.default_rng(0)), grey)


def test_colours_change_in_batches_and_nothing_else(scenes, small):
    drawn = taken(scenes, dataclasses.replace(small, augment=(PhotometricDistortion(),)), 0, 4)
    changed = []
    for batch, plain in zip(drawn, taken(scenes, small, 0, 4), strict=True):
        changed += (batch.image != plain.image).any(axis=(1, 2, 3)).tolist()
        same(dataclasses.replace(batch, image=plain.image), plain)
        for image, (height, width) in zip(batch.image, batch.true_hw.astype(int), strict=True):
            assert not image[height:].any()
            assert not image[:, width:].any()
    assert sum(changed) > 10


def taken(source, data: Data, start: int, count: int, **options) -> list:
    with train_batches(source, data, seed=5, start_step=start, steps=count, **options) as batches:
        return list(batches)


def same(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_draws_are_those_of_seed_step_and_slot_whoever_makes_them(scenes, small):
    data = dataclasses.replace(small, augment=EVERYTHING, min_box=4.0)
    expected = taken(scenes, data, 0, 7)
    for ours, theirs in zip(taken(scenes, dataclasses.replace(data, workers=2), 0, 7), expected, strict=True):
        same(ours, theirs)
    for ours, theirs in zip(taken(scenes, data, 5, 2), expected[5:], strict=True):
        same(ours, theirs)
    parts = [taken(scenes, data, 3, 1, process_index=index, process_count=2)[0] for index in range(2)]
    same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), expected[3])


@pytest.mark.parametrize(("ratios", "portrait"), [((), (96, 64)), ((4 / 3,), (88, 64))])
def test_shapes_are_the_canvases_whatever_is_drawn(scenes, small, ratios, portrait):
    small = dataclasses.replace(small, pad_multiple=8, canvas_ratios=ratios)

    def shapes(batches) -> set:
        return {tuple((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(batch)) for batch in batches}

    plain, drawn = taken(scenes, small, 0, 20), taken(scenes, dataclasses.replace(small, augment=EVERYTHING), 0, 20)
    assert shapes(drawn) == shapes(plain)
    assert len(shapes(plain)) == 2
    assert {batch.image.shape[1:3] for batch in plain} == {(64, 96), portrait}
    assert len({tuple(hw) for batch in drawn for hw in batch.true_hw.tolist()}) > 20
    for batch in drawn:
        limits = np.tile(batch.true_hw[:, None, ::-1], 2)
        boxes, valid = batch.targets.boxes, batch.targets.valid
        assert (boxes[valid] >= 0).all()
        assert (boxes <= limits)[valid].all()
        assert (boxes[..., 2:] > boxes[..., :2])[valid].all()
        for image, (height, width) in zip(batch.image, batch.true_hw.astype(int), strict=True):
            assert not image[height:].any()
            assert not image[:, width:].any()


def test_what_draws_nothing_leaves_the_batch_as_it_is(scenes, small):
    """Against the pipeline written out, and against settings that never draw anything else."""
    idle = (ShortSide(64), Expand(probability=0.0), PhotometricDistortion(0.0, (1.0, 1.0), (1.0, 1.0), 0.0))
    plan = train_plan(scenes, small, 5)
    for step, (plain, other) in enumerate(
        zip(taken(scenes, small, 0, 4), taken(scenes, dataclasses.replace(small, augment=idle), 0, 4), strict=True)
    ):
        for slot, index in enumerate(plan.batch(step).tolist()):
            if index < 0:
                continue
            stored = scenes[index].image
            height, width = (int(side) for side in plain.true_hw[slot])
            expected = cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR)
            if np.random.default_rng([5, AUGMENT, step, slot]).random() < 0.5:
                expected = expected[:, ::-1]
            np.testing.assert_array_equal(plain.image[slot, :height, :width], expected)
            assert not plain.image[slot, height:].any()
        same(plain, other)
        assert set(plain.counts) == {"dropped"}


def test_training_may_have_sides_of_its_own(scenes, small):
    """Half the sides, and objects as large as evaluation has them, since parts are shown at twice the scale."""
    data = dataclasses.replace(small, train_sides=(32, 48), augment=(LargeScaleJitter(2.0, 2.0),), flip_probability=0.0)
    with train_batches(scenes, data, seed=5, start_step=0, steps=2) as batches:
        for batch in batches:
            assert sorted(batch.image.shape[1:3]) == [32, 64]  # the longer side is rounded up
            expected = [view_of(tuple(hw), small).scale for hw in batch.original_hw.tolist()]
            np.testing.assert_allclose(batch.scale, expected, rtol=0.03)
    with eval_batches(scenes, data, batch_size=2) as batches:
        assert sorted(next(iter(batches)).image.shape[1:3]) == [64, 96]
    # A square has one canvas where the sides of evaluation have two.
    square = dataclasses.replace(small, train_sides=(32, 32))
    assert len(train_plan(scenes, small, 5).buckets) == 2
    assert len(train_plan(scenes, square, 5).buckets) == 1


def test_training_sides_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"data\.train_sides: expected the shorter side first, got \(64, 32\)"):
        dataclasses.replace(small, train_sides=(64, 32))
    drawn = dataclasses.replace(small, train_sides=(32, 32), augment=(ShortSide(48),))
    with pytest.raises(ValueError, match=r"data\.augment\.0\.least: expected at most data\.train_sides\.0=32"):
        check_augment(drawn)


def test_small_objects_are_counted_but_not_in_slots_that_fill_a_batch(scenes, small):
    data = dataclasses.replace(small, min_box=20.0, batch_size=16, max_boxes=30)
    with train_batches(scenes, data, seed=0, start_step=0, steps=2) as batches:
        taken = list(batches)
        assert batches.small == sum(int(batch.counts["small_boxes"].sum()) for batch in taken) > 0
    for batch, plain in zip(taken, _without(scenes, data, "min_box", 0.0), strict=True):
        lost = plain.targets.valid.sum(axis=1) - batch.targets.valid.sum(axis=1)
        np.testing.assert_array_equal(batch.counts["small_boxes"], lost)
        assert not batch.valid.all()
        sides = batch.targets.boxes[..., 2:] - batch.targets.boxes[..., :2]
        assert sides[batch.targets.valid].min() >= 20


def _without(source, data: Data, name: str, value) -> list:
    with train_batches(source, dataclasses.replace(data, **{name: value}), seed=0, start_step=0, steps=2) as batches:
        return list(batches)


def test_results_of_an_image_without_its_ratio_are_in_stored_pixels():
    """What evaluation does with the detections: here they are the ground truth as the model would see it."""
    data = Data(short_side=48, long_side=48, pad_multiple=1, keep_ratio=False)
    hw, y1, x1, y2, x2 = (30, 90), 6, 12, 21, 57
    image = np.zeros((*hw, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    batch = single_batch(image, data)
    assert batch.image.shape == (1, 48, 48, 3)
    np.testing.assert_array_equal(batch.scale, np.float32([[48 / 30, 48 / 90]]))
    box = np.float32([[x1 * 48 / 90, y1 * 48 / 30, x2 * 48 / 90, y2 * 48 / 30]])
    masks = Masks(np.float32(batch.image[..., 0] > 127), np.float32([[0, 0, 48, 48]]))
    zeros = np.zeros(1, np.int32)
    found = Detections(box, np.ones(1, np.float32), zeros, np.ones(1, bool), zeros, masks)
    result = image_results(
        found, image_id=1, category_ids=[3], scale=batch.scale[0], hw=tuple(batch.original_hw[0].tolist())
    )[0]
    np.testing.assert_allclose(result["bbox"], [x1, y1, x2 - x1, y2 - y1], rtol=1e-5)
    pasted = coco_mask.decode(result["segmentation"])
    assert pasted.shape == hw
    true = image[..., 0] > 0
    assert (pasted & true).sum() / (pasted | true).sum() > 0.93


def test_evaluation_fills_the_canvas_too_and_draws_nothing(scenes, small):
    data = dataclasses.replace(small, short_side=64, long_side=64, pad_multiple=1, keep_ratio=False, augment=())
    drawing = dataclasses.replace(data, augment=(Expand(probability=1.0), MinIoUCrop(), PhotometricDistortion()))
    with eval_batches(scenes, data, batch_size=5) as plain, eval_batches(scenes, drawing, batch_size=5) as other:
        for batch, same_batch in zip(plain, other, strict=True):
            same(batch, same_batch)
            for slot in np.flatnonzero(batch.valid):
                stored = scenes[int(batch.index[slot])].image
                np.testing.assert_array_equal(batch.image[slot], resize_image(stored, (64, 64)))


def test_the_recipes_of_the_one_stage_models(scenes):
    """What the configs say reaches the batches: all images of YOLACT fill 550 pixels, CondInst's sizes are its six."""
    few = {"batch_size": 2, "workers": 0, "max_boxes": 8, "mask_size": 28, "whole_masks": False}
    data = dataclasses.replace(yolact().data, **few)
    for batch in taken(scenes, data, 0, 3):
        assert batch.image.shape == (2, 550, 550, 3)
        assert (batch.true_hw == 550).all()
        assert "small_boxes" in batch.counts
    data = condinst().data
    sizes = {view.hw[0] for view in views(data, 100)}
    assert sizes == {640, 672, 704, 736, 768, 800}
    assert {view.canvas for view in views(data, 9)} == {(800, 1344)}


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (ShortSide, {"least": 0}),
        (ShortSide, {"least": 9, "step": 0}),
        (Expand, {"most": 0.5}),
        (Expand, {"probability": 2.0}),
        (Expand, {"colour": (0.0, 300.0, 0.0)}),
        (MinIoUCrop, {"ious": ()}),
        (MinIoUCrop, {"ious": (0.5, 1.5)}),
        (MinIoUCrop, {"least": 0.01}),
        (PhotometricDistortion, {"brightness": 256.0}),
        (PhotometricDistortion, {"hue": 181.0}),
        (PhotometricDistortion, {"contrast": (1.5, 0.5)}),
        (PhotometricDistortion, {"saturation": (-1.0, 0.5)}),
        (Data, {"min_box": -1.0}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, values):
    with pytest.raises(ValueError, match=rf"{settings.__name__}\.{list(values)[-1]}: expected"):
        settings(**values)


def test_sizes_that_are_drawn_keep_the_ratio():
    with pytest.raises(ValueError, match=r"data\.augment: expected no ShortSide.*set data\.keep_ratio=True"):
        Data(keep_ratio=False, augment=(ShortSide(640),))


def test_a_drawn_side_beyond_the_canvas_is_refused_for_training_and_by_its_key(scenes, small):
    """Evaluation at another size needs no change of what is drawn."""
    data = dataclasses.replace(small, augment=(Expand(), ShortSide(65)))
    message = (
        r"data\.augment\.1\.least: expected at most data\.short_side=64, .* got 65; set data\.augment\.1\.least=51"
    )
    for start in (
        lambda: check_trainable(scenes, dataclasses.replace(data, skip_broken=True)),
        lambda: train_batches(scenes, data, seed=0, start_step=0),
    ):
        with pytest.raises(ValueError, match=message):
            start()
    with eval_batches(scenes, data, batch_size=4) as batches:
        assert next(batches).valid.all()
    config = override(condinst(), ["data.short_side=400", "data.long_side=667", "data.augment.0.least=320"])
    assert config.data.augment == (ShortSide(320, 32),)
    assert override(condinst(), ["data.augment=()"]).data.augment == ()
