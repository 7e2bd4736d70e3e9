"""Semantic maps: from a png to the target of a batch."""

import dataclasses
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxdet.config import override
from jaxdet.data import CocoFolder, Data, Scenes, Tfds, eval_batches, open_source, train_batches
from jaxdet.data.check import check, main
from jaxdet.data.pipeline.transforms import IGNORED, view_of
from jaxdet.data.scenes.drawing import GROUNDS
from jaxdet.data.scenes.shapes import KINDS
from jaxdet.data.scenes.write import make_scene


def slow(classes: np.ndarray, data: Data, flip: bool) -> np.ndarray:
    """Resized, mirrored, laid on the canvas, every eighth pixel: one after the other, at full size."""
    view = view_of(classes.shape, data, flip)
    resized = cv2.resize(classes, view.hw[::-1], interpolation=cv2.INTER_NEAREST)
    canvas = np.full(view.canvas, 255, np.uint8)
    for y in range(view.hw[0]):
        for x in range(view.hw[1]):
            canvas[y, x] = resized[y, view.hw[1] - 1 - x if flip else x]
    height, width = view.canvas
    return np.array([[canvas[y, x] for x in range(0, width, 8)] for y in range(0, height, 8)])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("hw", [(40, 57), (33, 20), (100, 131), (64, 64)])
@pytest.mark.parametrize("multiple", [32, 1])
def test_the_target_is_every_eighth_pixel_of_the_canvas(hw, flip, multiple):
    data = Data(short_side=64, long_side=90, pad_multiple=multiple)
    classes = np.random.default_rng(0).integers(0, 256, hw, dtype=np.uint8)
    np.testing.assert_array_equal(view_of(hw, data, flip).semantic(classes), slow(classes, data, flip))


def test_a_target_by_hand():
    data = Data(short_side=16, long_side=24, pad_multiple=32)
    classes = np.repeat(np.repeat(np.uint8([[1, 2, 3], [4, 5, 255]]), 4, axis=0), 4, axis=1)  # made twice as large
    np.testing.assert_array_equal(
        view_of((8, 12), data).semantic(classes), [[1, 2, 3, 255], [4, 5, 255, 255]] + [[255] * 4] * 2
    )
    np.testing.assert_array_equal(
        view_of((8, 12), data, flip=True).semantic(classes), [[3, 2, 1, 255], [255, 5, 4, 255]] + [[255] * 4] * 2
    )


@pytest.fixture(scope="module")
def semantic_scenes(tmp_path_factory) -> Scenes:
    return Scenes("train", 6, 96, 3, (1.5, 0.75), str(tmp_path_factory.mktemp("scenes")), semantic=True)


def test_a_scene_shows_in_its_map_what_it_shows(semantic_scenes):
    seen = set()
    for number in range(40):
        scene = make_scene(semantic_scenes, number)
        ground = np.ones(scene.semantic.shape, bool)
        for instance in scene.instances:
            assert (scene.semantic[instance.mask] == instance.kind).all()
            ground &= ~instance.mask
        (kind,) = np.unique(scene.semantic[ground])
        assert kind in (len(KINDS), len(KINDS) + 1)
        seen.add(int(kind) - len(KINDS))
    assert seen == set(range(len(GROUNDS)))


def test_maps_change_nothing_else(semantic_scenes):
    plain, mapped = (open_source(dataclasses.replace(semantic_scenes, semantic=s)) for s in (False, True))
    for index in range(len(plain)):
        np.testing.assert_array_equal(plain[index].image, mapped[index].image)
        assert plain[index].annotations == mapped[index].annotations
        assert plain[index].semantic is None
        np.testing.assert_array_equal(mapped[index].semantic, make_scene(semantic_scenes, index).semantic)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_carry_the_maps_of_their_images(semantic_scenes, small, workers):
    source = open_source(semantic_scenes)
    data = dataclasses.replace(small, workers=workers, flip_probability=0.0)
    with train_batches(source, data, seed=0, start_step=0, steps=3) as batches:
        for batch in batches:
            assert batch.targets.semantic.dtype == np.uint8
            assert batch.targets.semantic.shape == (4, *(side // 8 for side in batch.image.shape[1:3]))
            for index, target in zip(batch.index, batch.targets.semantic, strict=True):
                expected = IGNORED if index < 0 else slow(source[int(index)].semantic, data, False)
                np.testing.assert_array_equal(target, np.broadcast_to(expected, target.shape))
    with eval_batches(source, data, batch_size=4) as batches:
        assert all(batch.targets is None for batch in batches)


def test_batches_without_maps_have_none(scenes, small):
    with train_batches(scenes, small, seed=0, start_step=0, steps=1) as batches:
        assert next(batches).targets.semantic is None


def _stuff(coco, pixels: np.ndarray, mode: str | None = None) -> CocoFolder:
    folder = coco.folder / "stuff"
    folder.mkdir()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(folder / "a.png")
    return CocoFolder(str(coco.folder / "images"), coco.annotations, str(folder))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_map_is_named_as_its_image(coco, one_box, mode):
    coco.image("a.jpg")
    one_box["images"][0]["file_name"] = "a.jpg"
    coco.write(one_box)
    classes = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    folder = _stuff(coco, classes)
    if mode == "P":  # a palette gives colours to classes, which do not count
        image = Image.fromarray(classes)
        image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(coco.folder / "stuff" / "a.png")
    np.testing.assert_array_equal(open_source(folder)[0].semantic, classes)


SPOILT = {
    "semantic map missing": lambda folder: (folder / "a.png").unlink(),
    "semantic map unreadable": lambda folder: Image.new("RGB", (30, 20)).save(folder / "a.png"),
    "semantic map of another size": lambda folder: Image.new("L", (20, 30)).save(folder / "a.png"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_map_is_named_and_found(coco, one_box, kind, capsys):
    coco.write(one_box)
    folder = _stuff(coco, np.zeros((20, 30), np.uint8))
    arguments = [folder.annotations, "--images", folder.images, "--stuff", str(folder.stuff)]
    assert main(arguments) == 0
    SPOILT[kind](coco.folder / "stuff")
    with pytest.raises(ValueError, match=r"a\.png"):
        open_source(folder)[0]
    found = check(folder.annotations, folder.images, stuff=folder.stuff).findings
    assert Counter(f.kind for f in found if f.severity == "error") == {kind: 1}
    assert main(arguments) == 1
    assert "semantic map" in capsys.readouterr().out


def test_tfds_offers_no_maps():
    with pytest.raises(ValueError, match=r"unknown key 'train\.stuff'"):
        override(Data(train=Tfds("data", "train")), ["train.stuff=maps"])


def test_aspects_that_differ_little_have_their_own_folder(tmp_path):
    for aspects in ((1.0,), (1.0000001,), (1.0, 1.5)):
        open_source(Scenes("val", 1, 48, aspects=aspects, directory=str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 3
