"""Weights to give away: all that it takes to use them, and nothing else."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.publish import main, publish
from jaxdet.checkpoints.reading import DamagedCheckpoint, load
from jaxdet.checkpoints.store import CheckpointStore

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)
METADATA = {"version": "x", "config": {"a": 1}, "categories": [{"id": 1, "name": "cat"}]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointStore(tmp_path / "run") as store:
        state = {"variables": {"params": {"w": WEIGHTS}}, "optimizer": {"m": jnp.ones(100_000)}}
        store.save(7, state, METADATA | {"meter": {"steps": 3}})
    return tmp_path / "run"


def test_weights_config_and_categories_go_and_the_rest_stays(run: Path, tmp_path: Path) -> None:
    assert main([str(run), str(tmp_path / "shared" / "mine")]) == 0
    folder = tmp_path / "shared" / "mine"
    variables, metadata = load(folder)
    np.testing.assert_array_equal(variables["params"]["w"], WEIGHTS)
    assert metadata == METADATA | {"format": 1, "step": 7}
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "metadata", "variables"]
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert import_weights(folder, {}).category_names == ("cat",)


def test_what_was_published_has_checksums_of_its_own(run: Path, tmp_path: Path) -> None:
    folder = publish(run / "checkpoints" / "7", tmp_path / "mine")
    assert all(
        name.startswith(("variables/", "metadata/")) for name in json.loads((folder / "checksums.json").read_text())
    )
    (folder / "metadata" / "metadata").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match="another content"):
        load(folder)


def test_nothing_is_overwritten_and_no_damage_goes_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    assert main([str(run), str(tmp_path / "mine")]) == 1
    assert "mine exists: expected a folder that is not there yet" in capsys.readouterr().err
    files = [path for path in (run / "checkpoints" / "7" / "variables").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match="another content"):
        publish(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()
