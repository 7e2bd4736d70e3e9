"""Weights & Biases as a writer."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.training.writers.packages import kept_id, package
from jaxdet.training.writers.writer import Settings


class WandB:
    """Hands a run to Weights & Biases (a `Writer`; ``pip install 'jaxdet[wandb]'``).

    The run has the name of its folder, and goes on there under the same id, which is kept in ``wandb_id``.  Steps that
    come again after a kill have numbers that are there already, and Weights & Biases leaves them out.

    Args:
        project: where the run goes.
        options: of ``wandb.init``, such as ``entity``, ``tags`` or ``mode="offline"``.
    """

    def __init__(self, project: str = "jaxdet", **options: Any) -> None:
        self._project, self._options = project, options
        self._wandb = package("wandb")

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        name, _ = kept_id(workdir / "wandb_id", lambda: uuid.uuid4().hex[:8])
        given = {"project": self._project, "name": workdir.resolve().name, "id": name, "resume": "allow"}
        self._run = self._wandb.init(**(given | {"dir": str(workdir), "config": dict(settings)} | self._options))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()
