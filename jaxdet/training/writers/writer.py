"""What a run tells those who keep its numbers: files of its own, or an experiment tracker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Settings: TypeAlias = Mapping[str, bool | int | float | str | None]
"""The config by dotted keys, as ``{"optimizer.lr": 0.02}`` (`jaxdet.config.flat_settings`)."""


@runtime_checkable
class Writer(Protocol):
    """Gets what a run logs.  Of several processes the first one calls it, from the thread that trains.

    What it raises in ``start`` ends the run before its first step.  What it raises later does not: a warning has the
    traceback, and the writer is not called again.  A call that does not return holds the run up.
    """

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        """A run begins, or goes on.

        Args:
            workdir: folder of the run, which exists.
            settings: the config.
            step: number of steps that are done.  Those after it come again if the run was killed, with the same
                numbers.
        """
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name that belong to the state after ``step`` steps: every ``run.log_every`` steps, and scores."""
        ...

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture ``[H, W, 3]`` RGB: the predictions after an evaluation, if ``run.pictures`` is not 0."""
        ...

    def close(self) -> None:
        """The run has ended, however it did; nothing comes after it."""
        ...


def check_writers(writers: Sequence[object]) -> None:
    """Make sure that each is a `Writer`; ValueError where one is not."""
    for writer in writers:
        if isinstance(writer, type) or not isinstance(writer, Writer):
            raise ValueError(
                "writers: expected objects with the methods start, scalars, image and close, such as "
                f"jaxdet.training.writers.WandB(), got {writer!r}"
            )
