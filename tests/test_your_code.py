"""Code of one's own, as docs/YOUR_CODE.md has it: trained, stored, refused, and loaded where it is trusted."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxdet.config import load_config, override
from jaxdet.data import Data
from jaxdet.training import train
from jaxdet.training.writers.jsonl import read_log
from tests.test_documents import ROOT, blocks

SETTINGS = ["data.val=none", "optimizer.schedule.length=4", "optimizer.schedule.drops=3"]
#: What another process does, in which nothing of the user's has been imported.
FRESH = f"""
import sys

import jaxdet
from jaxdet.config import load_config, override

if __name__ == "__main__":
    try:
        jaxdet.load("runs/own")
    except ValueError as refusal:
        print(refusal)
    assert not any(name.partition(".")[0] == "mine" for name in sys.modules)
    found = jaxdet.load("runs/own", trusted=["mine"])
    print(found.step, type(found.experiment.model.backbone), found.experiment.data.augment)
    config = override(load_config("own.py"), {SETTINGS!r})
    jaxdet.train(config, "runs/own", trusted=["mine"])
    print(jaxdet.load("runs/own", trusted=["mine"]).step)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in the current folder."""
    for block in blocks(ROOT / "docs" / "YOUR_CODE.md"):
        if block["file"]:
            (tmp_path / block["file"]).parent.mkdir(exist_ok=True)
            (tmp_path / block["file"]).write_text(block["text"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "mine":
            del sys.modules[name]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder in which programs stay that are compiled meanwhile, for the other process."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # jax looks at the settings once
        if values is settings:
            yield tmp_path / "compiled"


class Left(Exception):
    """Ends a run."""


def leave(step: int, metrics: dict[str, float]) -> None:
    assert {"loss", "loss/bbox", "lr"} < set(metrics)
    raise Left(f"after step {step}")


def test_the_page_trains_is_stored_and_goes_on_in_another_process(folder: Path, cache: Path) -> None:
    config = override(load_config("own.py"), SETTINGS)
    assert isinstance(config.data, Data)
    assert config.data.workers == 1  # a process of its own, which finds the augmentation and the source
    with pytest.raises(ValueError, match=r"mine\.backbone\.Plain, .* pass trusted=\['mine'\]"):
        train(config, "runs/own")
    with pytest.raises(Left, match="after step 2"):
        train(config, "runs/own", trusted=["mine"], on_step=leave)
    metadata = json.loads((folder / "runs" / "own" / "checkpoints" / "2" / "metadata" / "metadata").read_text())
    assert metadata["trusted"] == ["mine"]
    assert metadata["config"]["model"]["heads"][0]["box_loss"] == {"class": "mine.loss.LogDistance", "scale": 0.5}

    (folder / "fresh.py").write_text(FRESH)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    kept = sorted(path.name for path in cache.iterdir() if "jit_step" in path.name and path.name.endswith("-cache"))
    assert kept
    done = subprocess.run([sys.executable, "fresh.py"], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    after = sorted(path.name for path in cache.iterdir() if "jit_step" in path.name and path.name.endswith("-cache"))
    assert after == kept, "the step was compiled anew, which takes longer than all else"
    refusal, loaded, last = done.stdout.splitlines()
    names = ["mine.augmentation", "mine.source", "mine.loss", "mine.head", "mine.backbone"]
    assert all(name in refusal for name in names)
    assert "--trusted mine" in refusal
    assert "has to run on this machine" in refusal
    assert loaded == "2 <class 'mine.backbone.Plain'> (Grey(probability=0.3),)"
    assert last == "4"
    assert [entry["step"] for entry in read_log(folder / "runs" / "own")] == [2, 4]
