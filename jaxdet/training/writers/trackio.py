"""Trackio as a writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.training.writers.packages import package
from jaxdet.training.writers.writer import Settings


class Trackio:
    """Hands a run to trackio (a `Writer`; ``pip install 'jaxdet[trackio]'``), which keeps it on this machine.

    The run has the name of its folder, and goes on under it: two folders of one name need two projects.  Steps that
    come again after a kill stand there twice.

    Args:
        project: where the run goes.
        options: of ``trackio.init``, such as ``space_id`` or ``group``.
    """

    def __init__(self, project: str = "jaxdet", **options: Any) -> None:
        self._project, self._options = project, options
        self._trackio = package("trackio")

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        given = {"project": self._project, "name": workdir.resolve().name, "resume": "allow", "embed": False}
        self._run = self._trackio.init(**(given | {"config": dict(settings)} | self._options))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({name: self._trackio.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()
