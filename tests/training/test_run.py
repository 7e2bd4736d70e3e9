"""Whole runs of a real, tiny model: stopped and continued, refused, finished."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.reading import load
from jaxdet.config import from_data, load_config, override
from jaxdet.data import CocoFolder, open_source
from jaxdet.data.scenes.write import cached_scenes
from jaxdet.experiment import Experiment, Run
from jaxdet.runtime.mesh import data_mesh
from jaxdet.training import train
from jaxdet.training.state import init_variables
from jaxdet.training.validate import validate
from jaxdet.training.weights import with_weights
from jaxdet.training.writers import WandB
from jaxdet.training.writers.jsonl import read_log
from tests.modules import module_at
from tools.endurance import differences

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    scenes = [f"data.{split}.directory={folder / 'scenes'}" for split in ("train", "val")]
    return override(load_config(HERE / "tiny.py"), scenes)


class Terminate(logging.Handler):
    """Sends this process SIGTERM when a log line begins with a text, as a scheduler might at that moment."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.text):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(folder: Path, experiment: Experiment) -> dict[str, float]:
    return train(experiment, folder / "whole")


def test_a_run_leaves_what_it_promises(folder: Path, experiment: Experiment, whole: dict[str, float]) -> None:
    run = folder / "whole"
    assert json.loads((run / "metrics.json").read_text()) == whole
    assert {f"{kind}/{name}" for kind in ("bbox", "segm") for name in ("AP", "AP50", "AR_l")} < set(whole)
    assert len(whole) == 24
    assert "AP50" in (run / "metrics.txt").read_text()
    for name in ("curves.png", "predictions.png", "log.jsonl", "config.txt"):
        assert (run / name).stat().st_size > 0
    assert from_data(json.loads((run / "config.json").read_text())) == experiment
    variables, metadata = load(run)
    assert set(variables) == {"params", "batch_stats"}
    assert from_data(metadata["config"]) == experiment
    assert metadata["step"] == 6
    assert experiment.data.train is not None
    categories = open_source(experiment.data.train).categories
    assert metadata["categories"] == [{"id": category.id, "name": category.name} for category in categories]


def test_an_evaluation_is_announced_before_it_takes_its_time(
    experiment: Experiment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "jaxdet")
    source = open_source(experiment.data.val)

    def detect(*_: Any, **__: Any) -> list[Any]:
        assert f"evaluating {len(source)} images" in caplog.text
        raise InterruptedError

    monkeypatch.setattr("jaxdet.training.validate.detect", detect)
    with pytest.raises(InterruptedError):
        validate(experiment, {}, source, source.categories, data_mesh(), None, lambda done, total: None)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    folder: Path, experiment: Experiment, whole: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxdet")
    handler = Terminate("step 2/6")
    logging.getLogger("jaxdet").addHandler(handler)
    try:
        with pytest.raises(SystemExit) as left:
            train(experiment, folder / "stopped")
    finally:
        logging.getLogger("jaxdet").removeHandler(handler)
    assert left.value.code == 143
    _, metadata = load(folder / "stopped")
    assert 2 <= metadata["step"] <= 3
    assert not (folder / "stopped" / "metrics.json").exists()

    assert train(experiment, folder / "stopped") == whole
    ours, theirs = load(folder / "stopped")[0], load(folder / "whole")[0]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert differences(folder / "whole", folder / "stopped") == []
    steps = [json.loads(line)["step"] for line in (folder / "stopped" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 6]


def test_one_seed_is_one_run(folder: Path, experiment: Experiment, whole: dict[str, float]) -> None:
    train(experiment, folder / "again")
    assert differences(folder / "whole", folder / "again") == []


def test_a_finished_run_is_left_alone(folder: Path, experiment: Experiment, whole: dict[str, float]) -> None:
    before = (folder / "whole" / "log.jsonl").read_text()
    assert train(experiment, folder / "whole") == whole
    assert (folder / "whole" / "log.jsonl").read_text() == before


def test_scores_of_a_run_that_was_cut_short_are_those_of_the_state_it_has(
    folder: Path, experiment: Experiment, whole: dict[str, float]
) -> None:
    shutil.copytree(folder / "whole", folder / "cut")
    shorter = override(experiment, ["optimizer.schedule.length=4"])
    assert train(shorter, folder / "cut", accept_changes=True) == whole
    assert {record["step"] for record in read_log(folder / "cut") if "bbox/AP" in record} == {6}


def test_weights_of_another_run_are_a_start(
    folder: Path, experiment: Experiment, whole: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxdet")
    fresh = init_variables(experiment.model, jax.random.key(5))
    theirs = load(folder / "whole")[0]
    started, _ = with_weights(experiment.model, fresh, Run(init_from=str(folder / "whole")))
    jax.tree.map(np.testing.assert_array_equal, started, theirs)

    started, _ = with_weights(experiment.model, fresh, Run(init_from=str(folder / "whole"), init_new_classes=True))
    logits = ("params", "heads_0", "head", "logits", "kernel")
    np.testing.assert_array_equal(leaf(started, logits), leaf(fresh, logits))
    conv = ("params", "neck", "lateral3", "kernel")
    np.testing.assert_array_equal(leaf(started, conv), leaf(theirs, conv))
    assert "kept its own value: params/heads_0/head/logits/kernel" in caplog.text

    other = init_variables(experiment.model.clone(num_classes=3), jax.random.key(5))
    with pytest.raises(ValueError, match="heads_0/head/logits/kernel: shape"):
        with_weights(experiment.model, other, Run(init_from=str(folder / "whole")))


def leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def test_another_config_is_refused(folder: Path, experiment: Experiment, whole: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"optimizer.lr: 0.02 -> 0.5\n"):
        train(override(experiment, ["optimizer.lr=0.5"]), folder / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.num_classes=80", r"model.num_classes: expected 8, the categories .*, got 80"),
        ("data.train=none", r"data.train: expected a source"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    folder: Path, experiment: Experiment, change: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(override(experiment, [change]), folder / "refused")
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("split", "spoil", "message"),
    [
        ("val", lambda data: data["annotations"][0].update(segmentation=[[1, 2, 3]]), r"data\.val.*segmentation"),
        ("val", lambda data: data["annotations"].append(data["annotations"][0]), "annotation ids that differ"),
        ("val", lambda data: data["images"][0].update(file_name="gone.png"), r"data\.val.*'gone\.png'"),
        ("train", lambda data: data["images"][0].update(file_name="gone.png"), r"data\.train.*'gone\.png'"),
        (
            "train",
            lambda data: [entry.update(segmentation=[[]]) for entry in data["annotations"]],
            r"set data\.masks=false",
        ),
    ],
)
def test_data_that_would_fail_later_fail_before_the_first_step(
    folder: Path, experiment: Experiment, split: str, spoil: Any, message: str, tmp_path: Path
) -> None:
    settings = getattr(experiment.data, split)
    made = cached_scenes(settings)
    content = json.loads((made / f"instances_{split}.json").read_text())
    # An image that training sees: the first one with an instance.
    used = {entry["image_id"] for entry in content["annotations"] if not entry["iscrowd"]}
    content["images"].sort(key=lambda image: image["id"] not in used)
    spoil(content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    spoilt = CocoFolder(str(made / "images"), str(tmp_path / "instances.json"))
    data = dataclasses.replace(experiment.data, **{split: spoilt})
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(experiment, data=data), folder / "refused")
    assert not (folder / "refused").exists()


def entry_point() -> Any:
    return module_at(HERE.parents[1] / "train.py").main


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["--print-config", "optimizer.lr=0.5"], 0, "lr=0.5"),
        (["--print-config", "optimizer.lrr=0.5"], 1, "nearest valid key is 'optimizer.lr'"),
        (["optimizer.lr=x", "--print-config"], 1, "optimizer.lr: expected a number, got 'x'"),
        (
            ["data.batch_size=0"],
            1,
            "error: data.batch_size=0: Data.batch_size: expected a number from 1 to 1,000,000, got 0",
        ),
    ],
)
def test_the_entry_point_says_what_is_wrong_in_a_line(
    arguments: list[str], code: int, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(HERE / "tiny.py"), *arguments])
    assert entry_point()() == code
    shown = capsys.readouterr()
    assert output in (shown.out if code == 0 else shown.err)
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_step_is_timed_ends_in_a_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiling = threading.Event()

    def small_data(*_: Any) -> Any:
        os.kill(os.getpid(), number)
        compiling.wait(20)
        return None

    monkeypatch.setattr("jaxdet.recipe.small_data", small_data)
    arguments = ["--config", str(HERE / "tiny.py"), "--data", str(tmp_path), "--workdir", str(tmp_path / "run")]
    try:
        with pytest.raises(SystemExit) as left:
            entry_point()(arguments)
    finally:
        compiling.set()
    assert left.value.code == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == "stopped before the first step; the same command begins anew"


@pytest.mark.parametrize(
    ("listeners", "message"),
    [
        ({"profile": "3"}, "the first and the last step to trace"),
        ({"profile": "5:7"}, "expected steps of 1 to 6, those of the run, got 5:7"),
        ({"writers": [WandB]}, r"writers: expected objects with the methods start, .*WandB\(\), got <class"),
        ({"writers": "wandb"}, "got 'w'"),
    ],
)
def test_wrong_listeners_are_refused_before_anything_is_written(
    listeners: dict[str, Any], message: str, folder: Path, experiment: Experiment
) -> None:
    with pytest.raises(ValueError, match=message):
        train(experiment, folder / "refused", **listeners)
    assert not (folder / "refused").exists()


def test_ctrl_c_before_the_first_step_ends_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdet.training.train", interrupted)
    assert entry_point()(["--config", str(HERE / "tiny.py"), "--workdir", str(tmp_path)]) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["1,4,1", "0,0,0,0,0,0,0,0"])
def test_class_weights_that_do_not_fit_are_refused_before_anything_is_made(tmp_path: Path, weights: str) -> None:
    config = override(load_config(HERE / "tiny.py"), [f"model.heads.0.class_loss.weights={weights}"])
    with pytest.raises(
        ValueError, match=r"model\.heads\.0\.class_loss\.weights: expected 8 numbers that are not all 0"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
