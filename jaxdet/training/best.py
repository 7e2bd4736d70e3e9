"""The weights with the best score so far (``run.keep_best``), and how long to wait for better ones (``run.patience``).

All that is remembered lies in the folder ``best`` of the run.  A run that goes on from an earlier step comes by the
same scores again, so that it keeps and stops as one left in peace.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxdet.checkpoints.reading import VARIABLES
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.training.state import TrainState

BEST = "best"  #: the folder in that of the run; it is read as a run folder is
_SCORE = "score"  #: the key of its metadata that has the score

_log = logging.getLogger(__name__)


class Enough(Exception):
    """No error: patience is at its end; ``state`` is the last one, which is saved."""

    def __init__(self, state: TrainState) -> None:
        super().__init__("no better score came")
        self.state = state


class Best:
    """The best weights of a run.  A context manager, whose end waits for the last save.

    Args:
        workdir: folder of the run.
        name: of the score; higher is better.
        patience: evaluations to wait for a better one; None: to the end of the run.
        every: steps from one evaluation to the next; 0: there is one at the end alone.

    Raises:
        ValueError: there is patience, but nothing to wait for.
    """

    def __init__(self, workdir: Path, name: str, patience: int | None, every: int) -> None:
        if patience is not None and not every:
            raise ValueError(
                f"run.eval_every: expected at least 1 with run.patience={patience}, which counts evaluations, got 0; "
                "set run.eval_every=1, or run.patience=none"
            )
        self._name, self._patience, self._every = name, patience, every
        self._store = CheckpointStore(workdir / BEST, keep=1)
        self.step = self._store.latest_step()  #: steps done at the best evaluation; None: there was none
        self.score = -float("inf") if self.step is None else float(self._store.metadata(self.step)[_SCORE])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def see(self, step: int, state: TrainState, metrics: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Keep the weights after ``step`` steps if their score is the best; ValueError if they have no such score."""
        if self._name not in metrics:
            raise ValueError(f"run.keep_best: expected one of {', '.join(sorted(metrics))}, got {self._name!r}")
        if metrics[self._name] <= self.score:
            return
        self.step, self.score = step, metrics[self._name]
        self._store.save(step, {VARIABLES: state.result}, {**metadata, _SCORE: self.score})
        self._store.wait()  # before the score is logged: what is logged is not evaluated again
        _log.info("the best %s so far, %.3f: kept in %s", self._name, self.score, self._store.folder.parent)

    def enough(self, step: int) -> bool:
        """Whether no better score has come for as long as one is waited for, after ``step`` steps."""
        if self._patience is None or self.step is None:
            return False
        return (step - self.step) // self._every >= self._patience
