"""What happens between steps: log lines, checkpoints, evaluations, and the end when a signal asks for it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.runtime.agreement import as_the_first_says
from jaxdet.training.log import RunLog
from jaxdet.training.loop import Pending
from jaxdet.training.meter import Meter, progress_line
from jaxdet.training.signals import Stopped, StopRequest
from jaxdet.training.start import to_save
from jaxdet.training.step import TrainState
from jaxdet.training.validate import report

_log = logging.getLogger(__name__)

METER = "meter"  #: its place in a checkpoint's metadata

Validate = Callable[[TrainState], dict[str, float]]


@dataclass(frozen=True)
class Intervals:
    """After how many steps something is due, besides at the end."""

    log: int
    checkpoint: int
    evaluate: int  #: 0: only at the end


@dataclass
class Watch:
    """Called after each step (`loop.AfterStep`)."""

    intervals: Intervals
    start: int  #: steps done before this process began
    total: int  #: steps at the end
    meter: Meter
    log: RunLog
    store: CheckpointStore
    metadata: dict[str, Any]  #: goes into each checkpoint
    validate: Validate | None
    stop: StopRequest
    workdir: Path
    _began: float = field(default_factory=time.perf_counter)

    def __call__(self, step: int, state: TrainState, pending: Pending) -> None:
        stopping = self.stop.agreed(step, self.intervals.log)
        if step == self.start + 1:
            self._first(step, pending)
        elif self._due(step, self.intervals.log):
            self._show(step, pending)
        if stopping or self._due(step, self.intervals.checkpoint):
            pending.settle()  # a state whose losses are not finite is never saved
            self.save(step, state)
        if stopping:
            self._leave(step)
        if self._evaluation_due(step):
            pending.settle()
            self.evaluate(step, state)
            self.meter.start()

    def resume(self, state: TrainState) -> None:
        """Make up for the evaluation of the state to start from, if the process before was killed in it."""
        if self._evaluation_due(self.start) and not as_the_first_says(self.log.evaluated):
            self.evaluate(self.start, state)

    def save(self, step: int, state: TrainState) -> None:
        """Begin to write a checkpoint; the log of ``step`` is written, or the meter has what will go into it."""
        self.store.save(step, to_save(state), self.metadata | {METER: self.meter.saved()})

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Scores of the state, logged; empty without a validation set.  SystemExit if a signal comes meanwhile."""
        if self.validate is None:
            return {}
        try:
            metrics = self.validate(state)
        except Stopped:
            self.save(step, state)
            self._leave(step)
        if step != self.start or not self.log.evaluated:
            report(metrics, step, self.log, self.workdir)
        return metrics

    def _due(self, step: int, every: int) -> bool:
        return step == self.total or step % every == 0

    def _evaluation_due(self, step: int) -> bool:
        every = self.intervals.evaluate
        return every > 0 and 0 < step < self.total and step % every == 0

    def _first(self, step: int, pending: Pending) -> None:
        pending.settle()
        _log.info("the first step took %.1f s, most of it compiling", time.perf_counter() - self._began)
        if self._due(step, self.intervals.log):  # without speed, of which compiling is no part
            self.log.scalars(step, self.meter.take(self.total - step))
        self.meter.start()

    def _show(self, step: int, pending: Pending) -> None:
        pending.settle()
        self.store.check()  # a full disk is not to be noticed a whole checkpoint later
        summary = self.meter.take(self.total - step)
        _log.info(progress_line(step, self.total, summary))
        self.log.scalars(step, summary)

    def _leave(self, step: int) -> None:
        self.store.wait()
        _log.warning("stopped after step %d of %d; the same command continues", step, self.total)
        raise SystemExit(128 + self.stop.signal)
