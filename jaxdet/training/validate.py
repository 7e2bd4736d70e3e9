"""Scores of a model in training, and the pictures and tables that a finished run leaves."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from jaxdet.data import Category, Source
from jaxdet.evaluation import score
from jaxdet.evaluation.inference import detect
from jaxdet.evaluation.tables import summary_table
from jaxdet.experiment import Experiment
from jaxdet.runtime.files import replacing, write_json
from jaxdet.training.log import RunLog
from jaxdet.training.workdir import METRICS
from jaxdet.visualize import save_predictions

PICTURE = "predictions.png"
TABLE = "metrics.txt"

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
    """COCO's numbers of the model over ``source``; draws ``predictions.png`` into ``workdir``, if given.

    ``categories`` are those of the training data, which the source may number otherwise.
    """
    run = experiment.run
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
    masks = experiment.data.masks
    metrics = score(source.ground_truth(), results, masks=masks).metrics
    if workdir is not None and run.pictures:
        save_predictions(source, results, workdir / PICTURE, count=run.pictures, masks=masks)
    return metrics


def report(metrics: dict[str, float], step: int, log: RunLog, workdir: Path) -> None:
    """Numbers and pictures of the state after ``step`` into the log, and one line for whoever watches."""
    log.scalars(step, metrics)
    log.curves()
    log.picture(step, "predictions", workdir / PICTURE)
    line = "  ".join(f"{kind} AP {metrics[f'{kind}/AP']:.3f}" for kind in ("bbox", "segm") if f"{kind}/AP" in metrics)
    _log.info("step %d  %s", step, line)


def write_metrics(metrics: dict[str, float], workdir: Path) -> None:
    """``metrics.json`` of a finished run, and the same as a table in ``metrics.txt``."""
    with replacing(workdir / TABLE) as scratch, scratch.open("w") as file:
        Console(file=file, width=60).print(summary_table(metrics))
    write_json(workdir / METRICS, metrics)  # last: it says that the run is finished
