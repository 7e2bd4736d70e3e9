"""Augmentations and sources of one's own: what they get, what they may return, and that batches have it."""

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxdet.config import check
from jaxdet.data import Data, OwnSource, Record, Source, listed_source, open_source
from jaxdet.data.pipeline.batches import TrainBatches
from jaxdet.data.pipeline.own import augmented
from jaxdet.data.pipeline.plans import Share, train_plan
from jaxdet.data.settings import MinIoUCrop, OwnAugmentation

SIDE = 12


@dataclasses.dataclass(frozen=True)
class Flat:
    """A grey value for the whole image, which is drawn."""

    most: int = 200

    def augmented(self, record: Record, rng: np.random.Generator) -> Record:
        return dataclasses.replace(record, image=np.full_like(record.image, rng.integers(1, self.most)))


@dataclasses.dataclass(frozen=True)
class Returns:
    """Whatever it is told to."""

    make: Callable[[Record], Any]

    def augmented(self, record: Record, rng: np.random.Generator) -> Record:
        return self.make(record)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Images of 64 x 48 pixels with a block each, read by a text."""

    count: int = 6
    masks: bool = True

    def open_source(self) -> Source:
        return listed_source(self.content(), self.read)

    def content(self) -> dict[str, Any]:
        images = [{"id": 10 + i, "file_name": f"archive://{i}", "height": 48, "width": 64} for i in range(self.count)]
        annotations = [
            {"id": i, "image_id": 10 + i, "category_id": 5, "bbox": [i, 2, SIDE, SIDE], "area": SIDE**2, "iscrowd": 0}
            for i in range(self.count)
        ]
        for i, entry in enumerate(annotations if self.masks else ()):
            entry["segmentation"] = [[i, 2, i + SIDE, 2, i + SIDE, 2 + SIDE, i, 2 + SIDE]]
        return {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "block"}]}

    def read(self, name: str) -> NDArray[np.uint8]:
        return np.full((48, 64, 3), int(name.removeprefix("archive://")), np.uint8)


DATA = Data(train=Blocks(), short_side=48, long_side=64, batch_size=2, mask_size=28, max_boxes=4, workers=0)


def batch_of(data: Data, step: int) -> dict[str, Any]:
    source = open_source(data.train)
    return TrainBatches(source, data, train_plan(source, data, 0), Share(0, 1, 2), 0, 9)[step]


def test_classes_with_the_method_are_settings() -> None:
    data = dataclasses.replace(DATA, augment=(MinIoUCrop(), Flat()))
    check(data)
    assert isinstance(data.train, OwnSource)
    assert not isinstance(MinIoUCrop(), OwnAugmentation)
    for key, wrong in (("augment", (Blocks(),)), ("train", Flat())):
        with pytest.raises(ValueError, match=key):
            check(dataclasses.replace(DATA, **{key: wrong}))


def test_a_listed_source_is_one_like_a_folder() -> None:
    opened = open_source(Blocks())
    source = pickle.loads(pickle.dumps(opened))  # as worker processes get it
    assert (len(source), source.image_ids.tolist()) == (6, list(range(10, 16)))
    assert source.categories[0].name == "block"
    assert source.usable.tolist() == [1] * 6
    record = source[3]
    assert (record.name, record.image_id, record.annotations[0].bbox) == ("archive://3", 13, (3, 2, SIDE, SIDE))
    assert (record.image == 3).all()
    assert source.ground_truth() == Blocks().content()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"images": None}, r"expected lists for .*, got none for \['images'\]"),
        ({"images": [{"id": 1, "file_name": "a"}]}, "expected height and width of every image"),
        ({"annotations": [{"id": 1, "image_id": 99, "category_id": 5, "bbox": [0, 0, 1, 1], "area": 1}]}, "image_id"),
    ],
)
def test_what_a_listed_source_refuses(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"a source of your own: .*{why}"):
        listed_source(Blocks().content() | change, Blocks().read)


@pytest.mark.parametrize("pixels", [np.zeros((48, 64, 3)), np.zeros((48, 64), np.uint8), None])
def test_an_image_that_is_none_is_named(pixels: Any) -> None:
    source = listed_source(Blocks().content(), lambda name: pixels)
    with pytest.raises(ValueError, match=r"image archive://0: expected \[H, W, 3\] uint8 RGB from the source"):
        source[0]


def test_an_image_of_another_size_is_named() -> None:
    source = listed_source(Blocks().content(), lambda name: np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(ValueError, match=r"archive://0: expected height, width \(48, 64\)"):
        source[0]


def test_an_augmentation_is_drawn_by_step_and_place_and_changes_no_other_draw() -> None:
    plain, changed = DATA, dataclasses.replace(DATA, augment=(Flat(),))
    first, again, later = batch_of(changed, 0), batch_of(changed, 0), batch_of(changed, 1)
    np.testing.assert_array_equal(first["image"], again["image"])
    values = {int(image[:48, :64].max()) for batch in (first, later) for image in batch["image"]}
    assert len(values) == 4
    for name in ("boxes", "masks", "labels"):
        np.testing.assert_array_equal(first["targets"][name], batch_of(plain, 0)["targets"][name])


def turned(record: Record) -> Record:
    return dataclasses.replace(record, image=np.ascontiguousarray(record.image.transpose(1, 0, 2)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda record: None, "expected a Record, got NoneType"),
        (lambda record: record.image, "expected a Record, got ndarray"),
        (lambda record: dataclasses.replace(record, image=record.image / 255), r"uint8 RGB, got \(48, 64, 3\) float64"),
        (lambda record: dataclasses.replace(record, annotations=({},)), "expected annotations that are Annotation"),
        (turned, r"same canvas, which is 64 x 96, got 64 x 48 pixels, whose canvas is 96 x 64"),
    ],
)
def test_what_an_augmentation_must_not_return(make: Callable[[Record], Any], why: str) -> None:
    data = dataclasses.replace(DATA, augment=(Returns(make),), short_side=64, long_side=96)
    record = open_source(data.train)[0]
    with pytest.raises(ValueError, match=rf"data\.augment, Returns\.augmented, image archive://0: .*({why})"):
        augmented(record, data, np.random.default_rng(0))
