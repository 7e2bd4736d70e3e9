"""What a run writes while it goes: one JSON object a line, TensorBoard events, and the curves as a picture."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX import SummaryWriter

JSONL = "log.jsonl"
CURVES = "curves.png"


class RunLog:
    """Scalars by step into ``log.jsonl`` and TensorBoard.  A context manager.

    Args:
        workdir: folder of the run, which exists.
        step: number of steps that are done; records of later steps, from a run that died after its last
            checkpoint, are taken out, as they will come again.
        writes: False: nothing is written, for all processes but one.
    """

    def __init__(self, workdir: Path, step: int, *, writes: bool = True) -> None:
        self._workdir = workdir
        self._writes = writes
        if not writes:
            return
        kept = [record for record in read_log(workdir) if record["step"] <= step]
        (workdir / JSONL).write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = (workdir / JSONL).open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that belong to the state after ``step`` steps."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture file for TensorBoard, if it is there."""
        if self._writes and path.exists():
            with Image.open(path) as picture:
                self._board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

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
            self._file.close()
            self._board.close()


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """Records of ``log.jsonl``, in order; none where there is no log.  A last line cut off by a crash is left out."""
    path = workdir / JSONL
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Losses, learning rate and AP over steps, as a picture of 1200 x 400 pixels."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # no pyplot: no global state, no display
    losses, rate, quality = figure.subplots(1, 3)
    names = [name for name in _names(records) if name == "loss" or name.startswith("loss/")]
    for name in names:
        _plot(losses, records, name, name.removeprefix("loss/"))
    _plot(rate, records, "lr", "learning rate")
    for name in ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50"):
        _plot(quality, records, name, name, marker="o")
    for axes, title in ((losses, "loss"), (rate, "learning rate"), (quality, "validation")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize="small")
    quality.set_ylim(0, 1)
    figure.savefig(path, dpi=100)


def _names(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _plot(axes: Axes, records: list[dict[str, Any]], name: str, label: str, **style: Any) -> None:
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
