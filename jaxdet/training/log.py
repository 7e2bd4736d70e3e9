"""What a run writes while it goes on: ``log.jsonl``, TensorBoard events, and the curves as a picture.

A run that is killed and continued leaves the log of one that was not: entries of steps that will be done again are
taken out at the start, and no line is ever half-written.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxdet.runtime.files import named_in_errors, replacing, write_text

JSONL = "log.jsonl"
CURVES = "curves.png"

LogEntry: TypeAlias = dict[str, Any]
"""A line of the log: numbers by name that belong to the state after ``step`` steps."""


class RunLog:
    """Writes scalars by step into ``log.jsonl`` and TensorBoard.  A context manager.

    Args:
        workdir: folder of the run, which exists.
        step: number of steps that are done.  Entries of later steps, from a run that died after its last
            checkpoint, are taken out, since these steps will be done again.
        writes: False: write nothing, as all processes of a job but one.

    Attributes:
        evaluated: whether the log, as it was found, has an evaluation of the state after ``step`` steps.
    """

    def __init__(self, workdir: Path, step: int, *, writes: bool = True) -> None:
        self._workdir = workdir
        self._writes = writes
        self.evaluated = False
        if not writes:
            return
        # The log is rewritten once, at the start; from then on lines are only appended.
        kept = [entry for entry in read_log(workdir) if entry["step"] <= step]
        self.evaluated = any(entry["step"] == step and "bbox/AP" in entry for entry in kept)
        self._file = LogFile(workdir, kept)
        self._events = _EventFile(workdir / "tensorboard", step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers that belong to the state after ``step`` steps."""
        if not self._writes:
            return
        self._file.append({"step": step, "time": round(time.time(), 1), **values})
        for name, value in values.items():
            self._events.scalar(step, name, value)
        self._events.flush()  # so that a full disk is an error here, and not when the file is closed

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a picture file in TensorBoard, if the file exists."""
        if self._writes and path.exists():
            with Image.open(path) as picture:
                self._events.picture(step, name, np.asarray(picture.convert("RGB")))

    def curves(self) -> None:
        """Draw ``curves.png`` from the log."""
        if self._writes:
            _draw_curves(read_log(self._workdir), self._workdir / CURVES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._file.close()
            self._events.close()


def read_log(workdir: Path) -> list[LogEntry]:
    """Read the entries of ``log.jsonl`` in order; none if there is no log.  Lines that are no entries are left out."""
    path = workdir / JSONL
    entries = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:  # a log from before a crash of the machine may end in anything
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


class LogFile:
    """``log.jsonl``, one JSON object a line, opened to be continued.

    Args:
        workdir: folder of the run, which exists.
        kept: the entries that the file keeps; all others are removed.
    """

    def __init__(self, workdir: Path, kept: Iterable[LogEntry]) -> None:
        self._path = path = workdir / JSONL
        write_text(path, "".join(map(_line, kept)))  # in one piece, so that a kill now loses no entry
        self._file = path.open("ab", buffering=0)  # unbuffered: `append` must know whether the disk took the line

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: it could not be written whole; then no part of it stays.
        """
        line, end = _line(entry).encode(), self._file.seek(0, os.SEEK_END)
        try:
            with named_in_errors(self._path):
                rest = memoryview(line)
                # A write to a nearly full disk may take only a part; the next one then raises the error of a full disk.
                while rest:
                    rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


class _EventFile:
    """TensorBoard events, written by the calling thread.

    tensorboardX's own ``SummaryWriter`` writes from a thread.  Where the disk is full that thread dies, and the next
    scalar waits for it without end.

    Args:
        folder: the folder in which TensorBoard looks; it is made if it is missing.
        first: the first step of this file.  TensorBoard then forgets what older files have of this step and later.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._writer = EventsWriter(str(folder / "events"))
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, step: int, name: str, value: float) -> None:
        self._write(step, summary=summary.scalar(name, value))

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Add an image ``[H, W, 3]`` RGB."""
        self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Bring the events to the disk; OSError if it is full."""
        with named_in_errors(self._folder):
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))


def _draw_curves(entries: list[LogEntry], path: Path) -> None:
    """Draw losses, learning rate and AP over steps, as a picture of 1200 x 400 pixels."""
    # A figure of its own instead of pyplot, which has global state and looks for a display.
    figure = Figure(figsize=(12, 4), layout="constrained")
    losses, rate, quality = figure.subplots(1, 3)
    names = dict.fromkeys(name for entry in entries for name in entry)  # without repetition, in the log's order
    for name in names:
        if name == "loss" or name.startswith("loss/"):
            _plot(losses, entries, name, name.removeprefix("loss/"))
    _plot(rate, entries, "lr", "learning rate")
    for name in ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50"):
        _plot(quality, entries, name, name, marker="o")
    for axes, title in ((losses, "loss"), (rate, "learning rate"), (quality, "validation")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize="small")
    quality.set_ylim(0, 1)  # always the same, so that runs can be compared
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=100)


def _plot(axes: Axes, entries: list[LogEntry], name: str, label: str, **style: Any) -> None:
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
