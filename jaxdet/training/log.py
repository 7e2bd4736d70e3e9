"""The log of a run: what its writers get, and the curves as a picture."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from jaxdet.runtime.files import replacing
from jaxdet.training.writers.jsonl import JsonLines, LogEntry, read_log
from jaxdet.training.writers.tensorboard import TensorBoard
from jaxdet.training.writers.writer import Settings, Writer

CURVES = "curves.png"

_log = logging.getLogger(__name__)


class RunLog:
    """Hands numbers and pictures to writers: ``log.jsonl``, TensorBoard, and those of the user.  A context manager.

    Args:
        workdir: folder of the run, which exists.
        step: number of steps that are done.  Entries of later steps, from a run that died after its last
            checkpoint, are taken out, since these steps will be done again.
        writes: False: write nothing, as all processes of a job but one.
        writers: those of the user.
        settings: the config by dotted keys, for the writers.

    Raises:
        ValueError: a writer of the user could not start.

    Attributes:
        evaluated: whether the log, as it was found, has an evaluation of the state after ``step`` steps.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        *,
        writes: bool = True,
        writers: Sequence[Writer] = (),
        settings: Settings | None = None,
    ) -> None:
        self._workdir = workdir
        self._writes = writes
        self._writers: list[Writer] = []
        self._closing = ExitStack()  # closes each, also where the one before it fails to
        self.evaluated = False
        if not writes:
            return
        self.evaluated = any(entry["step"] == step and "bbox/AP" in entry for entry in read_log(workdir))
        # What the run cannot do without is not guarded: a full disk ends it.
        try:
            own: list[Writer] = [JsonLines(), TensorBoard()]
            for writer in (*own, *map(_Guarded, writers)):
                writer.start(workdir, settings or {}, step)
                self._closing.callback(writer.close)
                self._writers.append(writer)
        except BaseException:
            self._closing.close()
            raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers that belong to the state after ``step`` steps."""
        for writer in self._writers:
            writer.scalars(step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a picture file, if it exists."""
        if self._writes and path.exists():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            for writer in self._writers:
                writer.image(step, name, pixels)

    def curves(self) -> None:
        """Draw ``curves.png`` from the log."""
        if self._writes:
            _draw_curves(read_log(self._workdir), self._workdir / CURVES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()


class _Guarded:
    """A writer of the user, whose errors do not end a run that has begun (a `Writer`)."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._works = True

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        try:
            self._writer.start(workdir, settings, step)
        except Exception as error:  # nothing is lost yet, and hours of a run without its log may be no use
            name = type(self._writer).__name__
            raise ValueError(f"the writer {name} could not start: {type(error).__name__}: {error}") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call(lambda: self._writer.scalars(step, dict(values)), f"after step {step}")

    def image(self, step: int, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._call(lambda: self._writer.image(step, name, pixels), f"after step {step}")

    def close(self) -> None:
        self._call(self._writer.close, "at its end")

    def _call(self, work: Callable[[], None], when: str) -> None:
        if not self._works:
            return
        try:
            work()
        except Exception:
            self._works = False
            _log.warning(
                "the writer %s failed %s and gets nothing more; the run goes on, and log.jsonl has all numbers",
                *(type(self._writer).__name__, when),
                exc_info=True,
            )


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
