"""What a run writes while it goes: its records, TensorBoard events, and the curves as a picture."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from jaxdet.training.board import Board
from jaxdet.training.curves import draw_curves
from jaxdet.training.records import RecordFile, read_log

CURVES = "curves.png"


class RunLog:
    """Scalars by step into ``log.jsonl`` and TensorBoard.  A context manager.

    Args:
        workdir: folder of the run, which exists.
        step: number of steps that are done; records of later steps, from a run that died after its last
            checkpoint, are taken out, as they will come again.
        writes: False: nothing is written, for all processes but one.

    Attributes:
        evaluated: whether the log, as it was found, has an evaluation of the state after ``step`` steps.
    """

    def __init__(self, workdir: Path, step: int, *, writes: bool = True) -> None:
        self._workdir = workdir
        self._writes = writes
        self.evaluated = False
        if not writes:
            return
        kept = [record for record in read_log(workdir) if record["step"] <= step]
        self.evaluated = any(record["step"] == step and "bbox/AP" in record for record in kept)
        self._records = RecordFile(workdir, kept)
        self._board = Board(workdir / "tensorboard", step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that belong to the state after ``step`` steps."""
        if not self._writes:
            return
        self._records.append({"step": step, "time": round(time.time(), 1), **values})
        for name, value in values.items():
            self._board.scalar(step, name, value)
        self._board.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture file for TensorBoard, if it is there."""
        if self._writes and path.exists():
            with Image.open(path) as picture:
                self._board.picture(step, name, np.asarray(picture.convert("RGB")))

    def curves(self) -> None:
        """Draw ``curves.png`` from the log."""
        if self._writes:
            draw_curves(read_log(self._workdir), self._workdir / CURVES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._records.close()
            self._board.close()
