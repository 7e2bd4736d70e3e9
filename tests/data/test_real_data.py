"""Sources, batches and the check on real annotations; skipped where there are none."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jaxdet.data import CocoFolder, Data, eval_batches, open_source, train_batches
from jaxdet.data.check import check
from jaxdet.data.masks import decode_mask
from tests.modules import module_at

DATA = Data(short_side=128, long_side=224, batch_size=8, max_boxes=100, workers=0)


def _coco(shared: Path, split: str) -> CocoFolder:
    folder = shared / "data" / "coco_mini"
    return CocoFolder(str(folder / "images"), str(folder / "annotations" / f"instances_{split}2017.json"))


def _fudan(shared: Path, name: str) -> CocoFolder:
    folder = shared / "data" / "penn_fudan"
    return CocoFolder(str(folder / "images"), str(folder / "annotations" / f"instances_{name}.json"))


def test_coco_as_a_source(shared):
    source = open_source(_coco(shared, "val"))
    assert len(source) == 197
    assert [len(source.categories), source.categories[0].id, source.categories[-1].id] == [80, 1, 90]
    annotations = [annotation for index in range(len(source)) for annotation in source.store.annotations(index)]
    assert len(annotations) == 1762
    assert sum(annotation.crowd for annotation in annotations) == 21
    assert (source.usable == 0).sum() >= 2


def test_areas_are_those_of_the_masks(shared):
    source = open_source(_coco(shared, "val"))
    for index in range(0, len(source), 10):
        hw = tuple(source.sizes[index].tolist())
        for annotation in source.store.annotations(index):
            if annotation.area > 500:
                mask = decode_mask(annotation.segmentation, hw)
                assert mask.sum() == pytest.approx(annotation.area, rel=0.1)


def test_batches_of_coco(shared):
    source = open_source(_coco(shared, "train"))
    with train_batches(source, DATA, seed=0, start_step=0, steps=4) as batches:
        for batch in batches:
            targets = batch.targets
            real = targets.valid & ~targets.crowd
            assert targets.masks.values[real].any(axis=(1, 2)).mean() > 0.97  # nearest resize loses a few tiny ones
            limits = np.concatenate([batch.true_hw[:, ::-1]] * 2, axis=1)[:, None]
            assert ((targets.boxes >= 0) & (targets.boxes <= limits)).all()


def test_masks_travel_to_where_their_boxes_are(shared):
    """Bitmap and frame give back the box: the far sides differ by the annotators' rounding and by one resized pixel."""
    source = open_source(_fudan(shared, "train"))
    with train_batches(source, DATA, seed=0, start_step=0, steps=4) as batches:
        for batch in batches:
            targets = batch.targets
            for slot in zip(*np.nonzero(targets.valid), strict=True):
                x1, y1, x2, y2 = targets.masks.frames[slot]
                rows, columns = np.nonzero(targets.masks.values[slot])
                cell_y, cell_x = (y2 - y1) / DATA.mask_size, (x2 - x1) / DATA.mask_size
                extent = [
                    x1 + columns.min() * cell_x,
                    y1 + rows.min() * cell_y,
                    x1 + (columns.max() + 1) * cell_x,
                    y1 + (rows.max() + 1) * cell_y,
                ]
                np.testing.assert_allclose(extent, targets.boxes[slot], atol=2.5)


def test_evaluation_of_coco_sees_empty_images_too(shared):
    source = open_source(_coco(shared, "val"))
    with eval_batches(source, dataclasses.replace(DATA, short_side=64, long_side=96), batch_size=16) as batches:
        seen = sorted(int(index) for batch in batches for index in batch.index[batch.valid])
    assert seen == list(range(197))


@pytest.mark.parametrize("name", ["train", "val", "train_poly", "val_poly"])
def test_real_sets_have_no_errors(shared, name):
    settings = _fudan(shared, name)
    report = check(settings.annotations, settings.images, quick=True)
    assert [finding for finding in report.findings if finding.severity == "error"] == []


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "ops" / "mask_crops.py"
    return module_at(path)


def test_crops_cost_little_of_the_targets(shared):
    """Mean IoU of 28x28 targets with those of the polygons, at the default settings, on 54 instances."""
    source = open_source(_coco(shared, "val"))
    ious, _, instances = _benchmark().measure(source, Data(), [Data().mask_size], limit=8)
    polygons, bitmaps, whole = ious.T
    assert instances > 50
    assert (polygons >= 0.96).all()
    assert (polygons > whole + 0.03).all()  # where the stored pixels are repeated
    assert (np.abs(bitmaps - whole) < 0.005).all()
