"""A disk without room: a clear error, and what was written before stays whole."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxdet.checkpoints.store import CheckpointStore
from tests.disk import files_of_at_most


def weights(size: int) -> dict[str, object]:
    return {"variables": {"params": {"w": jax.random.normal(jax.random.key(0), (size,))}}}


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, weights(100), {})
    store.wait()
    message = r"checkpoint of step 2 could not be written to .*, where \d+ MB are free: .*File too large"
    with files_of_at_most(100_000):
        store.save(2, weights(100_000), {})
        with pytest.raises(OSError, match=message):
            store.wait()
        store.close()
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == (1,)
        restored = store.restore_newest({"variables": {"params": {"w": jax.ShapeDtypeStruct((100,), jnp.float32)}}})
        assert restored is not None
        store.save(2, weights(100_000), {})
    assert store.steps() == (1, 2)


SCRIPT = """
import logging, sys
from pathlib import Path
logging.getLogger("absl").setLevel(logging.CRITICAL)
import jax
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.training.log import RunLog
from jaxdet.training.writers.jsonl import JSONL, read_log
folder = Path(sys.argv[1])

def weights(size):
    return {"variables": {"params": {"w": jax.random.normal(jax.random.key(0), (size,))}}}

store = CheckpointStore(folder)
store.save(1, weights(100), {})
store.save(2, weights(1_000_000), {})
try:
    store.close()
except OSError as error:
    print(error)
for unfinished in folder.glob("checkpoints/2.*"):  # some room again, for the log
    __import__("shutil").rmtree(unfinished)
step = 0
try:
    with RunLog(folder, 0) as log:
        while True:
            step += 1
            log.scalars(step, {f"loss/{i}": 0.1 for i in range(100)})
except OSError as error:
    print(error)
lines = (folder / JSONL).read_text()
steps = [record["step"] for record in read_log(folder)]
print(lines.endswith("}\\n"), steps == list(range(1, len(steps) + 1)), step - len(steps) in (0, 1))
for unfinished in folder.glob("tensorboard/*"):
    unfinished.unlink()
with CheckpointStore(folder) as store:
    print(store.steps(), store.restore(weights(100))[1]["step"])
"""


def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """A real one of a megabyte, in a name space where this user may mount it."""
    mounted = f'mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c "$SCRIPT" {tmp_path}'
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        allowed = subprocess.run([*space, f"mount -t tmpfs none {tmp_path}"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine lets no user mount a file system of his own")
    environment = os.environ | {"SCRIPT": SCRIPT, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*space, mounted], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    checkpoint, log, lines, kept = done.stdout.splitlines()
    assert "checkpoint of step 2 could not be written" in checkpoint
    assert "No space left on device" in checkpoint
    assert log.startswith("[Errno 28] No space left on device: '")
    assert lines == "True True True"
    assert kept == "(1,) 1"
