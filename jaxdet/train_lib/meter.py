"""Means of what steps report, and how fast they go."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Collects steps between two log lines.

    ``data_wait`` is the share of the time that the host stood waiting for the next batch.  The device works
    meanwhile, so a small share costs nothing; near 1 the data is what limits the speed.
    """

    batch_size: int  #: images in a step, over all processes
    clock: Callable[[], float] = time.perf_counter
    _sums: dict[str, float] = field(default_factory=dict)
    _steps: int = 0
    _waited: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        """Begin the interval now, so that what came before (compiling, an evaluation) is no part of the speed."""
        self._since, self._steps, self._waited, self._sums = self.clock(), 0, 0.0, {}

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count one step."""
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of what the steps since `start` reported."""
        return {name: total / max(self._steps, 1) for name, total in self._sums.items()}

    def take(self, steps_left: int) -> dict[str, float]:
        """Means since `start`, with ``images_per_second``, ``data_wait`` (0..1) and ``eta_seconds``; starts anew."""
        if not self._steps or self._since is None:
            raise ValueError("Meter.take: expected at least one step since start()")
        elapsed = max(self.clock() - self._since, 1e-9)
        summary = self.means()
        summary["images_per_second"] = self._steps * self.batch_size / elapsed
        summary["data_wait"] = min(self._waited / elapsed, 1.0)
        summary["eta_seconds"] = steps_left * elapsed / self._steps
        self.start()
        return summary


def progress_line(step: int, total: int, summary: Mapping[str, float]) -> str:
    """``step 50/1000  loss 2.1 (rpn_class 0.6, ...)  lr 0.02  12.3 images/s  data 1%  ETA 0:05:12``."""
    terms = ", ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in summary.items() if k.startswith("loss/"))
    minutes, seconds = divmod(round(summary["eta_seconds"]), 60)
    return (
        f"step {step}/{total}  loss {summary['loss']:.3f} ({terms})  lr {summary['lr']:.2g}  "
        f"{summary['images_per_second']:.3g} images/s  data {summary['data_wait']:.0%}  "
        f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    )
