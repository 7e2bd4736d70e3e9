"""From a folder and minutes to an experiment: what is found, what is held out, and what follows from the time."""

import json
import shutil
from pathlib import Path

import pytest

import jaxdet.recipe as recipe
from jaxdet.config import load_config, to_data
from jaxdet.data import open_source
from jaxdet.data.scenes.write import write_scenes
from jaxdet.experiment import Experiment
from jaxdet.recipe import find_data, small_data
from jaxdet.runtime.files import write_json


@pytest.fixture(scope="module")
def base() -> Experiment:
    return load_config(Path(__file__).parent / "training" / "tiny.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "data", train=11, val=3, size=64, seed=3)
    return tmp_path / "data"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """A step takes half a second; the experiments that were timed."""
    seen: list[Experiment] = []

    def step_seconds(experiment: Experiment) -> float:
        seen.append(experiment)
        return 0.5

    monkeypatch.setattr(recipe, "step_seconds", step_seconds)
    return seen


def test_a_folder_with_both_parts_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    train, val = find_data(folder, tmp_path / "run")
    assert (len(open_source(train)), len(open_source(val))) == (11, 3)
    assert not (tmp_path / "run").exists()


def test_every_fifth_image_is_held_out_and_the_folder_stays(folder: Path, tmp_path: Path) -> None:
    (folder / "instances_val.json").unlink()
    before = sorted(folder.rglob("*"))
    train, val = find_data(folder, tmp_path / "run")
    whole = json.loads((folder / "instances_train.json").read_text())
    ids = sorted(image["id"] for image in whole["images"])
    assert open_source(val).image_ids.tolist() == [ids[4], ids[9]]
    assert sorted([*open_source(train).image_ids.tolist(), ids[4], ids[9]]) == ids
    kept = [json.loads(Path(part.annotations).read_text())["annotations"] for part in (train, val)]
    assert len(kept[0]) + len(kept[1]) == len(whole["annotations"])
    assert {a["image_id"] for a in kept[1]} <= {ids[4], ids[9]}
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_no_data_set_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "more.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected one COCO json for training.*more\.json"):
        find_data(folder, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"--data .*got none"):
        find_data(empty, tmp_path)
    few = {"images": [{"id": 1}, {"id": 2}], "annotations": [], "categories": []}
    write_json(empty / "few.json", few)
    with pytest.raises(ValueError, match="at least 5 images to hold one out, got 2"):
        find_data(empty, tmp_path)


def test_the_schedule_fills_the_time(base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment]) -> None:
    made = small_data(base, folder, 10, tmp_path / "run", ["data.batch_size=2", "run.seed=5"])
    schedule = made.optimizer.schedule
    # Three quarters of ten minutes, half a second each.
    assert (schedule.length, schedule.unit, schedule.decay) == (900, "steps", "cosine")
    assert schedule.warmup(3) == 45
    assert made.run.eval_every == 225
    assert made.run.keep_best == "segm/AP"
    assert made.model.num_classes == 8
    assert (made.data.batch_size, made.run.seed) == (2, 5)
    assert [experiment.data.batch_size for experiment in timed] == [2]  # timed with the changes
    with pytest.raises(ValueError, match="--minutes: expected a number above 0, got 0"):
        small_data(base, folder, 0, tmp_path / "other")


def test_a_run_that_goes_on_has_its_settings(
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment]
) -> None:
    made = small_data(base, folder, 1, tmp_path / "run")
    write_json(tmp_path / "run" / "config.json", to_data(made))
    assert small_data(base, folder, 30, tmp_path / "run") == made
    assert small_data(base, folder, 30, tmp_path / "run", ["run.seed=7"]).run.seed == 7  # which training refuses
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(ValueError, match="holds a run on other data; choose another --workdir"):
        small_data(base, other, 30, tmp_path / "run")
    assert len(timed) == 1
