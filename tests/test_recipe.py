"""From a folder and minutes to an experiment: what is found, what is held out, and what follows from the time."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxdet.recipe as recipe
from jaxdet.commands.train import main as train_command
from jaxdet.config import load_config, to_data
from jaxdet.data import CocoFolder, Data, LargeScaleJitter, open_source
from jaxdet.data.scenes.write import write_scenes
from jaxdet.experiment import Experiment
from jaxdet.recipe import (
    Photos,
    default_base,
    describe,
    evaluations,
    find_data,
    refuse_begun,
    seen_side,
    small_data,
    training_side,
)
from jaxdet.runtime.files import write_json
from jaxdet.training.workdir import locked


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
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment], caplog: pytest.LogCaptureFixture
) -> None:
    run, other = tmp_path / "run", shutil.copytree(folder, tmp_path / "other")
    made = small_data(base, folder, 1, run)
    write_json(run / "config.json", to_data(made))
    assert small_data(base, folder, 2, run) != made  # nothing is lost before the first checkpoint
    assert len(timed) == 2
    with pytest.raises(ValueError, match=f"is the folder of a run on {folder}; choose another --workdir"):
        small_data(base, other, 2, run)
    (run / "checkpoints" / "3").mkdir(parents=True)
    assert small_data(base, folder, 2, run) == made
    assert "was begun for" not in caplog.text
    assert small_data(base, folder, 30, run, ["run.seed=7"]).run.seed == 7  # which training refuses
    assert "--minutes 30: " in caplog.text
    assert "was begun for 2 minutes" in caplog.text
    (run / "small_data.json").unlink()  # of a run of another command
    with pytest.raises(ValueError, match="holds a run on other data; choose another --workdir"):
        small_data(base, other, 30, run)
    assert len(timed) == 2


def test_a_config_does_not_begin_in_the_folder_of_a_data_set(
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    refuse_begun(run)  # nobody's yet
    small_data(base, folder, 1, run)
    before = sorted(run.rglob("*"))
    config = Path(__file__).parent / "training" / "tiny.py"
    assert train_command(["--config", str(config), "--workdir", str(run)]) == 1
    said = capsys.readouterr().err
    assert f"{run} is the folder of a run on {folder}; go on with that by --data {folder}, choose another" in said
    assert sorted(run.rglob("*")) == before
    (run / "checkpoints" / "3").mkdir(parents=True)
    refuse_begun(run)  # whose config says whose it is


def test_two_runs_do_not_begin_in_one_folder(
    base: Experiment, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: list[Experiment]
) -> None:
    """Not even while a step of the first one is timed; and what is no data set makes no folder."""
    monkeypatch.setattr("jaxdet.training.workdir._PATIENCE", 0)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="expected no other run in this folder"):
        small_data(base, folder, 1, tmp_path / "run")
    with pytest.raises(ValueError, match="expected a folder with annotated photos"):
        small_data(base, tmp_path / "none", 1, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_training_refuses_is_refused_before_a_step_is_timed(
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment]
) -> None:
    """To compile a step takes minutes, and the folder of a run that never was is not claimed."""
    with pytest.raises(FileNotFoundError, match=r"\(run\.init_from\): none\.pth does not exist"):
        small_data(base, folder, 1, tmp_path / "run", ["run.init_from=none.pth"])
    convs = {"conv1.weight": np.zeros((8, 3, 7, 7)), "layer1.0.conv1.weight": np.zeros((8, 8, 3, 3))}
    np.savez(tmp_path / "some.npz", **convs)
    with pytest.raises(ValueError, match=r"init_from=.*some\.npz: the weights do not fit the model"):
        small_data(base, folder, 1, tmp_path / "run", [f"run.init_from={tmp_path / 'some.npz'}"])
    shutil.move(folder / "images", folder / "elsewhere")
    with pytest.raises(ValueError, match="expected a file for every image, got none for 11 of them"):
        small_data(base, folder, 1, tmp_path / "other")
    assert not (tmp_path / "other" / "small_data.json").exists()
    assert not timed


def test_a_time_for_few_steps_is_warned_of(
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment], caplog: pytest.LogCaptureFixture
) -> None:
    """At half a second a step three quarters of a minute are 90 steps, and 600 take 6 and two thirds of them."""
    made = small_data(base, folder, 1, tmp_path / "run")
    assert made.run.eval_every == 23  # after 23, 46, 69 and all: four times
    assert "90 steps teach a model little; --minutes 7 would be 600 steps here" in caplog.text
    caplog.clear()
    small_data(base, folder, 2, tmp_path / "run")
    assert "teach a model little" not in caplog.text


def test_it_is_evaluated_as_often_as_there_is_time() -> None:
    assert [evaluations(seconds, 150) for seconds in (1, 40, 80, 120, 1000)] == [4, 4, 2, 1, 1]


def test_many_photos_for_validation_are_judged_less_often(
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment], caplog: pytest.LogCaptureFixture
) -> None:
    """A step of one photo takes half a second, so that three photos take half a second at the same size."""
    caplog.set_level("INFO")
    made = small_data(base, folder, 0.1, tmp_path / "run", ["data.batch_size=1"])
    zoom = made.data.short_side / made.data.train_sides[0]
    wanted = evaluations(0.5 * zoom**2, 1.5)
    assert wanted < 4
    assert f"and {wanted} evaluation" in caplog.text
    assert made.run.eval_every == -(-made.optimizer.schedule.length // wanted)


def photos(**changes: Any) -> Photos:
    settings: dict[str, Any] = {
        "images": 60,
        "classes": 2,
        "short_side": 480,
        "crowded": 9,
        "small": 0.1,
        "typical": 3.0,
    }
    return Photos(**settings | changes)


def test_a_data_set_is_described_in_its_own_pixels(tmp_path: Path) -> None:
    """Two photos, 100 and 300 pixels high, with objects of 10, 20 and 30 pixels; a crowd region does not count."""
    boxes = [(1, 10, 0), (1, 20, 0), (2, 30, 0), (2, 90, 1)]
    entries = [
        {"id": n, "image_id": image, "category_id": 5, "bbox": [0, 0, side, side], "area": side**2, "iscrowd": crowd}
        | {"segmentation": [[0, 0, side, 0, side, side]]}
        for n, (image, side, crowd) in enumerate(boxes, start=1)
    ]
    for n in (1, 2):
        Image.new("RGB", (400, (100, 300)[n - 1])).save(tmp_path / f"{n}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 400, "height": (100, 300)[n - 1]} for n in (1, 2)]
    content = {"images": images, "annotations": entries, "categories": [{"id": 5, "name": "box"}]}
    write_json(tmp_path / "truth.json", content)
    found = describe(open_source(CocoFolder(str(tmp_path), str(tmp_path / "truth.json"))))
    assert (found.images, found.classes, found.short_side, found.crowded, found.typical) == (2, 1, 200, 2, 1.5)
    # Sides are 0.1, 0.2 and 0.1 of their photos, of which a tenth is at most the least.
    assert found.small == pytest.approx(0.1)


def test_small_objects_are_seen_larger_than_training_canvases_show_whole_photos() -> None:
    assert seen_side(photos(small=0.2), 256) == 256  # 24 pixels at 120, which is below what training has
    assert seen_side(photos(small=0.06), 256) == 384  # 24 / 0.06 = 400, in whole strides
    assert seen_side(photos(small=0.01), 192) == 384  # twice the canvas of training at most
    assert seen_side(photos(small=0.01, short_side=300), 192) == 288  # no photo is enlarged
    assert seen_side(photos(small=0.01, short_side=100), 192) == 192


def test_canvases_grow_with_the_time() -> None:
    data = Data(short_side=256, long_side=352)
    assert training_side(photos(), data, 1.0, 600) == 256  # exactly enough steps
    assert training_side(photos(), data, 1.0, 599) == 224
    assert training_side(photos(), data, 1.0, 1) == 192
    assert training_side(photos(), data, 1.0, 1e6) == 320  # outlines need no more
    assert training_side(photos(small=0.05), data, 1.0, 1e6) == 480  # 24 pixels of the small objects, and the photos'
    assert training_side(photos(small=0.01, short_side=5000), data, 1.0, 1e6) == 640


def test_settings_follow_from_the_data(base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment]) -> None:
    """A little time: small canvases, on which parts are shown as large as evaluation shows them."""
    made = small_data(base, folder, 10, tmp_path / "run", ["data.train_sides=32,32"])
    data, source = made.data, open_source(made.data.train or CocoFolder("", ""))
    assert data.train_sides == (32, 32)
    assert data.max_boxes == max(int(source.usable.max()), 10)
    assert isinstance(data.augment[0], LargeScaleJitter)


def test_a_long_time_is_not_used_up_on_few_photos(
    base: Experiment, folder: Path, tmp_path: Path, timed: list[Experiment]
) -> None:
    """Eleven photos in batches of 2, half a second a step: 3000 steps are enough, a day or not."""
    made = small_data(base, folder, 24 * 60, tmp_path / "run")
    assert made.optimizer.schedule.length == 3000


def test_a_model_and_its_weights_for_the_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    small = default_base()
    assert (small.run.init_from, small.data.short_side) == ("resnet18", 256)
    part: Any = small.model.parts[0]
    assert part.heads[0].head.convs == 2  # which a step's time is better spent without
    monkeypatch.setattr(recipe, "all_devices", lambda: [SimpleNamespace(platform="gpu")])
    large = default_base()
    assert (large.run.init_from, large.run.init_new_classes) == ("maskrcnn_resnet50_fpn_v2", True)
    model: Any = large.model
    assert model.heads[0].extractor.aligned is False  # what these weights were trained with


def test_either_a_config_or_data_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_command(["run.seed=1"])
    assert "expected --config NAME, or --data DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_command(["--config", "demo", "--minutes", "5"])
    assert "--minutes: expected --data DIR with it" in capsys.readouterr().err
    for flags in (["--distributed"], ["--process-id", "0"]):
        with pytest.raises(SystemExit):
            train_command(["--data", "photos", *flags])
        assert "--data: expected one process, whose steps are timed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--writer", "wandb"], "pip install 'jaxdet[wandb]'"),
        (["--profile", "5"], "--profile: expected the first and the last step to trace"),
    ],
)
def test_wrong_flags_make_no_folder(
    flags: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    assert train_command(["--data", str(folder), "--workdir", str(tmp_path / "run"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
