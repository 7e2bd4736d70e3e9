import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.data import CocoFolder, eval_batches, load_image, open_source, single_batch, train_batches
from jaxdet.data.pipeline.plans import own_positions, train_plan
from jaxdet.data.pipeline.ready import check_trainable
from jaxdet.data.settings import Mosaic
from jaxdet.structures import Batch


def _same(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _take(source, data, *, start, count, **options) -> list[Batch]:
    with train_batches(source, data, seed=5, start_step=start, steps=count, **options) as batches:
        return list(batches)


@pytest.fixture(scope="module")
def reference(scenes):
    from jaxdet.data import Data

    data = Data(short_side=64, long_side=96, batch_size=4, max_boxes=8, mask_size=28, workers=0)
    return _take(scenes, data, start=0, count=9)


def test_shapes_and_types(scenes, small, reference):
    for batch in reference:
        assert batch.image.shape in ((4, 64, 96, 3), (4, 96, 64, 3))
        assert batch.targets.masks.values.shape == (4, 8, 28, 28)
        assert batch.valid[0]
        np.testing.assert_array_equal(batch.targets.valid.any(axis=1), batch.valid)
        types = {leaf.dtype.name for leaf in jax.tree.leaves(batch)}
        assert types == {"uint8", "float32", "int32", "bool"}
    assert len({batch.image.shape for batch in reference}) == 2


def test_some_are_mirrored_and_some_not(scenes, small):
    plain, mirrored = (
        _take(scenes, dataclasses.replace(small, flip_probability=p), start=0, count=1)[0] for p in (0.0, 1.0)
    )
    mixed = _take(scenes, small, start=0, count=8)
    for slot in range(4):
        width = int(plain.true_hw[slot, 1])
        np.testing.assert_array_equal(plain.image[slot, :, :width], mirrored.image[slot, :, :width][:, ::-1])
    unlike = [
        (batch.image != other.image).any()
        for batch, other in zip(
            mixed, _take(scenes, dataclasses.replace(small, flip_probability=0), start=0, count=8), strict=True
        )
    ]
    assert any(unlike)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(scenes, small, reference, workers):
    data = dataclasses.replace(small, workers=workers)
    for batch, expected in zip(_take(scenes, data, start=0, count=9), reference, strict=True):
        _same(batch, expected)


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (6, 0), (4, 2)])
def test_resume_needs_the_step_number_only(scenes, small, reference, start, workers):
    resumed = _take(scenes, dataclasses.replace(small, workers=workers), start=start, count=9 - start)
    for batch, expected in zip(resumed, reference[start:], strict=True):
        _same(batch, expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch(scenes, small, reference, processes):
    parts = [
        _take(scenes, small, start=2, count=2, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    for step in range(2):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part[step] for part in parts])
        _same(joined, reference[2 + step])


class _OfAHost:
    """A source whose images are there for some positions alone; one of them is broken."""

    def __init__(self, source, own, broken):
        self.source, self.own, self.broken = source, own, broken

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        assert index in self.own, f"image {index} lies on another host"
        if index == self.broken:
            raise ValueError("broken")
        return self.source[index]


def test_a_host_reads_its_own_shards_alone(scenes, small):
    """Images that fill batches, that are mixed in and that stand for broken ones are of the shard too."""
    data = dataclasses.replace(small, shards=2, skip_broken=True, augment=(Mosaic(0.3),))
    plan = train_plan(scenes, data, 5)
    # Of the part with the most images, among which others can stand for it.
    alike = [plan.of_canvas(slot, int(bucket[0])) for slot in (0, 2) for bucket in plan.buckets]
    broken, count = int(max(alike, key=len)[0]), 2 * plan.steps_per_epoch
    whole = _take(_OfAHost(scenes, range(len(scenes)), broken), data, start=0, count=count)
    parts = []
    for index in range(2):
        source = _OfAHost(scenes, own_positions(len(scenes), data, index, 2), broken)
        parts.append(_take(source, data, start=0, count=count, process_index=index, process_count=2))
    for step, batch in enumerate(whole):
        _same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part[step] for part in parts]), batch)
    assert sum(int(batch.counts["skipped_images"].sum()) for batch in whole) > 0
    assert not all(batch.valid[:2].any() and batch.valid[2:].any() for batch in whole), "no shard had to be filled"


def test_a_host_is_asked_for_the_files_of_its_shards(scenes_folder, small, tmp_path):
    images, data = tmp_path / "images", dataclasses.replace(small, shards=2)
    shutil.copytree(scenes_folder / "images", images)
    source = open_source(CocoFolder(str(images), str(scenes_folder / "instances_train.json")))
    names = [image["file_name"] for image in source.ground_truth()["images"]]
    for index in own_positions(len(source), data, 1, 2):
        (images / names[index]).unlink()
    check_trainable(source, data, 0, 2)
    with pytest.raises(ValueError, match=r"data\.train: expected a file for every image, got none for"):
        check_trainable(source, data, 1, 2)


def test_a_shard_without_a_canvas_is_refused(scenes, small):
    with pytest.raises(ValueError, match=r"each of the 12 shards, shard \d+ has none like image \d+ of \d+ x \d+"):
        train_plan(scenes, dataclasses.replace(small, shards=12, batch_size=12), 0)


@pytest.mark.parametrize(("batch_size", "processes", "workers"), [(4, 1, 0), (4, 2, 0), (4, 4, 0), (8, 2, 0)])
def test_an_epoch_has_every_image_once(scenes, small, batch_size, processes, workers):
    """Two epochs whose buckets are no multiples of the batch, counted over all processes."""
    data = dataclasses.replace(small, batch_size=batch_size, workers=workers)
    trainable = np.flatnonzero(scenes.usable > 0).tolist()
    landscape = scenes.sizes[trainable, 1] > scenes.sizes[trainable, 0]
    assert all(count % batch_size for count in (landscape.sum(), (~landscape).sum()))
    steps = sum(-(-count // batch_size) for count in (landscape.sum(), (~landscape).sum()))
    parts = [
        _take(scenes, data, start=0, count=2 * steps, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    for epoch in (0, 1):
        batches = [batch for part in parts for batch in part[epoch * steps : (epoch + 1) * steps]]
        seen = [int(index) for batch in batches for index in batch.index[batch.valid]]
        assert sorted(seen) == trainable
    for step in zip(*parts, strict=True):
        assert len({batch.image.shape for batch in step}) == 1
        assert all(len(batch.valid) == batch_size // processes for batch in step)


def test_a_slot_that_fills_a_batch_repeats_an_image_without_its_truth(scenes, small):
    data = dataclasses.replace(small, batch_size=16, flip_probability=0.0)
    for batch in _take(scenes, data, start=0, count=2):
        images = [image.tobytes() for image in batch.image]
        for slot in np.flatnonzero(~batch.valid):
            assert images[slot] == images[slot % batch.valid.sum()]
            assert batch.index[slot] == -1
            assert not batch.targets.valid[slot].any()
        assert not batch.valid.all()


def test_dropped_instances_are_counted_and_logged(scenes, small, caplog):
    data = dataclasses.replace(small, max_boxes=2, flip_probability=0.0)
    with caplog.at_level(logging.WARNING), train_batches(scenes, data, seed=0, start_step=0, steps=3) as batches:
        taken = list(batches)
        dropped = batches.dropped
    expected = 0
    for batch in taken:
        for index in batch.index[batch.valid]:
            expected += max(len([a for a in scenes[int(index)].annotations]) - 2, 0)
    assert dropped == expected > 0
    assert "more than 2 instances" in caplog.text
    assert f"{expected} instances had no slot" in caplog.text


@pytest.mark.parametrize(
    ("batch_size", "processes", "workers"), [(1, 1, 0), (4, 1, 0), (4, 2, 0), (6, 3, 0), (8, 4, 0), (4, 1, 2)]
)
def test_evaluation_sees_every_image_once(scenes, small, batch_size, processes, workers):
    data = dataclasses.replace(small, workers=workers)
    parts = []
    for index in range(processes):
        with eval_batches(scenes, data, batch_size=batch_size, process_index=index, process_count=processes) as batches:
            assert len(batches) == batches.steps_per_epoch
            parts.append(list(batches))
    seen = [int(i) for part in parts for batch in part for i in batch.index[batch.valid]]
    assert sorted(seen) == list(range(len(scenes)))
    for step in zip(*parts, strict=True):
        assert len({batch.image.shape for batch in step}) == 1
        assert all(batch.targets is None for batch in step)
        assert all(len(batch.valid) == batch_size // processes for batch in step)


def test_slots_without_an_image_are_harmless(scenes, small):
    with eval_batches(scenes, small, batch_size=64) as batches:
        for batch in batches:
            empty = ~batch.valid
            assert empty.any()
            assert not batch.image[empty].any()
            assert (batch.index[empty] == -1).all()
            assert (batch.true_hw > 0).all()
            assert (batch.scale > 0).all()


def test_a_closed_iterator_is_at_its_end(scenes, small):
    batches = train_batches(scenes, dataclasses.replace(small, workers=1), seed=0, start_step=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_record_arrives_and_names_it(coco, one_box, small, workers):
    one_box["annotations"][0]["segmentation"] = [[1, 2, 3]]
    source = open_source(coco.write(one_box))
    data = dataclasses.replace(small, min_side=0, workers=workers)
    with train_batches(source, data, seed=0, start_step=0) as batches, pytest.raises(ValueError, match=r"a\.png"):
        next(batches)


def test_bad_arguments_are_refused(scenes, small):
    with pytest.raises(ValueError, match="start_step"):
        train_batches(scenes, small, seed=0, start_step=-1)
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        train_batches(scenes, small, seed=0, start_step=0, process_count=3)


def test_a_single_image_is_as_evaluation_sees_it(scenes_folder, small):
    source = open_source(CocoFolder(str(scenes_folder / "images"), str(scenes_folder / "instances_val.json")))
    with eval_batches(source, small, batch_size=1) as batches:
        expected = next(batches)
    image = load_image(source.store.image_path(int(expected.index[0])))
    single = single_batch(image, small)
    _same(dataclasses.replace(single, index=expected.index), expected)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(image, small):
    with pytest.raises(ValueError, match="load_image"):
        single_batch(image, small)


_SCRIPT = """
import sys
from jaxdet.data import CocoFolder, Data, eval_batches, open_source, train_batches

def main(images, annotations):
    source = open_source(CocoFolder(images, annotations))
    data = Data(short_side=160, long_side=160, batch_size=4, max_boxes=8, workers=2)
    with eval_batches(source, data, batch_size=4) as batches:
        print(sum(int(batch.valid.sum()) for batch in batches))
    with train_batches(source, data, seed=0, start_step=0) as batches:
        next(batches)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def test_a_script_with_workers_ends_silently(scenes_folder, tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    paths = [str(scenes_folder / "images"), str(scenes_folder / "instances_train.json")]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *paths],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("13\n", "")
