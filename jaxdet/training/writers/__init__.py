"""Writers: who gets what a run logs (``jaxdet.train(..., writers=[...])``).

`JsonLines` and `TensorBoard` write files of the run itself, and are always there.  `WandB`, `MLflow` and `Trackio` hand
the same to an experiment tracker, whose package is installed apart: ``pip install 'jaxdet[wandb]'``.
"""

from collections.abc import Callable

from jaxdet.training.writers.jsonl import JsonLines
from jaxdet.training.writers.mlflow import MLflow
from jaxdet.training.writers.tensorboard import TensorBoard
from jaxdet.training.writers.trackio import Trackio
from jaxdet.training.writers.wandb import WandB
from jaxdet.training.writers.writer import Settings, Writer

TRACKERS: dict[str, Callable[[], Writer]] = {"mlflow": MLflow, "trackio": Trackio, "wandb": WandB}
"""Those for trackers by the names that ``--writer`` takes; the trackers' own environment variables set them up."""

__all__ = ["TRACKERS", "JsonLines", "MLflow", "Settings", "TensorBoard", "Trackio", "WandB", "Writer"]
