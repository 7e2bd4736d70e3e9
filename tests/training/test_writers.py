"""Who gets what a run logs: writers of the user's own, errors in them, and experiment trackers."""

import logging
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jaxdet.training.log import RunLog
from jaxdet.training.writers import TRACKERS, MLflow, Settings, Trackio, WandB
from jaxdet.training.writers.jsonl import read_log

SETTINGS: Settings = {"optimizer.lr": 0.02, "model": "TwoStage", "data.val": None}


class Recorder:
    """Remembers its calls, and raises in one of them."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = fails

    def _call(self, *what: Any) -> None:
        self.calls.append(what)
        if what[0] == self.fails:
            raise KeyError("no server")

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        self._call("start", workdir, dict(settings), step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call("scalars", step, dict(values))

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._call("image", step, name, pixels.shape, pixels.dtype)

    def close(self) -> None:
        self._call("close")


def write(workdir: Path, *writers: Any, start: int = 0, writes: bool = True) -> None:
    """What a run does with its log: two lines and a picture."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(workdir / "picture.png")
    with RunLog(workdir, start, writes=writes, writers=writers, settings=SETTINGS) as log:
        log.scalars(start + 2, {"loss": 1.0})
        log.scalars(start + 2, {"bbox/AP": 0.5, "bbox/AP@300": 0.25})
        log.picture(start + 2, "predictions", workdir / "picture.png")


def test_a_writer_gets_config_numbers_pictures_and_the_end(tmp_path: Path) -> None:
    recorder = Recorder()
    write(tmp_path, recorder, start=4)
    assert recorder.calls == [
        ("start", tmp_path, SETTINGS, 4),
        ("scalars", 6, {"loss": 1.0}),
        ("scalars", 6, {"bbox/AP": 0.5, "bbox/AP@300": 0.25}),
        ("image", 6, "predictions", (4, 6, 3), np.uint8),
        ("close",),
    ]


def test_only_the_first_process_calls_writers(tmp_path: Path) -> None:
    recorder = Recorder()
    write(tmp_path, recorder, writes=False)
    assert recorder.calls == []


def test_a_writer_that_cannot_start_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    before, after = Recorder(), Recorder()
    with pytest.raises(ValueError, match="the writer Recorder could not start: KeyError: 'no server'"):
        write(tmp_path, before, Recorder("start"), after)
    assert [call[0] for call in before.calls] == ["start", "close"]
    assert after.calls == []


@pytest.mark.parametrize("fails", ["scalars", "image", "close"])
def test_a_writer_that_fails_later_is_left_out_and_the_run_goes_on(
    tmp_path: Path, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = Recorder(fails), Recorder()
    with caplog.at_level(logging.WARNING, "jaxdet"):
        write(tmp_path, broken, whole)
    (record,) = caplog.records
    assert "the writer Recorder failed" in record.getMessage()
    assert record.exc_info is not None
    assert [call[0] for call in whole.calls] == ["start", "scalars", "scalars", "image", "close"]
    assert broken.calls[-1][0] == fails
    assert [name for call in broken.calls for name in call[:1]].count(fails) == 1
    assert len(read_log(tmp_path)) == 2


def test_a_signal_in_a_writer_is_no_failure_of_it(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, Interrupted())


class Calls(types.ModuleType):
    """A double of a tracker's package: every call is remembered, and returns something that can be called again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **named: Any) -> Any:
            self.made.append((name, args, named))
            return self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, named) for made, args, named in self.made if made == name]


@pytest.mark.parametrize(("name", "writer"), [("wandb", WandB), ("trackio", Trackio)])
def test_wandb_and_trackio_get_a_run_that_goes_on(
    name: str, writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Calls(name)
    monkeypatch.setitem(sys.modules, name, tracker)
    for start in (0, 2):
        write(tmp_path, writer(project="cells", group="a"), start=start)
    first, second = (named for _, named in tracker.named("init"))
    assert first == second
    assert first.items() >= {"project": "cells", "name": tmp_path.name, "resume": "allow", "group": "a"}.items()
    assert first["config"] == SETTINGS
    if name == "wandb":
        assert first["id"] == (tmp_path / "wandb_id").read_text().strip()
    logged = tracker.named("log")
    assert logged[0] == (({"loss": 1.0},), {"step": 2})
    assert [next(iter(args[0])) for args, _ in logged[:3]] == ["loss", "bbox/AP", "predictions"]
    assert [named["step"] for _, named in logged] == [2, 2, 2, 4, 4, 4]
    assert len(tracker.named("finish")) == len(tracker.named("Image")) == 2


def test_mlflow_gets_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client(Calls):
        def get_experiment_by_name(self, name: str) -> None:
            assert name == "cells"

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            assert (experiment, run_name) == ("7", tmp_path.name)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

    client = Client("client")
    entities = types.SimpleNamespace(Param=lambda *values: values, Metric=lambda *values: values)
    double = types.SimpleNamespace(MlflowClient=lambda uri: client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", double)  # type: ignore[arg-type]
    for start in (0, 2):
        write(tmp_path, MLflow("cells", "uri"), start=start)
    batches = client.named("log_batch")
    assert batches[0] == (("abc",), {"params": [(k, str(v)) for k, v in SETTINGS.items()]})
    metrics = [(name, value, step) for _, named in batches[1:] for name, value, _, step in named["metrics"]]
    assert metrics[:3] == [("loss", 1.0, 2), ("bbox/AP", 0.5, 2), ("bbox/AP_at_300", 0.25, 2)]
    assert [step for _, _, step in metrics] == [2, 2, 2, 4, 4, 4]
    assert client.named("update_run") == [(("abc",), {"status": "RUNNING"})]
    assert [named for _, named in client.named("log_image")] == [
        {"key": "predictions", "step": step} for step in (2, 4)
    ]
    assert client.named("set_terminated") == [(("abc",), {})] * 2


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"pip install 'jaxdet\[{name}\]'"):
        TRACKERS[name]()
