"""Images that are broken in the middle of an epoch: an error that names them, or another in their place, counted."""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.data import CocoFolder, Data, Source, open_source, train_batches

BROKEN = (2, 7)  # positions of images


@pytest.fixture(scope="module")
def damaged(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Scenes of which two images are cut off in the middle."""
    folder = tmp_path_factory.mktemp("damaged") / "scenes"
    shutil.copytree(scenes_folder, folder)
    source = open_source(CocoFolder(str(folder / "images"), str(folder / "instances_train.json")))
    for index in BROKEN:
        path = source.store.image_path(index)
        path.write_bytes(path.read_bytes()[:300])
    return source


def epoch(source: Source, data: Data, **share: int):
    with train_batches(source, data, seed=5, start_step=0, **share) as batches:
        return [next(batches) for _ in range(2 * batches.steps_per_epoch)], batches.skipped


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_broken_image_is_an_error_that_names_its_file(damaged, small, workers):
    names = "|".join(damaged.store.image_path(index).name for index in BROKEN)
    with pytest.raises(ValueError, match=rf"image .*({names}): expected a whole image file"):
        epoch(damaged, dataclasses.replace(small, workers=workers))


def test_another_image_takes_its_place_and_the_rest_stays(damaged, scenes, small, caplog):
    with caplog.at_level(logging.WARNING):
        ours, skipped = epoch(damaged, dataclasses.replace(small, skip_broken=True))
    whole, none = epoch(scenes, dataclasses.replace(small, skip_broken=True))
    replaced = [(a, b, slot) for a, b in zip(ours, whole, strict=True) for slot in range(4) if b.index[slot] in BROKEN]
    assert skipped >= len(replaced) > 2  # a drawn one may be broken too
    assert none == 0
    for ours_, whole_, slot in replaced:
        assert ours_.index[slot] not in BROKEN
        assert ours_.image.shape == whole_.image.shape
        assert ours_.valid[slot]
        assert ours_.targets.valid[slot].any()
    for a, b in zip(ours, whole, strict=True):
        kept = b.valid & ~np.isin(b.index, BROKEN)
        jax.tree.map(lambda x, y, kept=kept: np.testing.assert_array_equal(x[kept], y[kept]), a, b)
    assert all(damaged.store.image_path(index).name in caplog.text for index in BROKEN)
    assert f"{skipped} times another image took the place of a broken one" in caplog.text


def test_replacements_depend_on_neither_workers_nor_processes(damaged, small):
    data = dataclasses.replace(small, skip_broken=True)
    expected, skipped = epoch(damaged, data)
    workers, skipped_by_workers = epoch(damaged, dataclasses.replace(data, workers=1))
    assert skipped_by_workers == skipped
    parts = [epoch(damaged, data, process_index=index, process_count=2) for index in range(2)]
    assert sum(count for _, count in parts) == skipped
    for step, batch in enumerate(expected):
        jax.tree.map(np.testing.assert_array_equal, workers[step], batch)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part[step] for part, _ in parts])
        jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_counts_are_of_the_batch(damaged, small):
    with train_batches(damaged, dataclasses.replace(small, skip_broken=True), seed=5, start_step=0, steps=8) as batches:
        counts = [int(batch.counts["skipped_images"].sum()) for batch in batches]
        assert sum(counts) == batches.skipped
    assert 0 in counts


def test_where_all_are_broken_it_is_an_error(coco, one_box, small):
    one_box["images"][0]["height"] = 21  # not that of the file
    source = open_source(coco.write(one_box))
    data = dataclasses.replace(small, min_side=0, skip_broken=True)
    with train_batches(source, data, seed=0, start_step=0) as batches, pytest.raises(ValueError, match="10 drawn in"):
        next(batches)
