"""What becomes of the metrics of a step: they are checked to be finite, and averaged until the next log line."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdet.runtime.files import replacing
from jaxdet.structures import Batch

_KEPT_BATCHES = 3  #: batches that a run keeps for inspection; many would fill the disk
_ADVICE = (
    "The last checkpoint is untouched. A lower optimizer.lr, a longer optimizer.schedule.warmup_steps or "
    "optimizer.clip_norm=35 usually helps; jaxdet data check finds broken annotations; "
    "run.skip_nonfinite=10 skips such steps"
)

_log = logging.getLogger(__name__)


@dataclass
class Meter:
    """Collects what steps report between two log lines, and measures how fast they go.

    Means are over all steps since the last line, whichever process did them: `saved` goes into the checkpoint, so
    that the log of a run that was killed is that of one that was not.  Speed is measured since `start`.
    ``data_wait`` is the share of the time in which the host waited for the next batch.  The device works meanwhile,
    so a small share costs nothing; near 1 the data limits the speed.
    """

    batch_size: int  #: images in a step, over all processes
    clock: Callable[[], float] = time.perf_counter  #: seconds
    _sums: dict[str, float] = field(default_factory=dict)
    _steps: int = 0  #: steps that the sums are of
    _totals: dict[str, int] = field(default_factory=dict)  #: counts since step 0
    _timed: int = 0  #: steps since `start`
    _waited: float = 0.0  #: seconds
    _since: float | None = None  #: when `start` was called last

    @classmethod
    def continued(cls, batch_size: int, saved: Mapping[str, Any]) -> Self:
        """Make the meter that `saved` described; a new one if ``saved`` is empty."""
        sums = {name: float(text) for name, text in saved.get("sums", {}).items()}
        return cls(batch_size, _sums=sums, _steps=saved.get("steps", 0), _totals=dict(saved.get("totals", {})))

    def saved(self) -> dict[str, Any]:
        """Describe the meter, except for the speed, as JSON data."""
        # Sums are texts: `repr` keeps every bit, and JSON has no number for NaN.
        sums = {name: repr(total) for name, total in self._sums.items()}
        return {"steps": self._steps, "sums": sums, "totals": dict(self._totals)}

    def start(self) -> None:
        """Start the clock, so that what came before (compiling, an evaluation) does not count for the speed."""
        self._since, self._timed, self._waited = self.clock(), 0, 0.0

    def leave_out(self, seconds: float) -> None:
        """Count time that is no part of the speed, such as that of compiling."""
        if self._since is not None:
            self._since += seconds

    def wait(self, seconds: float) -> None:
        """Count time in which the host waited for data."""
        self._waited += seconds

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step to the means."""
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def count(self, counts: Mapping[str, int]) -> None:
        """Count a step for the speed, and add its counts to the totals."""
        self._timed += 1
        for name, count in counts.items():
            self._totals[name] = self._totals.get(name, 0) + count

    def take(self, steps_left: int) -> dict[str, float]:
        """Summarise the steps since the last `take`, and start anew.

        Args:
            steps_left: steps until the end of the run, for the time that they will take.

        Returns:
            Means and totals by name and, if the clock runs, ``images_per_second``, ``data_wait`` (0..1) and
            ``eta_seconds``.
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
    """Format ``step 50/1000  loss 2.1 (rpn_class 0.6, ...)  lr 0.02  12.3 images/s  data 1%  ETA 0:05:12``.

    Args:
        step: steps done.
        total: steps of the whole run.
        summary: what `Meter.take` returned, with the speed.
    """
    terms = ", ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in summary.items() if k.startswith("loss/"))
    # Without a loss all steps since the last line were skipped (`run.skip_nonfinite`).
    loss = f"loss {summary['loss']:.3f} ({terms})  lr {summary['lr']:.2g}" if "loss" in summary else "all skipped"
    minutes, seconds = divmod(round(summary["eta_seconds"]), 60)
    return (
        f"step {step}/{total}  {loss}  {summary['images_per_second']:.3g} images/s  data {summary['data_wait']:.0%}  "
        f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    )


@dataclass
class FiniteCheck:
    """Checks the metrics of each step, and keeps the batch of one whose loss or gradient is not finite."""

    workdir: Path  #: folder of the run, where batches are kept
    image_ids: NDArray[np.int64]  #: ``[N]`` ids of the source's images, by position
    skip: int  #: so many such steps in a row are skipped (by the compiled step itself); one more stops the run
    _in_a_row: int = 0  #: such steps since the last good one

    def __call__(self, step: int, metrics: Mapping[str, float], batch: Batch) -> bool:
        """Check a step.

        Args:
            step: its number.
            metrics: its metrics, on the host.
            batch: this process's part of its batch.

        Returns:
            Whether the step counts.

        Raises:
            FloatingPointError: it does not, and is not to be skipped; names the step, the terms and the images.
        """
        bad = not_finite(metrics)
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if not bad:
            return True
        message = f"step {step}: {', '.join(f'{name} = {metrics[name]}' for name in bad)}. {self._keep(step, batch)}"
        if self._in_a_row > self.skip:
            raise FloatingPointError(f"{message}. {_ADVICE}")
        _log.warning("%s. The step is skipped", message)
        return False

    def _keep(self, step: int, batch: Batch) -> str:
        """Save the batch unless enough are saved; returns a sentence on its images and where they are."""
        ids = np.where(batch.valid, self.image_ids[np.asarray(batch.index)], -1)
        images = f"The batch had the images {', '.join(map(str, ids[np.asarray(batch.valid)]))}"
        part = f"-{jax.process_index()}" if jax.process_count() > 1 else ""  # each process has its part of the batch
        path = self.workdir / f"nonfinite-{step}{part}.npz"
        if len(list(self.workdir.glob(f"nonfinite-*{part}.npz"))) >= _KEPT_BATCHES:
            return images
        try:
            _save_batch(path, batch, ids, step)
        except OSError as error:  # a full disk must not hide what was not finite
            return f"{images}, which could not be kept: {error}"
        return f"{images}; numpy.load({str(path)!r}) has it, see its .files"


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Name the loss terms, and ``grad_norm``, that are not finite; ``loss`` if only their sum is not."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    return [name for name in bad if name.startswith("loss/") or name == "grad_norm"] or [n for n in bad if n == "loss"]


def _save_batch(path: Path, batch: Batch, ids: NDArray[np.int64], step: int) -> None:
    """Save a batch as ``.npz``: its arrays by name (``image``, ``targets.boxes``, ...), ``ids`` or -1, ``step``."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(name, simple=True, separator="."): np.asarray(leaf) for name, leaf in leaves
    }
    with replacing(path) as scratch:
        np.savez_compressed(scratch, **arrays, ids=ids, step=np.int64(step))
