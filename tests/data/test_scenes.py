import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxdet.data import Scenes, open_source, write_scenes
from jaxdet.data.masks import decode_mask
from jaxdet.data.scenes.shapes import KINDS
from jaxdet.data.scenes.write import _box, folder_of, make_scene


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_scenes(tmp_path / name, train=2, val=1, size=64, seed=seed)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")


def test_a_scene_does_not_depend_on_how_many_there_are():
    few, many = (make_scene(Scenes(count=count, size=64), 1) for count in (2, 50))
    np.testing.assert_array_equal(few.image, many.image)


def test_splits_share_no_scene():
    train, val = (make_scene(Scenes(split=split, size=64), 0) for split in ("train", "val"))
    assert (train.image != val.image).any()


@pytest.fixture(scope="module")
def drawn():
    return [make_scene(Scenes(size=160), number) for number in range(150)]


def test_masks_are_visible_parts(drawn):
    for scene in drawn:
        masks = np.array([instance.mask for instance in scene.instances]).reshape(-1, *scene.image.shape[:2])
        assert masks.sum(axis=0).max(initial=0) <= 1
        assert all(mask.sum() >= 60 for mask, i in zip(masks, scene.instances, strict=True) if not i.crowd)


def test_the_mix_is_what_the_module_promises(drawn):
    instances = [instance for scene in drawn for instance in scene.instances]
    masks = [instance.mask.astype(np.uint8) for instance in instances if not instance.crowd]
    areas = np.array([mask.sum() for mask in masks])
    assert {instance.kind for instance in instances} == set(range(len(KINDS)))
    assert 0.1 < (areas < 32**2).mean() < 0.5
    assert (areas > 96**2).sum() >= 5
    assert any(instance.crowd for instance in instances)
    assert any(not scene.instances for scene in drawn)
    assert sum(cv2.connectedComponents(mask)[0] > 2 for mask in masks) > 20
    assert sum(_has_hole(mask) for mask in masks) > 20


def _has_hole(mask: np.ndarray) -> bool:
    outside = 1 - np.pad(mask, 1)
    return cv2.connectedComponents(outside, connectivity=4)[0] > 2


def test_aspects_and_size():
    shapes = {make_scene(Scenes(size=100, aspects=(2.0, 0.5, 1.0)), n).image.shape[:2] for n in range(20)}
    assert shapes == {(50, 100), (100, 50), (100, 100)}


def test_scenes_without_the_setting_stay_what_they_are():
    """The boxes (x, y, width, height) of the nearest objects, which are drawn last, as before objects could huddle."""
    boxes = [_box(make_scene(Scenes(size=64), number).instances[-1].mask) for number in range(3)]
    assert boxes == [[33, 7, 28, 30], [14, 41, 46, 14], [27, 0, 31, 21]]


def _overlapping(instances):
    """How many of the objects of an image have an IoU of 0.2 or more with another, by counting pixels of boxes."""
    covered = []
    for instance in instances:
        if not instance.crowd:
            x, y, width, height = _box(instance.mask)
            covered.append(np.zeros_like(instance.mask))
            covered[-1][y : y + height, x : x + width] = True
    huddled = [any(a is not b and (a & b).sum() >= 0.2 * (a | b).sum() for b in covered) for a in covered]
    return sum(huddled), len(covered)


def test_objects_huddle_where_they_are_asked_to():
    """As many as asked for and those that overlap by chance; of most scenes as many are left as without."""
    counts = {}
    for huddled in (0.0, 1.0):
        scenes = [make_scene(Scenes(size=96, huddled=huddled), number).instances for number in range(40)]
        found = np.array([_overlapping(instances) for instances in scenes]).sum(0)
        counts[huddled] = found[0] / found[1], found[1]
        assert all(i.mask.sum() >= 60 for instances in scenes for i in instances if not i.crowd)
    assert counts[0.0][0] < 0.85
    assert counts[1.0][0] > 0.93
    assert counts[1.0][1] > 0.75 * counts[0.0][1]


def test_scenes_that_huddle_have_a_folder_of_their_own(tmp_path):
    folders = [folder_of(Scenes(directory=str(tmp_path), huddled=share)) for share in (0.0, 0.5, 0.7)]
    assert len(set(folders)) == 3
    assert folders[0].name == "scenes-v3-train-1000-160-0-1"


def test_files_are_what_was_drawn(scenes_folder, scenes):
    settings = Scenes("train", 13, 96, 3, (1.5, 0.75))
    for number in range(len(scenes)):
        scene, record = make_scene(settings, number), scenes[number]
        assert np.abs(record.image.astype(int) - scene.image).mean() < 4  # JPEG
        for annotation, instance in zip(record.annotations, scene.instances, strict=True):
            mask = decode_mask(annotation.segmentation, scene.image.shape[:2])
            np.testing.assert_array_equal(mask, instance.mask)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation.bbox
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert annotation.area == mask.sum()
            assert annotation.crowd == instance.crowd
    data = json.loads((scenes_folder / "instances_train.json").read_text())
    ids = [category["id"] for category in data["categories"]]
    assert ids != list(range(1, len(ids) + 1))


def test_scenes_are_written_once(tmp_path, monkeypatch):
    settings = Scenes("val", 2, 48, directory=str(tmp_path))
    first = open_source(settings)
    monkeypatch.setattr("jaxdet.data.scenes.write._write_split", None)
    np.testing.assert_array_equal(open_source(settings)[1].image, first[1].image)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    settings = Scenes("val", 2, 48, directory=str(tmp_path))
    monkeypatch.setattr("jaxdet.data.scenes.write._annotations", None)
    with pytest.raises(TypeError):
        open_source(settings)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "jaxdet.data.scenes", str(tmp_path), "--train", "2", "--val", "0", "--size", "48"]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert not (tmp_path / "instances_val.json").exists()
