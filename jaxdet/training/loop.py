"""The loop over steps, and what happens between them: log lines, checkpoints, evaluations, and the end on a signal.

The device must never wait for the host.  So the host sends off a step, fetches the next batch, and only then reads the
metrics of the step before, which are ready by that time.  It follows that whatever saves or shows a state first has to
wait for its metrics (`PendingMetrics.settle`): a state whose losses are not finite is never saved.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import Mesh

from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.runtime.agreement import broadcast_flag, from_all
from jaxdet.runtime.compiling import Abandoned
from jaxdet.runtime.mesh import split_batch
from jaxdet.structures import Batch
from jaxdet.training.best import Best, Enough
from jaxdet.training.log import RunLog
from jaxdet.training.metrics import Meter, progress_line
from jaxdet.training.profile import Profile
from jaxdet.training.signals import Stopped, StopRequest
from jaxdet.training.state import TrainState, to_save
from jaxdet.training.step import COUNT, Metrics, TrainStep
from jaxdet.training.validate import report
from jaxdet.training.workdir import note_stop

METER = "meter"  #: the key under which a checkpoint's metadata has the meter

StepCheck: TypeAlias = Callable[[int, Mapping[str, float], Batch], bool]
"""``(step, metrics, batch)`` -> whether the step counts; raises to stop the run (see `metrics.FiniteCheck`)."""

OnStep: TypeAlias = Callable[[int, dict[str, float]], None]
"""``(step, metrics)``, every ``run.log_every`` steps: what the log has of them, as ``{"loss": ..., "lr": ...}``."""

OnEval: TypeAlias = Callable[[int, dict[str, float]], Literal["stop"] | None]
"""``(step, scores)`` after each evaluation; ``"stop"`` ends the run, as if its schedule were over."""

_log = logging.getLogger(__name__)


class PendingMetrics:
    """The metrics of a step that the device may still be working on; read a step later, they cost it no time."""

    def __init__(self, meter: Meter, check: StepCheck) -> None:
        self._meter = meter
        self._check = check
        self._pending: tuple[int, Metrics, Batch] | None = None

    def push(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Take the metrics of a step and its batch on the host, and settle the step before."""
        self.settle()
        self._pending = step, metrics, batch

    def settle(self) -> None:
        """Wait for the pending step, check that its losses are finite, and count it; raises what the check raises."""
        if self._pending is None:
            return
        step, metrics, batch = self._pending
        self._pending = None
        # This waits until the device has finished the step; by now it has the next one to do.
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        counts = {name.removeprefix(COUNT): int(values.pop(name)) for name in metrics if name.startswith(COUNT)}
        good = self._check(step, values, batch)
        if good:
            self._meter.add(values)
        self._meter.count({**counts, "skipped_steps": int(not good)})


AfterStep: TypeAlias = Callable[[int, TrainState, PendingMetrics], None]
"""Called after each step has been sent off; it settles before it saves or shows anything."""


def run_steps(
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[Batch],
    total: int,
    *,
    mesh: Mesh,
    key: jax.Array,
    meter: Meter,
    check: StepCheck,
    after: AfterStep,
    leave: AfterStep | None = None,
) -> TrainState:
    """Run the steps from ``state.step`` to ``total``.

    While the device works on a step, the next batch is fetched and its transfer begins.

    Args:
        train_step: see `step.make_train_step`.
        state: the state to start from; its memory is given away.
        batches: batches on the host, the first of which belongs to step ``state.step``.
        total: number of the last step.
        mesh: the devices.
        key: the run's random key, on every device.
        meter: counts the time that was spent waiting for batches.
        check: sees the metrics of each step.
        after: called after each step; it may raise to stop.
        leave: called with the last state if a signal came while the next step was compiled; it raises.

    Returns:
        The state after ``total`` steps.
    """

    def fetch() -> tuple[Batch, Batch]:
        begin = time.perf_counter()
        batch = next(batches)
        meter.wait(time.perf_counter() - begin)
        return batch, split_batch(batch, mesh)

    step = int(state.step)
    if step >= total:
        return state
    pending = PendingMetrics(meter, check)
    on_host, on_device = fetch()
    while step < total:
        try:
            state, metrics = train_step(state, on_device, key)
        except Abandoned:
            if leave is not None:
                leave(step, state, pending)
            raise
        step += 1
        used = on_host
        if step < total:  # there may be no further batch
            on_host, on_device = fetch()
        pending.push(step, metrics, used)
        after(step, state, pending)
    pending.settle()
    return state


@dataclass(frozen=True)
class Intervals:
    """After how many steps something is due, besides after the last one."""

    log: int
    checkpoint: int
    evaluate: int  #: 0: only after the last step


@dataclass
class Hooks:
    """What a run does between its steps (an `AfterStep`)."""

    intervals: Intervals
    start: int  #: steps done before this process began
    total: int  #: steps at the end
    meter: Meter
    log: RunLog
    store: CheckpointStore
    metadata: dict[str, Any]  #: goes into each checkpoint
    validate: Callable[[TrainState], dict[str, float]] | None  #: scores a state; None: no validation set
    stop: StopRequest
    workdir: Path
    best: Best | None = None  #: keeps the best weights; None: only the newest stay
    on_step: OnStep | None = None  #: the user's; called by the first process, as is the next
    on_eval: OnEval | None = None
    profile: Profile | None = None  #: traces some steps
    shift: int = 0  #: see `position.Position`: checkpoints and evaluations come at places of the schedule

    def __post_init__(self) -> None:
        self._last: tuple[int, dict[str, float]] | None = None  # step and scores of the last evaluation
        self.stopped = False  #: ``on_eval`` has asked for the end

    def __call__(self, step: int, state: TrainState, pending: PendingMetrics) -> None:
        if self.profile is not None and self.profile.ends_after(step):
            pending.settle()
            self._apart(self.profile.end)
        stopping = self.stop.agreed(step, self.intervals.log)
        if step == self.start + 1:
            self._after_first(step, state, pending)
        elif self._due(step, self.intervals.log):
            self._show(step, state, pending)
        if stopping or self._due(step, self.intervals.checkpoint, self.shift):
            pending.settle()
            self.save(step, state)
        if stopping:
            self._leave(step)
        if self._evaluation_due(step):
            pending.settle()
            self.evaluate(step, state)
            self.meter.start()  # the evaluation's time is no part of the training speed
            if self.stopped or self.enough(step):
                self.save(step, state)
                why = "on_eval said stop" if self.stopped else "no better score came"
                _log.info("%s: the run ends after step %d of %d", why, step, self.total)
                raise Enough(state)
        if self.profile is not None and self.profile.begins_after(step):
            pending.settle()
            self._apart(self.profile.begin)

    def _apart(self, work: Callable[[], None]) -> None:
        """Do something whose time is no part of the training speed."""
        begin = time.perf_counter()
        work()
        self.meter.leave_out(time.perf_counter() - begin)

    def enough(self, step: int) -> bool:
        """Whether the run is over before its last step, since no better score came (``run.patience``)."""
        return self.best is not None and self.best.enough(step)

    def leave(self, step: int, state: TrainState, pending: PendingMetrics) -> None:
        """Save and leave before the next step, which is still being compiled (an `AfterStep`)."""
        pending.settle()
        if step > self.start:
            self.save(step, state)
        self._leave(step)

    def resume(self, state: TrainState) -> None:
        """Evaluate the state to start from, if the process before was killed in its evaluation."""
        # All processes take part in an evaluation, but only the first one has the log.
        if self._evaluation_due(self.start) and not broadcast_flag(self.log.evaluated):
            self.evaluate(self.start, state)

    def save(self, step: int, state: TrainState) -> None:
        """Begin to write a checkpoint.

        The meter goes with it.  So either the log has a line for this step, or a continued run will write that line
        from the same sums.
        """
        self.store.save(step, to_save(state), self.metadata | {METER: self.meter.saved()})

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Score the state after ``step`` steps, log the scores, and keep the weights if they are the best.

        Returns:
            The scores; none without a validation set.

        Raises:
            SystemExit: a signal came meanwhile; the state is saved.
        """
        if self.validate is None:
            return {}
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        try:
            metrics = self.validate(state)
        except Stopped:
            self.save(step, state)
            self._leave(step)
        self._last = step, metrics
        if self.best is not None:
            self.best.see(step, state, metrics, self.metadata)
        if step != self.start or not self.log.evaluated:
            report(metrics, step, self.log, self.workdir)
        if self.on_eval is not None:
            self._ask(self.on_eval, step, metrics, state)
        return metrics

    def _ask(self, on_eval: OnEval, step: int, metrics: dict[str, float], state: TrainState) -> None:
        """Ask the user's function whether to go on after an evaluation."""
        answer = self._tell(lambda: on_eval(step, dict(metrics)), step, state)
        if answer not in (None, "stop"):
            self.save(step, state)
            self.store.wait()
            raise ValueError(f"on_eval: expected it to return None or 'stop', got {answer!r}")
        if answer == "stop" and step < self.total:
            self.stopped = True
            from_all(lambda: note_stop(self.workdir, step) if jax.process_index() == 0 else None)

    def _tell(self, call: Callable[[], Any], step: int, state: TrainState) -> Any:
        """Call a function of the user's in the first process, and return its answer in all of them.

        What it raises ends the run; the state, whose metrics are settled, is saved before.
        """
        try:
            return from_all(lambda: call() if jax.process_index() == 0 else None)[0]
        except Exception:
            self.save(step, state)
            self.store.wait()
            raise

    def _due(self, step: int, every: int, shift: int = 0) -> bool:
        return step == self.total or (step + shift) % every == 0

    def _evaluation_due(self, step: int) -> bool:
        """Whether to evaluate now; after the last step `run.train` does so."""
        every = self.intervals.evaluate
        return every > 0 and 0 < step < self.total and (step + self.shift) % every == 0

    def _after_first(self, step: int, state: TrainState, pending: PendingMetrics) -> None:
        pending.settle()
        if self._due(step, self.intervals.log):  # without a speed, since starting would count for it
            self._log_step(step, state, self.meter.take(self.total - step))
        self.meter.start()

    def _log_step(self, step: int, state: TrainState, summary: dict[str, float]) -> None:
        self.log.scalars(step, summary)
        if self.on_step is not None:
            on_step = self.on_step
            self._tell(lambda: on_step(step, dict(summary)), step, state)
            self.meter.start()  # its time is no part of the training speed

    def _show(self, step: int, state: TrainState, pending: PendingMetrics) -> None:
        pending.settle()
        self.store.check()  # otherwise a full disk would go unnoticed until the next checkpoint
        summary = self.meter.take(self.total - step)
        _log.info(progress_line(step, self.total, summary))
        self._log_step(step, state, summary)

    def _leave(self, step: int) -> None:
        self.store.wait()
        _log.warning("stopped after step %d of %d; the same command continues", step, self.total)
        raise SystemExit(128 + self.stop.signal)  # what shells report for a process that a signal has ended
