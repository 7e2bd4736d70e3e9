"""Checkpoints come back as they were saved, on other devices too, or not at all."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.checkpoints.reading import load
from jaxdet.checkpoints.store import CheckpointStore

METADATA = {"version": "0.1.0", "config": {"class": "x", "depth": 50}, "categories": [{"id": 3, "name": "cat"}]}


def state(value=0.0):
    variables = {
        "params": {"a": {"kernel": value + jnp.arange(6.0).reshape(2, 3), "half": jnp.full(4, value, jnp.bfloat16)}},
        "batch_stats": {"a": {"mean": jnp.full(3, value, jnp.float32)}},
    }
    optimizer = optax.sgd(0.1, momentum=0.9).init(variables["params"])
    return {"variables": variables, "optimizer": optimizer, "progress": {"step": jnp.int32(value)}}


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("as_target", [shapes, lambda tree: tree])
def test_round_trip(tmp_path, as_target):
    with CheckpointStore(tmp_path) as store:
        assert store.latest_step() is None
        store.save(7, state(7), METADATA)
        restored, metadata = store.restore(as_target(state(0)))
    equal(restored, state(7))
    assert metadata == {"format": 1, "step": 7, **METADATA}


def test_part_of_the_state_and_an_older_step(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, state(step), METADATA)
        restored, metadata = store.restore({"variables": shapes(state()["variables"])}, step=1)
    equal(restored, {"variables": state(1)["variables"]})
    assert metadata["step"] == 1


def test_the_newest_stay(tmp_path):
    with CheckpointStore(tmp_path / "two", keep=2) as store, CheckpointStore(tmp_path / "all", keep=None) as every:
        for step in (1, 2, 10):
            store.save(step, state(step), METADATA)
            every.save(step, state(step), METADATA)
        store.wait()
        every.wait()
        assert store.steps() == (2, 10)
        assert every.steps() == (1, 2, 10)
    assert load(tmp_path / "two")[1]["step"] == 10  # 10 is newer than 2, whatever their names sort like


def test_saving_a_step_again_keeps_the_first(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state(1), METADATA)
        store.save(1, state(2), METADATA)
        equal(store.restore(shapes(state()))[0], state(1))


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    moving, steps = {"variables": {"params": {"w": jnp.zeros((512, 512))}}}, (0, 1, 2)
    with CheckpointStore(tmp_path, keep=None) as store:
        for step in steps:
            store.save(step, moving, METADATA)
            moving = change(moving)
        for step in steps:
            restored, _ = store.restore(shapes(moving), step)
            assert (restored["variables"]["params"]["w"] == step).all()


def test_load_gives_numpy_from_a_run_or_a_step_or_a_copy(tmp_path):
    with CheckpointStore(tmp_path / "run") as store:
        for step in (1, 2):
            store.save(step, state(step), METADATA)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "1", tmp_path / "best")
    places = {"run": 2, "run/checkpoints": 2, "run/checkpoints/1": 1, "best": 1}
    for place, step in places.items():
        variables, metadata = load(tmp_path / place)
        assert metadata["step"] == step
        assert metadata["categories"] == METADATA["categories"]
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
        equal(variables, jax.tree.map(np.asarray, state(step)["variables"]))


def test_paths_that_are_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a run folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights\.pth is a file; .*read_weights"):
        load(tmp_path / "weights.pth")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty is a folder without a finished checkpoint"):
        load(tmp_path / "empty")
    with CheckpointStore(tmp_path / "new") as store, pytest.raises(FileNotFoundError, match="no checkpoint in"):
        store.restore(shapes(state()))


def saved(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, state(step), METADATA)
    newest = tmp_path / "checkpoints" / "2"
    (newest / "checksums.json").unlink()  # what is changed below is as someone else wrote it
    return newest


def test_a_later_format_is_named(tmp_path):
    file = saved(tmp_path) / "metadata" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2, "version": "9.9"}))
    with pytest.raises(ValueError, match=r"written by jaxdet 9\.9 in format 2; this version reads up to 1"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{broken", "[]", "{}", '{"format": "1"}'])
def test_metadata_that_is_not_ours(tmp_path, content):
    (saved(tmp_path) / "metadata" / "metadata").write_text(content)
    with pytest.raises(ValueError, match=r"2 is not a (complete )?jaxdet checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize("damaged", ["d", "variables"])  # the arrays, the lists of what there is
def test_damage_is_an_error_that_names_the_other_checkpoints(tmp_path, damaged):
    # One leaf: with more, orbax's readers of the others outlive its event loop and complain in the background.
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, {"variables": {"params": {"w": jnp.full(1000, step)}}}, METADATA)
    for file in (tmp_path / "checkpoints" / "2" / "variables").rglob("*"):
        if file.is_file() and file.parent.name == damaged:
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot restore .*2: (?s:.*) Other checkpoints beside it: \[1\]"):
        load(tmp_path)
    assert (load(tmp_path / "checkpoints" / "1")[0]["params"]["w"] == 1).all()


def test_a_target_that_does_not_fit(tmp_path):
    saved(tmp_path)
    other = shapes(state())
    other["variables"]["params"]["a"]["kernel"] = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    other["variables"]["params"]["b"] = {"half": other["variables"]["params"]["a"].pop("half")}
    other["average"] = {}
    with CheckpointStore(tmp_path) as store, pytest.raises(ValueError, match="does not fit") as caught:
        store.restore(other)
    assert str(caught.value).splitlines()[1:] == [
        "  variables/params/a/half: only stored",
        "  variables/params/a/kernel: shape (2, 3) stored, (2, 4) wanted",
        "  variables/params/b/half: only wanted",
        "  there is no average in it",
    ]


def test_the_target_decides_the_dtype(tmp_path):
    saved(tmp_path)
    target = shapes(state())
    target["variables"]["params"]["a"]["half"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    with CheckpointStore(tmp_path) as store:
        half = store.restore(target)[0]["variables"]["params"]["a"]["half"]
    assert half.dtype == jnp.float32
    assert half.tolist() == [2] * 4


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1"):
        CheckpointStore(tmp_path, keep=0)
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(ValueError, match="state must hold 'variables'"):
            store.save(1, {"params": {}}, METADATA)
        with pytest.raises(ValueError, match=r"metadata must be JSON: .*PosixPath"):
            store.save(1, state(), {"config": tmp_path})
        with pytest.raises(ValueError, match="metadata must be JSON"):
            store.save(1, state(), {"config": float("nan")})
        assert store.steps() == ()


SCRIPT = """
import os, sys, time
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxdet.checkpoints.store import CheckpointStore
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
store = CheckpointStore(sys.argv[1])
tree = {"variables": {"params": {"w": jax.device_put(jnp.arange(8.0), split), "b": jax.device_put(jnp.ones(3), whole)}}}
store.save(1, tree, {})
store.wait()
as_one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), tree)
restored, _ = store.restore(as_one)
assert restored["variables"]["params"]["w"].sharding == whole, restored
big = {"variables": {"params": {"w": jnp.zeros((64, 1 << 20))}}}
store.save(2, big, {})
while not any("2" in name and "tmp" in name for name in os.listdir(store.folder)):
    assert not (store.folder / "2").exists(), "the save was over before it could be killed"
    time.sleep(0.001)
os.kill(os.getpid(), 9)
"""


def test_four_devices_and_a_save_that_is_killed(tmp_path):
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # the half-written one is there
    variables, metadata = load(tmp_path)  # on one device
    assert metadata["step"] == 1
    np.testing.assert_array_equal(variables["params"]["w"], np.arange(8.0))
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == (1,)
        store.save(2, {"variables": {"params": {"w": jnp.ones(2)}}}, {})
        store.wait()
        assert store.steps() == (1, 2)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    np.testing.assert_array_equal(load(tmp_path)[0]["params"]["w"], [1, 1])


TWO_PROCESSES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxdet.checkpoints.store import CheckpointStore
folder, port, index = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
rows = jax.make_array_from_process_local_data(split, np.arange(4.0, dtype=np.float32) + 4 * int(index))
tree = {"variables": {"params": {"rows": rows}}, "progress": {"step": jax.device_put(np.int32(1), whole)}}
with CheckpointStore(folder) as store:
    store.save(1, tree, {})
    target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), tree)
    restored, _ = store.restore(target)
    assert np.asarray(restored["variables"]["params"]["rows"]).tolist() == list(range(8))
    store.save(2, tree | {"progress": {"step": jax.device_put(np.int32(2), whole)}}, {})
    store.wait()
    if index == "0":
        (store.folder / "2" / "metadata" / "metadata").write_text("{}")
    restored, _ = store.restore_newest(target)  # both go on from the same one
    assert int(restored["progress"]["step"]) == 1
    assert store.steps() == (1,)
    assert (store.folder / "2.damaged").is_dir()
"""


def test_two_processes_write_one_checkpoint(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    commands = [[sys.executable, "-c", TWO_PROCESSES, str(tmp_path), port, str(index)] for index in range(2)]
    running = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:  # one that waits for a partner that failed
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    np.testing.assert_array_equal(load(tmp_path)[0]["params"]["rows"], np.arange(8.0))
