"""Means of what steps report, what is counted over the whole run, and how fast it goes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Meter:
    """Collects steps between two log lines.

    Means are over all steps since the last line, whichever process did them: `saved` goes into the checkpoint, so
    that the log of a run that was killed is that of one that was not.  Speed is measured since `start`.
    ``data_wait`` is the share of the time that the host stood waiting for the next batch.  The device works
    meanwhile, so a small share costs nothing; near 1 the data is what limits the speed.
    """

    batch_size: int  #: images in a step, over all processes
    clock: Callable[[], float] = time.perf_counter
    _sums: dict[str, float] = field(default_factory=dict)
    _steps: int = 0  #: that the sums are of
    _totals: dict[str, int] = field(default_factory=dict)  #: since step 0
    _timed: int = 0  #: steps since `start`
    _waited: float = 0.0
    _since: float | None = None

    @classmethod
    def continued(cls, batch_size: int, saved: Mapping[str, Any]) -> Self:
        """The meter that `saved` is of; a new one if that is empty."""
        sums = {name: float(text) for name, text in saved.get("sums", {}).items()}
        return cls(batch_size, _sums=sums, _steps=saved.get("steps", 0), _totals=dict(saved.get("totals", {})))

    def saved(self) -> dict[str, Any]:
        """All but the speed, as JSON; sums are texts, which keep every bit and may be ``nan``."""
        sums = {name: repr(total) for name, total in self._sums.items()}
        return {"steps": self._steps, "sums": sums, "totals": dict(self._totals)}

    def start(self) -> None:
        """Start the clock, so that what came before (compiling, an evaluation) is no part of the speed."""
        self._since, self._timed, self._waited = self.clock(), 0, 0.0

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add one step to the means."""
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def count(self, counts: Mapping[str, int]) -> None:
        """Count one step for the speed, and what happened in it for the totals."""
        self._timed += 1
        for name, count in counts.items():
            self._totals[name] = self._totals.get(name, 0) + count

    def take(self, steps_left: int) -> dict[str, float]:
        """Means since the last `take`, totals and, if the clock runs, speed; starts anew.

        The speed is ``images_per_second``, ``data_wait`` (0..1) and ``eta_seconds``.
        """
        summary = {name: total / self._steps for name, total in self._sums.items()} | self._totals
        if self._timed and self._since is not None:
            elapsed = max(self.clock() - self._since, 1e-9)
            summary["images_per_second"] = self._timed * self.batch_size / elapsed
            summary["data_wait"] = min(self._waited / elapsed, 1.0)
            summary["eta_seconds"] = steps_left * elapsed / self._timed
        self._sums, self._steps = {}, 0
        self.start()
        return summary


def progress_line(step: int, total: int, summary: Mapping[str, float]) -> str:
    """``step 50/1000  loss 2.1 (rpn_class 0.6, ...)  lr 0.02  12.3 images/s  data 1%  ETA 0:05:12``."""
    terms = ", ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in summary.items() if k.startswith("loss/"))
    loss = f"loss {summary['loss']:.3f} ({terms})  lr {summary['lr']:.2g}" if "loss" in summary else "all skipped"
    minutes, seconds = divmod(round(summary["eta_seconds"]), 60)
    return (
        f"step {step}/{total}  {loss}  {summary['images_per_second']:.3g} images/s  data {summary['data_wait']:.0%}  "
        f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    )
