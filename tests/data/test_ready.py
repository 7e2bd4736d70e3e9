"""What is missing, or left out, is said before the first step."""

import logging

import numpy as np
import pytest

from jaxdet.data import CocoFolder, Data, open_source, train_batches
from jaxdet.data.pipeline.plans import left_out
from jaxdet.data.pipeline.ready import check_files, check_trainable

BOTH = Data(workers=0, min_side=0)


@pytest.fixture
def two(coco, one_box):
    """The json of two images, of which the first has a square."""
    one_box["images"].append({**coco.image("b.png", (40, 50)), "id": 8})
    return one_box


def another(data, number: int, **changes) -> None:
    data["annotations"].append({**data["annotations"][0], "id": number, **changes})


class TestMissing:
    def test_files_are_counted_and_named(self, coco, two):
        two["images"][0]["file_name"] = "a%2Epng"
        source = open_source(coco.write(two))
        with pytest.raises(ValueError, match=r"data\.val: .*none for 1 of them: .*'a%2Epng', but there is 'a\.png'"):
            check_files(source, "data.val")
        (coco.folder / "images" / "b.png").unlink()
        with pytest.raises(ValueError, match=r"none for 2 of them.*'b\.png'"):
            check_files(source, "data.val")

    def test_semantic_maps_are_files_too(self, coco, two):
        settings = coco.write(two)
        source = open_source(CocoFolder(settings.images, settings.annotations, str(coco.folder / "maps")))
        with pytest.raises(ValueError, match=r"none for 2 of them: .*maps: 'a\.png'"):
            check_files(source, "data.train")

    def test_of_training_images_only_those_that_it_sees(self, coco, two):
        source = open_source(coco.write(two))
        (coco.folder / "images" / "b.png").unlink()
        check_trainable(source, BOTH)
        another(two, 2, image_id=8)
        source = open_source(coco.write(two))
        with pytest.raises(ValueError, match=r"data\.train: .*'b\.png'"):
            check_trainable(source, BOTH)
        check_trainable(source, Data(workers=0, min_side=0, skip_broken=True))

    def test_masks(self, coco, two):
        another(two, 2, image_id=8, segmentation=[[]])
        source = open_source(coco.write(two))
        with pytest.raises(ValueError, match=r"1 annotations of 1 images have none; set data\.masks=false"):
            check_trainable(source, BOTH)
        check_trainable(source, Data(workers=0, min_side=0, masks=False))
        two["annotations"][1]["iscrowd"] = 1  # never a positive: its mask is not learned
        check_trainable(open_source(coco.write(two)), BOTH)


class TestLeftOut:
    def test_nothing(self, coco, two):
        another(two, 2, image_id=8, category_id=3)
        assert left_out(open_source(coco.write(two)), BOTH) == []

    def test_images(self, coco, two):
        source = open_source(coco.write(two))  # a.png is 20 x 30, b.png has no annotations
        assert left_out(source, Data())[0] == (
            "training leaves out 2 of 2 images: 1 with a side under 32 pixels (data.min_side), "
            "1 without usable annotations (data.filter_empty)"
        )
        assert left_out(source, Data(filter_empty=False))[0].endswith("1 of 2 images: 1 with a side under 32 pixels "
            "(data.min_side)")  # fmt: skip

    def test_annotations_and_categories(self, coco, two):
        another(two, 2, ignore=1)
        another(two, 3, area=0)
        another(two, 4, bbox=[90, 90, 5, 5])
        another(two, 5, iscrowd=1, category_id=3)
        _, annotations, categories = left_out(open_source(coco.write(two)), BOTH)
        assert "3 of 4 annotations" in annotations
        assert categories.endswith("1 of 2 categories, which have nothing to learn from: a")

    def test_it_is_said_once_by_the_first_process(self, coco, two, caplog):
        source = open_source(coco.write(two))
        data = Data(short_side=64, long_side=64, batch_size=2, max_boxes=4, mask_size=28, min_side=0, workers=0)
        with caplog.at_level(logging.WARNING):
            for process in (1, 0):
                with train_batches(source, data, seed=0, start_step=0, process_index=process, process_count=2) as got:
                    for _ in range(3):
                        assert np.isin(next(got).index, (-1, 0)).all()
        assert caplog.text.count("training leaves out 1 of 2 images") == 1
