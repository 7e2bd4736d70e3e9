"""What a run writes and shows, and what it does between steps."""

import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdet.checkpoints.reading import VARIABLES
from jaxdet.config import to_data
from jaxdet.experiment import Optimizer, Run
from jaxdet.train_lib.log import CURVES, RunLog
from jaxdet.train_lib.loop import Fed, Pending
from jaxdet.train_lib.meter import Meter, progress_line
from jaxdet.train_lib.nonfinite import FiniteCheck
from jaxdet.train_lib.records import RecordFile, read_log
from jaxdet.train_lib.signals import Stopped, StopRequest, stop_on_signal
from jaxdet.train_lib.step import TrainState
from jaxdet.train_lib.watch import Intervals, Watch
from jaxdet.train_lib.workdir import claim, read_metrics
from tests.disk import files_of_at_most
from tests.train.stub import batch_of, finite


def test_meter_counts_images_waiting_and_what_is_left() -> None:
    now = [100.0]
    meter = Meter(batch_size=4, clock=lambda: now[0])
    meter.wait(7.0)
    meter.add({"loss": 6.0})
    meter.count({"dropped": 1})  # before start: compiling, no part of the speed
    now[0] += 50
    meter.start()
    for loss in (1.0, 2.0):
        meter.wait(0.5)
        meter.add({"loss": loss})
        meter.count({"dropped": 2})
        now[0] += 2
    assert meter.take(steps_left=10) == {
        "loss": 3.0,
        "dropped": 5,
        "images_per_second": 2.0,
        "data_wait": 0.25,
        "eta_seconds": 20.0,
    }
    assert meter.take(0) == {"dropped": 5}  # of no step there is neither mean nor speed


def test_a_meter_goes_on_where_the_saved_one_was() -> None:
    whole, killed = Meter(4), Meter(4)
    losses = [0.1, 0.2, float("nan"), 1e300]
    for loss in losses:
        whole.add({"loss": loss, "lr": loss / 3})
        whole.count({"dropped": 1})
    for loss in losses[:3]:
        killed.add({"loss": loss, "lr": loss / 3})
        killed.count({"dropped": 1})
    continued = Meter.continued(4, json.loads(json.dumps(killed.saved(), allow_nan=False)))
    continued.add({"loss": losses[3], "lr": losses[3] / 3})
    continued.count({"dropped": 1})
    assert str(continued.take(0)) == str(whole.take(0))
    assert Meter.continued(4, {}) == Meter(4)


def test_progress_line() -> None:
    summary = {"loss": 2.0, "loss/cls": 1.5, "loss/mask": 0.5, "lr": 0.02, "grad_norm": 3.0}
    summary |= {"images_per_second": 12.34, "data_wait": 0.013, "eta_seconds": 3725.0}
    assert progress_line(50, 100, summary) == (
        "step 50/100  loss 2.000 (cls 1.500, mask 0.500)  lr 0.02  12.3 images/s  data 1%  ETA 1:02:05"
    )


def test_log_of_a_continued_run_has_each_step_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (2, 4, 6):
            log.scalars(step, {"loss": step / 2, "lr": 0.1})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('12\n\x00\x00\n{"step": 8, "lo')  # a bad disk, and killed while it wrote
    with RunLog(tmp_path, 4) as log:  # the last checkpoint was that of step 4
        log.scalars(6, {"loss": 10.0})
        log.scalars(6, {"bbox/AP": 0.5, "bbox/AP50": 0.6})
        log.curves()
        log.picture(6, "curves", tmp_path / CURVES)
        log.picture(6, "predictions", tmp_path / "there is none.png")
    records = [{k: v for k, v in record.items() if k != "time"} for record in read_log(tmp_path)]
    assert records == [
        {"step": 2, "loss": 1.0, "lr": 0.1},
        {"step": 4, "loss": 2.0, "lr": 0.1},
        {"step": 6, "loss": 10.0},
        {"step": 6, "bbox/AP": 0.5, "bbox/AP50": 0.6},
    ]
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.size == (1200, 400)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_line_that_does_not_fit_on_the_disk_is_not_begun(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = RecordFile(tmp_path, [{"step": 0}])
    request.addfinalizer(file.close)
    with files_of_at_most(100):
        for step in range(1, 8):  # 12 bytes each
            file.append({"step": step})
        for step in (8, 9):
            with pytest.raises(OSError, match=r"too large: .*log\.jsonl"):
                file.append({"step": step})
    written = (tmp_path / "log.jsonl").read_text()
    assert written.endswith("}\n")
    assert [json.loads(line)["step"] for line in written.splitlines()] == list(range(8))


def test_only_the_writing_process_writes(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, writes=False) as log:
        log.scalars(1, {"loss": 1.0})
        log.curves()
        log.picture(1, "x", Path(__file__))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_belongs_to_one_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, config, other = Run(seed=1), to_data(Run(seed=1)), to_data(Run(seed=2))
    claim(tmp_path / "run", run, config, accept_changes=False)
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    claim(tmp_path / "run", run, config, accept_changes=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    assert (tmp_path / "run" / "config.txt").read_text().startswith("Run(")
    (tmp_path / "run" / "metrics.json").write_text('{"bbox/AP": 0.5}')
    assert read_metrics(tmp_path / "run") == {"bbox/AP": 0.5}
    with pytest.raises(ValueError, match=r"seed: 1 -> 2\n.*--workdir.*\n?.*--accept-changes"):
        claim(tmp_path / "run", Run(seed=2), other, accept_changes=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    with caplog.at_level(logging.WARNING):
        claim(tmp_path / "run", Run(seed=2), other, accept_changes=True)
    assert "seed: 1 -> 2" in caplog.text
    assert read_metrics(tmp_path / "run") is None  # they are those of another config
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2


def test_a_run_that_never_came_to_a_checkpoint_leaves_the_folder_free(tmp_path: Path) -> None:
    """Weights that are not there end a run after its config is written; the corrected command must go on."""
    claim(tmp_path, Run(init_from="typo.pth"), to_data(Run(init_from="typo.pth")), accept_changes=False)
    (tmp_path / "checkpoints").mkdir()
    claim(tmp_path, Run(), to_data(Run()), accept_changes=False)
    assert json.loads((tmp_path / "config.json").read_text())["init_from"] is None
    for kept in ("3.damaged", "6.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / kept).mkdir()
        with pytest.raises(ValueError, match=r"seed: 0 -> 2\n"):
            claim(tmp_path, Run(seed=2), to_data(Run(seed=2)), accept_changes=False)
        (tmp_path / "checkpoints" / kept).rmdir()


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged .*: expected JSON; remove it"):
        claim(tmp_path, Run(), to_data(Run()), accept_changes=False)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        read_metrics(tmp_path)


def test_a_setting_newer_than_the_run_counts_with_its_default(tmp_path: Path) -> None:
    config = to_data(Run(seed=1))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    claim(tmp_path, Run(seed=1), config, accept_changes=False)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["pictures"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    claim(tmp_path, Run(seed=1), config, accept_changes=False)
    with pytest.raises(ValueError, match="pictures: 8 -> 3"):
        claim(tmp_path, Run(seed=1, pictures=3), to_data(Run(seed=1, pictures=3)), accept_changes=False)


class Store:
    """Remembers what it was to save."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.waited = False

    def save(self, step: int, state: dict[str, Any], metadata: dict[str, Any]) -> None:
        assert VARIABLES in state
        assert metadata["version"] == "x"
        assert set(metadata["meter"]) == {"steps", "sums", "totals"}
        self.saved.append(step)

    def wait(self) -> None:
        self.waited = True

    def check(self) -> None:
        pass


def watch(tmp_path: Path, log: RunLog, stop: StopRequest, validate: Any = None) -> Watch:
    return Watch(
        intervals=Intervals(log=2, checkpoint=3, evaluate=4),
        start=0,
        total=10,
        meter=Meter(4),
        log=log,
        store=Store(),  # type: ignore[arg-type]
        metadata={"version": "x"},
        validate=validate,
        stop=stop,
        workdir=tmp_path,
    )


IDS = np.arange(8)
STATE = TrainState(step=jnp.int32(0), params={}, batch_stats={}, opt_state=())
FED = Fed(batch_of(0), {"dropped": 7})
METRICS = {"loss": 1.0, "loss/a": 1.0, "grad_norm": 1.0, "lr": 0.1}


def step_through(watched: Watch, steps: int, metrics: Any = METRICS) -> None:
    pending = Pending(watched.meter, finite)
    for step in range(1, steps + 1):
        pending.push(step, metrics, FED)
        watched(step, STATE, pending)


def test_logs_checkpoints_and_evaluations_come_when_due(tmp_path: Path) -> None:
    evaluated = []

    def validate(state: TrainState) -> dict[str, float]:
        evaluated.append(len(saved))
        return {"bbox/AP": 0.25}

    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, StopRequest(), validate)
        saved = watched.store.saved  # type: ignore[attr-defined]
        step_through(watched, 10)
    assert saved == [3, 6, 9, 10]
    assert evaluated == [1, 2]  # after steps 4 and 8; that of step 10 is the end of the run
    records = read_log(tmp_path)
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6, 8, 10]
    assert [r["step"] for r in records if "bbox/AP" in r] == [4, 8]
    assert [r["dropped"] for r in records if "loss" in r] == [14, 28, 42, 56, 70]


def test_an_evaluation_that_a_kill_cut_off_is_made_up_for(tmp_path: Path) -> None:
    evaluated = []

    def validate(state: TrainState) -> dict[str, float]:
        evaluated.append(1)
        return {"bbox/AP": 0.25}

    for finished in (False, True, True):
        with RunLog(tmp_path, 4) as log:  # the checkpoint of step 4 is the newest
            assert log.evaluated == finished
            watched = watch(tmp_path, log, StopRequest(), validate)
            watched.start = 4
            watched.resume(STATE)
    assert [record["step"] for record in read_log(tmp_path)] == [4]
    assert len(evaluated) == 1
    with RunLog(tmp_path, 3) as log:  # none was due after 3 steps
        watched = watch(tmp_path, log, StopRequest(), validate)
        watched.start = 3
        watched.resume(STATE)
    assert len(evaluated) == 1


def test_scores_of_the_end_come_into_the_log_once(tmp_path: Path) -> None:
    """Killed after the last evaluation and before its scores were written: it is done again."""
    for _ in range(2):
        with RunLog(tmp_path, 10) as log:
            watched = watch(tmp_path, log, StopRequest(), lambda state: {"bbox/AP": 0.5})
            watched.start = 10
            assert watched.evaluate(10, STATE) == {"bbox/AP": 0.5}
    assert [record["step"] for record in read_log(tmp_path)] == [10]


def test_intervals_longer_than_the_run_leave_its_end(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, StopRequest(), validate=lambda state: pytest.fail("evaluated before the end"))
        watched.intervals = Intervals(log=99, checkpoint=99, evaluate=99)
        step_through(watched, 10)
    assert watched.store.saved == [10]  # type: ignore[attr-defined]
    assert [r["step"] for r in read_log(tmp_path)] == [10]


def test_a_state_with_a_loss_that_is_no_number_is_never_saved(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, StopRequest())
        pending = Pending(watched.meter, FiniteCheck(tmp_path, IDS, skip=0))
        for step in (1, 2):
            pending.push(step, METRICS, FED)
            watched(step, STATE, pending)
        pending.push(3, METRICS | {"loss/a": jnp.nan}, FED)
        with pytest.raises(FloatingPointError, match="step 3: loss/a = nan"):
            watched(3, STATE, pending)
        assert watched.store.saved == []  # type: ignore[attr-defined]


def test_a_signal_saves_and_leaves(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log, stop_on_signal() as stop:
        watched = watch(tmp_path, log, stop)
        pending = Pending(watched.meter, FiniteCheck(tmp_path, IDS, skip=0))
        pending.push(1, METRICS, FED)
        watched(1, STATE, pending)
        os.kill(os.getpid(), signal.SIGTERM)
        pending.push(2, METRICS, FED)
        with pytest.raises(SystemExit) as left:
            watched(2, STATE, pending)
        assert left.value.code == 128 + signal.SIGTERM
        assert watched.store.saved == [2]  # type: ignore[attr-defined]
        assert watched.store.waited  # type: ignore[attr-defined]


def test_a_signal_during_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    stop = StopRequest()

    def validate(state: TrainState) -> dict[str, float]:
        stop.break_off(0, 5000)
        stop.signal = signal.SIGINT
        stop.break_off(8, 5000)
        raise AssertionError("not reached")

    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, stop, validate)
        with pytest.raises(SystemExit) as left:
            step_through(watched, 4)
    assert left.value.code == 130
    assert watched.store.saved == [3, 4]  # type: ignore[attr-defined]


def test_the_second_signal_acts_as_usual_and_handlers_come_back(request: pytest.FixtureRequest) -> None:
    # A shell that starts this in the background has the signal ignored, which is then what is usual.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            stop.break_off(1, 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_handler_is_set() -> None:
    requests = []

    def work() -> None:
        with stop_on_signal() as stop:
            requests.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests[0].signal == 0


def test_run_settings_out_of_range_are_refused() -> None:
    for wrong in ({"log_every": 0}, {"eval_every": -1}, {"seed": -1}, {"keep_checkpoints": 0}):
        with pytest.raises(ValueError, match="expected"):
            Run(**wrong)
    assert Optimizer(lr=0.02, base_batch=16).scaled_lr(8) == 0.01
