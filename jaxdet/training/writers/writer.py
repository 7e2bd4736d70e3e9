"""What a run tells those who keep its numbers: files of its own, or an experiment tracker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Settings: TypeAlias = Mapping[str, bool | int | float | str | None]
"""The config by dotted keys, as ``{"optimizer.lr": 0.02}`` (`jaxdet.config.flat_settings`)."""


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
