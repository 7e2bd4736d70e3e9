"""Evaluation: a model, or a checkpoint with its settings and the names of its classes, to COCO's numbers."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdet.config import described
from jaxdet.data import CocoFolder, Data, Source, open_source
from jaxdet.data.pipeline.ready import check_files
from jaxdet.data.scenes.write import folder_of
from jaxdet.data.settings import COCO_DETECTIONS, Scenes
from jaxdet.data.sources.open import fingerprint
from jaxdet.data.sources.stored import CHECK
from jaxdet.evaluation import Scores, check_truth, score
from jaxdet.evaluation.augmented import TestTimeAugmentation, detect_augmented
from jaxdet.evaluation.inference import Progress, detect
from jaxdet.evaluation.results import Result
from jaxdet.evaluation.score import Judges
from jaxdet.experiment import Experiment
from jaxdet.models.detector import Detector
from jaxdet.runtime.agreement import alike, from_all
from jaxdet.runtime.main_guard import refuse_in_workers
from jaxdet.trained import Checkpoint, Trained, load

# Scenes of at most so many pixels in all (a gigapixel) are made for a checkpoint.
_MOST_PIXELS = 2**30


def evaluate(
    model: Detector,
    variables: Any,
    source: Source,
    data: Data,
    mesh: Mesh | None = None,
    *,
    max_detections: int = COCO_DETECTIONS,
    **settings: Any,
) -> dict[str, float]:
    """COCO's twelve numbers, for boxes and (if the model has them, and ``data.masks`` is set) for masks.

    Args:
        model: any `Detector`.
        variables: of the model.
        source: images and ground truth.
        data: settings of resize, canvas and workers.
        mesh: devices, with one axis ``data``; None for all there are.
        max_detections: as for ``score``.
        settings: as for ``inference.detect``.

    Returns:
        ``bbox/AP``, ``bbox/AP50``, ... ``segm/AR_l`` (``evaluation.STATISTICS``); -1 where the ground truth has
        nothing of that kind.  The same on every process.
    """
    results = detect(model, variables, source, data, mesh, **settings)
    return score_together(source, results, masks=data.masks, max_detections=max_detections).metrics


def score_together(source: Source, results: Sequence[Result], **settings: Any) -> Scores:
    """``score`` of what `detect` found, by all processes together; all call it, and it is the same on every one.

    Args:
        source: the data, with their ground truth.
        results: of all images.
        settings: as for ``score``.
    """
    judges = Judges(jax.process_index(), jax.process_count(), from_all)
    return score(source.ground_truth(), results, judges=judges, **settings)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    *,
    images: str | None = None,
    annotations: str | None = None,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
    augment: TestTimeAugmentation | None = None,
    fast: bool = False,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """``jaxdet.evaluate``: COCO's twelve numbers of a checkpoint over its validation set or another data set.

    Args:
        checkpoint: a run folder, the folder of one checkpoint, or what ``jaxdet.load`` returns.
        images: folder of the images to use instead, together with ``annotations``.
        annotations: instances json.
        overrides: dotted settings to change, as ``data.short_side=600`` ``data.long_side=1000``.
        trusted: modules whose classes the checkpoint may name, as for ``jaxdet.load``.
        augment: see each image several times, on one device of each process; None: once.
        fast: score by faster-coco-eval (the same numbers sooner).
        mesh: as for ``detect``.
        progress: as for ``detect``.

    Returns:
        As ``evaluate``.
    """
    refuse_in_workers()
    trained, source = open_checkpoint(checkpoint, images, annotations, overrides=overrides, trusted=trusted)
    results = detect_all(trained, source, mesh, progress, augment)
    return score_all(trained, source, results, fast=fast).metrics


def open_checkpoint(
    checkpoint: Checkpoint,
    images: str | None = None,
    annotations: str | None = None,
    *,
    config: Experiment | None = None,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
) -> tuple[Trained, Source]:
    """A checkpoint and the data to evaluate it on: its validation set, or a COCO folder; arguments as above.

    Of several processes all open the same, or all raise.

    Raises:
        ValueError: images without annotations or the other way round; whatever ``trained.load`` or `check_scorable`
            refuses; scenes that a checkpoint should not have made here; processes that differ (`agreement.alike`).
    """

    def opened() -> tuple[Trained, Source]:
        trained = load(checkpoint, config=config, overrides=overrides, trusted=trusted)
        if (images is None) != (annotations is None):
            raise ValueError(f"data to evaluate: expected images and annotations, got {images=}, {annotations=}")
        val = CocoFolder(images, annotations) if images and annotations else trained.experiment.data.val
        if config is None and isinstance(val, Scenes):
            _refuse_to_write(val)
        source = open_source(val)
        check_scorable(source, trained.experiment.data)
        return trained, source

    # Processes with different data or weights would wait for each other for ever, or mix their results.
    return alike(opened, _described)


def check_scorable(source: Source, data: Data) -> None:
    """Look for what would end an evaluation, before it takes its time: missing files, and a ground truth that is none.

    Raises:
        ValueError: names the files, or the entry of the json.
    """
    check_files(source, "data to evaluate (data.val)")
    try:
        check_truth(source.ground_truth(), masks=data.masks)
    except ValueError as error:
        raise ValueError(f"data to evaluate (data.val): {error}; {CHECK}") from error


def _refuse_to_write(scenes: Scenes) -> None:
    """ValueError for scenes that are not there yet and would be many, or lie where a checkpoint's config says.

    A checkpoint may be a stranger's, and to evaluate it should not fill a disk.
    """
    folder, pixels = folder_of(scenes), scenes.count * scenes.size**2
    if not folder.exists() and (scenes.directory or pixels > _MOST_PIXELS):
        raise ValueError(
            f"the checkpoint was validated on {scenes.count} scenes of {scenes.size} pixels in {folder}, which is not "
            "there and is not made for a checkpoint: give images and annotations, or a config of your own"
        )


def _described(opened: tuple[Trained, Source]) -> dict[str, Any]:
    trained, source = opened
    return {"config": described(trained.experiment), "step": trained.step, "images": fingerprint(source)}


def detect_all(
    trained: Trained,
    source: Source,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    augment: TestTimeAugmentation | None = None,
) -> list[Result]:
    """``detect``, or with views `detect_augmented`, with the settings and the categories of a checkpoint."""
    experiment = trained.experiment
    if augment is not None:
        return detect_augmented(
            experiment.model,
            trained.variables,
            source,
            experiment.data,
            augment,
            categories=trained.categories or None,
            progress=progress,
        )
    return detect(
        experiment.model,
        trained.variables,
        source,
        experiment.data,
        mesh,
        batch_size=experiment.run.eval_batch,
        shard_parameters=experiment.run.shard_parameters,
        categories=trained.categories or None,
        progress=progress,
    )


def score_all(trained: Trained, source: Source, results: Sequence[Result], *, fast: bool = False) -> Scores:
    """`score_together` with the settings of a checkpoint."""
    experiment = trained.experiment
    limit = experiment.run.eval_detections
    return score_together(source, results, masks=experiment.data.masks, fast=fast, max_detections=limit)
