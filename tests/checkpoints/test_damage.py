"""Checkpoints that are not what was written: noticed, named, set aside, and the one before is used."""

import json
import logging
import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.reading import DamagedCheckpoint, damages, load
from jaxdet.checkpoints.store import CheckpointStore


def state(step):
    # One leaf an item: with more, orbax's readers of the others outlive its event loop and complain in the background.
    noise = np.random.default_rng(step).normal(size=(64, 64))
    return {"variables": {"params": {"w": jnp.asarray(noise, jnp.float32)}}, "optimizer": {"step": jnp.int32(step)}}


TARGET = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(0))


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints 1, 2 and 3."""
    with CheckpointStore(tmp_path, keep=None) as store:
        for step in (1, 2, 3):
            store.save(step, state(step), {})
    return tmp_path


def newest(run):
    with CheckpointStore(run, keep=None) as store:
        found = store.restore_newest(TARGET)
    return None if found is None else int(found[0]["optimizer"]["step"])


def data_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_whatever_happens_to_a_file_is_noticed(run):
    folder = run / "checkpoints" / "3"
    assert damages(folder) == []
    files = [path for item in folder.iterdir() for path in item.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 15
    for path in files:
        content = path.read_bytes()
        for change in (flip, cut, os.unlink):
            change(path)
            (line,) = damages(folder)
            assert str(path) in line
            path.write_bytes(content)
    assert damages(folder) == []


def test_a_flipped_bit_in_the_weights_is_an_error_that_names_the_file(run):
    path = data_file(run / "checkpoints" / "3" / "variables")
    flip(path)
    with pytest.raises(DamagedCheckpoint, match=rf"{path} has another content.*Other checkpoints beside it: \[1, 2\]"):
        load(run)
    (run / "checkpoints" / "3" / "checksums.json").unlink()
    assert not np.array_equal(load(run)[0]["params"]["w"], state(3)["variables"]["params"]["w"])  # orbax says nothing


def test_weights_are_read_whatever_has_become_of_the_optimizer(run):
    folder = run / "checkpoints" / "3"
    flip(data_file(folder / "optimizer"))
    np.testing.assert_array_equal(load(run)[0]["params"]["w"], state(3)["variables"]["params"]["w"])
    assert newest(run) == 2  # a run goes on with both
    shutil.rmtree(run / "checkpoints" / "2" / "optimizer")
    np.testing.assert_array_equal(load(run)[0]["params"]["w"], state(2)["variables"]["params"]["w"])
    flip(run / "checkpoints" / "2" / "metadata" / "metadata")
    with pytest.raises(DamagedCheckpoint, match="another content"):
        load(run)


@pytest.mark.parametrize("content", ["", "[]", "7", "[" * 100_000, '{"a": 1}', '{"\\u0000": ""}'])
def test_broken_checksums_are_damage_too(run, content):
    (run / "checkpoints" / "3" / "checksums.json").write_text(content)
    with pytest.raises(DamagedCheckpoint):
        load(run)


def test_checksums_of_other_files_are_not_looked_at(run):
    """A stranger may have written them: `/proc/self/pagemap`, say, is a file without an end."""
    folder = run / "checkpoints" / "3"
    (run / "secret").write_text("x")
    names = ["../../secret", str(run / "secret"), "/proc/self/pagemap", "a\x1b[2J\n"]
    (folder / "checksums.json").write_text(json.dumps(dict.fromkeys(names, "00000000")))
    found = damages(folder)
    assert [line.endswith(" is missing") for line in found] == [True] * len(names)
    assert all(line.isprintable() for line in found)


def test_the_newest_whole_one_counts_and_the_others_are_set_aside(run, caplog):
    folder = run / "checkpoints"
    flip(data_file(folder / "3" / "optimizer"))
    shutil.rmtree(folder / "2" / "variables")
    with caplog.at_level(logging.WARNING):
        assert newest(run) == 1
    for step in (2, 3):
        assert f"cannot restore {folder / str(step)}: it is damaged" in caplog.text
        assert f"is now {folder / str(step)}.damaged" in caplog.text
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "2.damaged", "3.damaged"]
    assert load(run)[1]["step"] == 1
    with CheckpointStore(run, keep=2) as store:  # the steps come again
        assert store.steps() == (1,)
        for step in (2, 3):
            store.save(step, state(step), {})
    assert newest(run) == 3
    flip(data_file(folder / "3"))
    assert newest(run) == 2
    names = ["2", "2.damaged", "3.damaged", "3.damaged-again"]
    assert sorted(entry.name for entry in folder.iterdir()) == names


def test_where_none_is_whole_nothing_is_touched(run):
    folder = run / "checkpoints"
    for step in (1, 2, 3):
        flip(data_file(folder / str(step)))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(DamagedCheckpoint, match=r"no checkpoint in .* is whole, and none was touched: take another"):
        newest(run)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoints_without_checksums_are_tried(run):
    """As an older version wrote them."""
    folder = run / "checkpoints"
    for step in (1, 2, 3):
        (folder / str(step) / "checksums.json").unlink()
    assert newest(run) == 3
    (folder / "3" / "metadata" / "metadata").write_text('{"format": 1,')
    path = data_file(folder / "2" / "variables")
    path.write_bytes(path.read_bytes()[:100])
    assert newest(run) == 1


def test_one_that_does_not_fit_is_not_damaged(run):
    target = {"variables": {"params": {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}}
    with CheckpointStore(run, keep=None) as store, pytest.raises(ValueError, match="does not fit"):
        store.restore_newest(target)
    assert sorted(os.listdir(run / "checkpoints")) == ["1", "2", "3"]


def test_an_unfinished_one_is_named_and_removed(run, caplog):
    folder = run / "checkpoints"
    unfinished = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", unfinished)
    with caplog.at_level(logging.WARNING):
        assert newest(run) == 3
    assert f"{unfinished} was not written to its end" in caplog.text
    deadline = time.monotonic() + 10  # orbax may remove it in a thread of its own
    while unfinished.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not unfinished.exists()


def test_an_empty_folder_has_no_newest(tmp_path):
    assert newest(tmp_path) is None
