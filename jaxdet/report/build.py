"""From a run, or a file of results, to the numbers and the page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdet.data.pipeline.ready import check_files
from jaxdet.data.records import Source
from jaxdet.data.settings import COCO_DETECTIONS
from jaxdet.data.sources.coco import open_coco, read_json
from jaxdet.evaluation.results import Result, Truth, read_results
from jaxdet.evaluation.score import Kind, kinds_of, prepare, score
from jaxdet.report.judge import Judged, judge
from jaxdet.report.page import Run, write_page
from jaxdet.report.summary import check_scores, counts_of, summary
from jaxdet.runtime.files import replacing_files, write_json

if TYPE_CHECKING:  # a report of a file of results does without jax
    from jaxdet.evaluation.inference import Progress
    from jaxdet.trained import Checkpoint, Trained


@dataclass
class _Found:
    """The detections of one run, and what is known about its model."""

    name: str
    results: list[Result]
    model: dict[str, Any]
    masks: bool = True
    limit: int = COCO_DETECTIONS


def report(
    run: "Checkpoint | None" = None,
    *,
    other: "Checkpoint | None" = None,
    results: str | PathLike[str] | None = None,
    truth: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
    out: str | PathLike[str] = "report",
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
    fast: bool = False,
    progress: "Progress | None" = None,
) -> list[dict[str, Any]]:
    """Write where a model goes wrong: ``report.json``, and ``index.html`` with its folder ``images``.

    Args:
        run: a run folder, a checkpoint, a name of public weights, or what ``jaxdet.load`` returns.
        other: another one to compare with it image by image, or a results json of the same images.
        results: COCO results json, in the place of ``run``; needs ``truth``.
        truth: instances json of other images than the validation set of ``run``.
        images: their folder; without one, the page of ``results`` has no pictures.
        out: the folder to write into.
        overrides: settings of ``run`` to change, as for ``jaxdet.evaluate``.
        trusted: modules whose classes the checkpoints may name, as for ``jaxdet.load``.
        fast: score by faster-coco-eval (the same numbers sooner).
        progress: called after each batch of images.

    Returns:
        What ``report.json`` has, a dictionary for each run: ``name``, ``images``, ``objects``, ``coco`` (COCO's
        numbers), ``model`` (parameters, FLOPs of an image, images per second; empty for results) and ``bbox``, and
        with masks ``segm``, as in `summary.summary`.

    Raises:
        ValueError: not one of ``run`` and ``results``, results without truth, scores outside of 0 to 1, and what
            ``jaxdet.evaluate`` refuses.
    """
    if (run is None) == (results is None):
        raise ValueError(f"expected a run or --results, one of them, got {run=}, {results=}")
    if results is not None and truth is None:
        raise ValueError("expected --truth instances.json with --results, got none")
    if run is not None and (truth is None) != (images is None):
        raise ValueError(f"expected --truth and --images together, got {truth=}, {images=}")
    source: Source | None
    if results is not None:
        assert truth is not None
        if overrides:
            raise ValueError(f"report: settings are those of a model, and --results has none; got {list(overrides)}")
        source = open_coco(fspath(images), fspath(truth)) if images is not None else None
        if source is not None:
            check_files(source, f"--images {fspath(images)}")  # type: ignore[arg-type]
        ground_truth = source.ground_truth() if source else read_json(fspath(truth))
        found = [_Found(fspath(results), read_results(results, ground_truth), {})]
    else:
        from jaxdet.evaluation.evaluate import open_checkpoint
        from jaxdet.runtime.main_guard import refuse_in_workers

        assert run is not None
        refuse_in_workers()
        data = [None if path is None else fspath(path) for path in (images, truth)]
        trained, source = open_checkpoint(run, *data, overrides=overrides, trusted=trusted)
        ground_truth = source.ground_truth()
        found = [_detected(_name(run), trained, source, progress)]
    if other is not None:
        found.append(_other(other, source, ground_truth, progress, trusted))
    return _write(Path(out), ground_truth, _named_short(found), source, fast)


def _named_short(found: list[_Found]) -> list[_Found]:
    """Runs by the last part of their paths, where that tells them apart."""
    names = [Path(each.name).name or each.name for each in found]
    if len(set(names)) < len(names):
        return found
    return [replace(each, name=name) for each, name in zip(found, names, strict=True)]


def _other(
    other: "Checkpoint", source: Source | None, truth: Truth, progress: "Progress | None", trusted: Sequence[str]
) -> _Found:
    if isinstance(other, str | PathLike) and Path(other).suffix == ".json":
        return _Found(fspath(other), read_results(other, truth), {})
    if source is None:
        raise ValueError(f"--other {_name(other)}: expected --images for a model to look at, got none")
    from jaxdet.trained import load

    return _detected(_name(other), load(other, trusted=trusted), source, progress)


def _name(checkpoint: "Checkpoint") -> str:
    return fspath(checkpoint) if isinstance(checkpoint, str | PathLike) else "model"


def _detected(name: str, trained: "Trained", source: Source, progress: "Progress | None") -> _Found:
    from jaxdet.evaluation.evaluate import detect_all
    from jaxdet.report.costs import model_costs

    times: list[tuple[float, int]] = []

    def timed(done: int, count: int) -> None:
        times.append((time.perf_counter(), done))
        if progress:
            progress(done, count)

    results = detect_all(trained, source, progress=timed)
    experiment = trained.experiment
    model = model_costs(trained, source)
    # From the first batch on, whose time is that of compiling.
    if len(times) > 1 and times[-1][1] > times[0][1]:
        model["images_per_second"] = (times[-1][1] - times[0][1]) / (times[-1][0] - times[0][0])
    return _Found(name, results, model, experiment.data.masks, experiment.run.eval_detections)


def _bounded(result: Result) -> Result:
    """A result whose ``mask_score``, if it has one, is a probability: the predicted IoU that is part of it is not."""
    return result | {"mask_score": min(max(result["mask_score"], 0.0), 1.0)} if "mask_score" in result else result


def _write(out: Path, truth: Truth, found: Sequence[_Found], source: Source | None, fast: bool) -> list[dict[str, Any]]:
    for each in found:
        check_scores(each.results)
    found = [replace(each, results=[_bounded(result) for result in each.results]) for each in found]
    # What both can be compared by: of a model without masks and one with them, the boxes.
    kinds: tuple[Kind, ...] = ("bbox", "segm")
    for each in found:
        kinds = tuple(kind for kind in kinds if kind in (kinds_of(truth, each.results) if each.masks else ("bbox",)))
    masks = "segm" in kinds
    prepared = prepare(truth, masks=masks)
    reports, runs = [], []
    for each in found:
        scores = score(truth, each.results, masks=masks, fast=fast, max_detections=each.limit)
        judged: dict[str, Judged] = {kind: judge(prepared, each.results, kind, limit=each.limit) for kind in kinds}
        numbers: dict[str, Any] = {"name": each.name, **counts_of(prepared), "coco": scores.metrics}
        numbers["model"] = each.model
        reports.append(numbers | {kind: summary(one, scores, kind) for kind, one in judged.items()})  # type: ignore[arg-type]
        runs.append(Run(each.name, each.results, judged))
    # A picture that is missing shows when others are written already: then nothing is to stay.
    with replacing_files(out, last="index.html") as folder:
        write_json(folder / "report.json", reports, indent=None)
        write_page(folder, truth, prepared, runs, reports, source)
    return reports
