"""A trace of some steps, by ``jax.profiler``: what the device does, and what it waits for."""

import logging
import re
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

FOLDER = "profile"  #: in that of the run

_log = logging.getLogger(__name__)


class Profile:
    """Traces steps ``first`` to ``last``, both included, counted from 1 as the log does.  A context manager.

    The device is waited for before the first of them and after the last one, so that the trace has these steps whole
    and nothing else.

    Args:
        steps: such as ``"10:15"``.
        workdir: folder of the run.
        start: steps that are done; of the range only what follows is traced, and a range that is over is passed by
            with a warning, since the same command goes on with a run.
        total: the last step of the run.
        writes: False: trace nothing, as all processes of a job but one.

    Raises:
        ValueError: the range is none, or no range of steps of this run.
    """

    def __init__(self, steps: str, workdir: Path, start: int, total: int, *, writes: bool = True) -> None:
        self.first, self.last = steps_of(steps)
        if self.last > total:
            raise ValueError(f"--profile: expected steps of 1 to {total}, those of the run, got {steps}")
        self._folder, self._writes, self._runs = workdir / FOLDER, writes, False
        self._over = start >= self.last
        if self._over:
            _log.warning("--profile %s: %d steps are done already, and nothing is traced", steps, start)
        elif start >= self.first:
            _log.warning("--profile %s: %d steps are done already, and those after it are traced", steps, start)
            self.first = start + 1

    def begins_after(self, step: int) -> bool:
        """Whether the trace begins before the step after this one is sent off; the device is to be idle then."""
        return not self._over and step == self.first - 1

    def ends_after(self, step: int) -> bool:
        """Whether this step is the last one of the trace; it is to be finished when `end` is called."""
        return not self._over and step == self.last

    def begin(self) -> None:
        """Begin the trace."""
        if self._writes:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._runs = True

    def end(self) -> None:
        """Write the trace, and say where it is."""
        self._over = True
        if not self._runs:
            return
        self._runs = False
        jax.profiler.stop_trace()
        files = sorted(self._folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
        _log.info(
            "steps %d to %d are traced: open %s at https://ui.perfetto.dev, or pip install xprof and run "
            "xprof --logdir %s",
            *(self.first, self.last, files[-1] if files else self._folder, self._folder),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runs:
            _log.warning("the run ends before step %d: what is traced of it is written", self.last)
        self.end()  # of a run that is stopped within the range too


def steps_of(steps: str) -> tuple[int, int]:
    """The first and the last step of a range such as ``"10:15"``; ValueError where it is none."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", steps) if isinstance(steps, str) else None
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(
            f"--profile: expected the first and the last step to trace, from 1 on, as in 10:15, got {steps!r}"
        )
    return first, last
