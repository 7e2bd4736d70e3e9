"""Steps whose loss or gradient is not a number: named, kept for inspection, and skipped where that is asked for."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdet.runtime.files import replacing
from jaxdet.structures import Batch

_KEPT = 3  #: batches that a run keeps for inspection
_ADVICE = (
    "The last checkpoint is untouched. A lower optimizer.lr, a longer optimizer.schedule.warmup_steps or "
    "optimizer.clip_norm=35 usually helps; python -m jaxdet.data.check finds broken annotations; "
    "run.skip_nonfinite=10 skips such steps"
)

_log = logging.getLogger(__name__)


@dataclass
class FiniteCheck:
    """Called with the metrics of each step and the batch that it had.

    Args:
        workdir: folder of the run, where the batch is kept.
        image_ids: ``[N]`` ids of the source's images, by position.
        skip: so many such steps in a row are skipped (which the compiled step has done already); one more stops.
    """

    workdir: Path
    image_ids: NDArray[np.int64]
    skip: int
    _row: int = 0

    def __call__(self, step: int, metrics: Mapping[str, float], batch: Batch) -> bool:
        """Whether the step counts.

        Raises:
            FloatingPointError: it does not, and is not to be skipped; names the step, the terms and the images.
        """
        bad = not_finite(metrics)
        self._row = self._row + 1 if bad else 0
        if not bad:
            return True
        message = f"step {step}: {', '.join(f'{name} = {metrics[name]}' for name in bad)}. {self._keep(step, batch)}"
        if self._row > self.skip:
            raise FloatingPointError(f"{message}. {_ADVICE}")
        _log.warning("%s. The step is skipped", message)
        return False

    def _keep(self, step: int, batch: Batch) -> str:
        ids = np.where(batch.valid, self.image_ids[np.asarray(batch.index)], -1)
        images = f"The batch had the images {', '.join(map(str, ids[np.asarray(batch.valid)]))}"
        part = f"-{jax.process_index()}" if jax.process_count() > 1 else ""  # each process has its part of the batch
        path = self.workdir / f"nonfinite-{step}{part}.npz"
        if len(list(self.workdir.glob(f"nonfinite-*{part}.npz"))) >= _KEPT:
            return images
        try:
            save_batch(path, batch, ids, step)
        except OSError as error:  # what was not finite must be said all the same
            return f"{images}, which could not be kept: {error}"
        return f"{images}; numpy.load({str(path)!r}) has it, see its .files"


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Names of the loss terms, and ``grad_norm``, that are not finite; ``loss`` if only their sum is not."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    return [name for name in bad if name.startswith("loss/") or name == "grad_norm"] or [n for n in bad if n == "loss"]


def save_batch(path: Path, batch: Batch, ids: NDArray[np.int64], step: int) -> None:
    """A batch as ``.npz``: its arrays by name (``image``, ``targets.boxes``, ...), ``ids`` or -1, ``step``."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(name, simple=True, separator="."): np.asarray(leaf) for name, leaf in leaves
    }
    with replacing(path) as scratch:
        np.savez_compressed(scratch, **arrays, ids=ids, step=np.int64(step))
