"""What happens between steps: log lines, checkpoints and evaluations when they are due, and the end."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.reading import VARIABLES
from jaxdet.runtime.compiling import breakable, is_compiling
from jaxdet.runtime.mesh import data_mesh
from jaxdet.structures import Batch
from jaxdet.training.best import Enough
from jaxdet.training.log import RunLog
from jaxdet.training.loop import Hooks, Intervals, PendingMetrics, run_steps
from jaxdet.training.metrics import FiniteCheck, Meter
from jaxdet.training.profile import Profile
from jaxdet.training.signals import StopRequest, stop_on_signal
from jaxdet.training.state import TrainState
from jaxdet.training.step import StepByCanvas
from jaxdet.training.workdir import stopped_at
from jaxdet.training.writers.jsonl import read_log
from tests.training.stub import KEY, batch_of, finite


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


def watch(tmp_path: Path, log: RunLog, stop: StopRequest, validate: Any = None, **more: Any) -> Hooks:
    return Hooks(
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
        **more,
    )


IDS = np.arange(8)
STATE = TrainState(step=jnp.int32(0), params={}, batch_stats={}, opt_state=())
METRICS = {"loss": 1.0, "loss/a": 1.0, "grad_norm": 1.0, "lr": 0.1, "count/dropped": 7}


def step_through(watched: Hooks, steps: int, metrics: Any = METRICS) -> None:
    pending = PendingMetrics(watched.meter, finite)
    for step in range(1, steps + 1):
        pending.push(step, metrics, batch_of(0))
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


def test_on_step_sees_what_the_log_has_and_on_eval_the_scores(tmp_path: Path) -> None:
    seen = list[Any]()
    calls = {"on_step": lambda *what: seen.append(what), "on_eval": lambda *what: seen.append(what)}
    with RunLog(tmp_path, 0) as log:
        step_through(watch(tmp_path, log, StopRequest(), lambda state: {"bbox/AP": 0.25}, **calls), 10)
    assert [step for step, _ in seen] == [2, 4, 4, 6, 8, 8, 10]
    logged = [{k: v for k, v in entry.items() if k not in ("step", "time")} for entry in read_log(tmp_path)]
    assert [values for _, values in seen] == logged


def test_on_step_waits_for_the_device_in_no_other_step(tmp_path: Path) -> None:
    """The metrics of a step are read when the next one has been sent off, but for those that are logged."""
    settled = list[tuple[int, bool]]()
    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, StopRequest(), on_step=lambda step, metrics: None)
        watched.intervals = Intervals(log=3, checkpoint=99, evaluate=0)
        pending = PendingMetrics(watched.meter, finite)
        for step in range(1, 8):
            pending.push(step, METRICS, batch_of(0))
            watched(step, STATE, pending)
            settled.append((step, pending._pending is None))
    assert [step for step, is_settled in settled if is_settled] == [1, 3, 6]


def test_on_eval_ends_the_run_saved_and_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jaxdet"), RunLog(tmp_path, 0) as log:
        stop_at_8 = lambda step, scores: "stop" if step == 8 else None  # noqa: E731
        watched = watch(tmp_path, log, StopRequest(), lambda state: {"bbox/AP": 0.25}, on_eval=stop_at_8)
        with pytest.raises(Enough):
            step_through(watched, 10)
    assert watched.stopped
    assert watched.store.saved == [3, 6, 8]  # type: ignore[attr-defined]
    assert stopped_at(tmp_path, 8)
    assert not stopped_at(tmp_path, 6)
    assert "on_eval said stop: the run ends after step 8 of 10" in caplog.text


@pytest.mark.parametrize("answer", [True, "halt", 0])
def test_another_answer_of_on_eval_is_an_error_that_loses_nothing(tmp_path: Path, answer: Any) -> None:
    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, StopRequest(), lambda state: {"bbox/AP": 0.25}, on_eval=lambda *_: answer)
        with pytest.raises(ValueError, match=rf"expected it to return None or 'stop', got {answer!r}"):
            step_through(watched, 10)
    assert watched.store.saved == [3, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("hook", "last"), [("on_step", 2), ("on_eval", 4)])
def test_what_a_function_of_the_user_raises_ends_the_run_saved(tmp_path: Path, hook: str, last: int) -> None:
    def fail(step: int, values: dict[str, float]) -> None:
        raise KeyError("mine")

    with RunLog(tmp_path, 0) as log:
        watched = watch(tmp_path, log, StopRequest(), lambda state: {"bbox/AP": 0.25}, **{hook: fail})
        with pytest.raises(KeyError, match="mine"):
            step_through(watched, 10)
    assert watched.store.saved[-1] == last  # type: ignore[attr-defined]
    assert watched.store.waited  # type: ignore[attr-defined]


def test_the_steps_of_a_profile_are_finished_at_both_of_its_ends(tmp_path: Path) -> None:
    class Traced(Profile):
        def begin(self) -> None:
            ends.append(("begin", pending._pending))

        def end(self) -> None:
            super().end()
            ends.append(("end", pending._pending))

    ends = list[tuple[str, Any]]()
    with RunLog(tmp_path, 0) as log, Traced("4:5", tmp_path, 0, 10) as profile:
        watched = watch(tmp_path, log, StopRequest(), profile=profile)
        pending = PendingMetrics(watched.meter, finite)
        for step in range(1, 8):
            pending.push(step, METRICS, batch_of(0))
            watched(step, STATE, pending)
            if step in (3, 5):
                assert ends[-1] == ("begin" if step == 3 else "end", None)
        assert len(ends) == 2


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
        pending = PendingMetrics(watched.meter, FiniteCheck(tmp_path, IDS, skip=0))
        for step in (1, 2):
            pending.push(step, METRICS, batch_of(0))
            watched(step, STATE, pending)
        pending.push(3, METRICS | {"loss/a": jnp.nan}, batch_of(0))
        with pytest.raises(FloatingPointError, match="step 3: loss/a = nan"):
            watched(3, STATE, pending)
        assert watched.store.saved == []  # type: ignore[attr-defined]


def test_a_signal_saves_and_leaves(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log, stop_on_signal() as stop:
        watched = watch(tmp_path, log, stop)
        pending = PendingMetrics(watched.meter, FiniteCheck(tmp_path, IDS, skip=0))
        pending.push(1, METRICS, batch_of(0))
        watched(1, STATE, pending)
        os.kill(os.getpid(), signal.SIGTERM)
        pending.push(2, METRICS, batch_of(0))
        with pytest.raises(SystemExit) as left:
            watched(2, STATE, pending)
        assert left.value.code == 128 + signal.SIGTERM
        assert watched.store.saved == [2]  # type: ignore[attr-defined]
        assert watched.store.waited  # type: ignore[attr-defined]


class SlowToCompile:
    """A step whose second canvas takes half a minute to compile."""

    def __init__(self) -> None:
        self.compiled: list[tuple[int, ...]] = []
        self.go_on = threading.Event()

    def lower(self, state: Any, batch: Any, key: Any) -> Any:
        self.compiled.append(batch.image.shape)
        return self

    def compile(self) -> Any:
        if len(self.compiled) > 1:
            self.go_on.wait(30)
        return lambda state, batch, key: (state.replace(step=state.step + 1), METRICS)


def two_canvases() -> Iterator[Batch]:
    yield from [batch_of(0)] * 2
    wide = batch_of(1)
    yield from [wide.replace(image=np.zeros((8, 16, 24, 3), np.uint8))] * 9


def test_each_canvas_is_compiled_once_which_is_said_and_left_out_of_the_speed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow, left_out = SlowToCompile(), list[float]()
    slow.go_on.set()
    step = StepByCanvas(slow, left_out.append, lambda: False)
    state, mesh = STATE, data_mesh()
    with caplog.at_level(logging.INFO, "jaxdet"):
        state = run_steps(
            step, state, two_canvases(), 6, mesh=mesh, key=KEY, meter=Meter(8), check=finite, after=lambda *_: None
        )
    assert int(state.step) == 6
    said = [record.getMessage() for record in caplog.records]
    assert said[::2] == [f"compiling the step for a canvas of 16 x {width} pixels" for width in (16, 24)]
    assert [line.startswith("compiled in ") for line in said[1::2]] == [True, True]
    assert len(left_out) == len(slow.compiled) == 2


def test_a_signal_does_not_wait_for_the_end_of_a_compilation(tmp_path: Path) -> None:
    slow = SlowToCompile()
    with RunLog(tmp_path, 0) as log, stop_on_signal() as stop:
        watched = watch(tmp_path, log, stop)
        step = StepByCanvas(slow, watched.meter.leave_out, stop.at_once)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(SystemExit) as left:
            run_steps(
                *(step, STATE, two_canvases(), 10),
                **{"mesh": data_mesh(), "key": KEY, "meter": watched.meter, "check": finite},
                after=watched,
                leave=watched.leave,
            )
        assert left.value.code == 128 + signal.SIGTERM
        assert watched.store.saved == [2]  # type: ignore[attr-defined]
        assert is_compiling()
    slow.go_on.set()
    for _ in range(100):
        if not is_compiling():
            return
        time.sleep(0.05)
    raise AssertionError("the thread goes on")


def test_a_compilation_that_fails_is_an_error_of_the_step() -> None:
    def fail() -> None:
        raise ValueError("as XLA says")

    with pytest.raises(ValueError, match="as XLA says"):
        breakable(fail, lambda: False)


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
