"""Evaluation of a checkpoint, which brings its settings and the names of its classes along."""

from collections.abc import Sequence

from jax.sharding import Mesh

from jaxdet.data import CocoFolder, Source, open_source
from jaxdet.eval_lib.detect import Progress, detect
from jaxdet.evaluation import score
from jaxdet.evaluation.results import Result
from jaxdet.experiment import Experiment
from jaxdet.trained import Checkpoint, Trained, load


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    *,
    images: str | None = None,
    annotations: str | None = None,
    overrides: Sequence[str] = (),
    fast: bool = False,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """``jaxdet.evaluate``: COCO's twelve numbers of a checkpoint over its validation set or another data set.

    Args:
        checkpoint: a run folder, the folder of one checkpoint, or what ``jaxdet.load`` returns.
        images: folder of the images to use instead, together with ``annotations``.
        annotations: instances json.
        overrides: dotted settings to change, as ``data.short_side=600``.
        fast: judge by faster-coco-eval (the same numbers sooner).
        mesh, progress: as for ``detect``.

    Returns:
        As ``evaluate``.
    """
    trained, source = open_checkpoint(checkpoint, images, annotations, overrides=overrides)
    results = detect_all(trained, source, mesh, progress)
    return score(source.ground_truth(), results, masks=trained.experiment.data.masks, fast=fast).metrics


def open_checkpoint(
    checkpoint: Checkpoint,
    images: str | None = None,
    annotations: str | None = None,
    *,
    config: Experiment | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Trained, Source]:
    """A checkpoint and the data to evaluate it on: its validation set, or a COCO folder; arguments as above.

    Raises:
        ValueError: images without annotations or the other way round; whatever ``trained.load`` refuses.
    """
    trained = load(checkpoint, config=config, overrides=overrides)
    if (images is None) != (annotations is None):
        raise ValueError(f"data to evaluate: expected images and annotations, got {images=}, {annotations=}")
    folder = CocoFolder(images, annotations) if images and annotations else None
    return trained, open_source(folder if folder is not None else trained.experiment.data.val)


def detect_all(
    trained: Trained, source: Source, mesh: Mesh | None = None, progress: Progress | None = None
) -> list[Result]:
    """``detect`` with the settings and the categories of a checkpoint."""
    experiment = trained.experiment
    return detect(
        experiment.model,
        trained.variables,
        source,
        experiment.data,
        mesh,
        batch_size=experiment.run.eval_batch,
        categories=trained.categories or None,
        progress=progress,
    )
