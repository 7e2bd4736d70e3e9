"""Scores of a model during training, and the picture and tables that they leave."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from jaxdet.data import Category, Source
from jaxdet.data.validation.entries import counted
from jaxdet.evaluation.evaluate import score_together
from jaxdet.evaluation.inference import detect
from jaxdet.evaluation.tables import summary_table
from jaxdet.experiment import Experiment
from jaxdet.runtime.files import replacing, write_json
from jaxdet.training.log import RunLog
from jaxdet.training.workdir import METRICS
from jaxdet.visualize import save_predictions

_PICTURE = "predictions.png"
_TABLE = "metrics.txt"

_log = logging.getLogger(__name__)


def validate(
    experiment: Experiment,
    variables: Any,
    source: Source,
    categories: Sequence[Category],
    mesh: Mesh,
    workdir: Path | None,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Score a model by COCO's rules.

    Args:
        experiment: the config.
        variables: the model's variables, on the devices.
        source: the validation set.
        categories: those of the training data; the source may number them otherwise.
        mesh: the devices.
        workdir: folder for ``predictions.png``; None: draw none.
        progress: called with the number of images done and in all.

    Returns:
        COCO's numbers by names such as ``segm/AP``.
    """
    run = experiment.run
    # The first time the model is compiled for it: on a CPU minutes in which nothing else is said.
    _log.info("evaluating %s", counted(len(source), "image"))
    results = detect(
        experiment.model,
        variables,
        source,
        experiment.data,
        mesh,
        batch_size=run.eval_batch,
        shard_parameters=run.shard_parameters,
        categories=categories,
        progress=progress,
    )
    # Without masks in training there are none in the results, nor perhaps in the ground truth.
    masks = experiment.data.masks
    metrics = score_together(source, results, masks=masks, max_detections=run.eval_detections).metrics
    if workdir is not None and run.pictures:
        save_predictions(source, results, workdir / _PICTURE, count=run.pictures, masks=masks)
    return metrics


def report(metrics: dict[str, float], step: int, log: RunLog, workdir: Path) -> None:
    """Log scores and picture of the state after ``step`` steps, with a line on the terminal."""
    log.scalars(step, metrics)
    log.curves()
    log.picture(step, "predictions", workdir / _PICTURE)
    line = "  ".join(f"{kind} AP {metrics[f'{kind}/AP']:.3f}" for kind in ("bbox", "segm") if f"{kind}/AP" in metrics)
    _log.info("step %d  %s", step, line)


def write_metrics(metrics: dict[str, float], workdir: Path) -> None:
    """Write the scores of a finished run, ``metrics.json``, and as a table ``metrics.txt``."""
    with replacing(workdir / _TABLE) as scratch, scratch.open("w") as file:
        Console(file=file, width=60).print(summary_table(metrics))
    write_json(workdir / METRICS, metrics)  # last, since this file says that the run is finished
