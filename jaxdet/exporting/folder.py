"""The folder of an exported model: programs, weights beside them, a description, and a loader of one file.

Weights are arguments of the programs and lie in one file: inside, each program would hold all of them again, and there
is one for each canvas, batch size and platform.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet.checkpoints.tree import flatten
from jaxdet.data.validation.entries import check_sides
from jaxdet.evaluation.categories import numbered
from jaxdet.exporting import loader
from jaxdet.exporting.description import WEIGHTS, canvases, describe
from jaxdet.exporting.programs import PLATFORMS, Program, detections_of, trace
from jaxdet.runtime.files import check_local, named_in_errors, write_json
from jaxdet.trained import Checkpoint, Trained, load

DESCRIPTION = "export.json"
_KNOWN = (DESCRIPTION, WEIGHTS, "load.py", "programs", "__pycache__")  #: what an exported folder has in it


def export(
    checkpoint: Checkpoint,
    target: str | PathLike[str],
    *,
    platforms: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    image: tuple[int, int] | None = None,
    score_threshold: float = 0.5,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model as StableHLO programs with weights, description and loader (``jaxdet.export``).

    Each platform, canvas and batch size has a program.  A model predicts on two canvases, for images that are wider
    than high and for others (``data.short_side``, ``data.long_side``; one if they are equal), and on those of
    ``data.canvas_ratios``.

    Args:
        checkpoint: as `jaxdet.load` takes it, or what that returned.
        target: folder to write; it is there completely or not at all.  An earlier export there is replaced.
        platforms: of ``cpu``, ``cuda``, ``rocm``, ``tpu``; none of them need be here.  Empty: that of this machine.
        batch_sizes: how many images a program takes at once.
        image: height and width of all images that will come: then there are programs for their canvas alone.
        score_threshold: below which the loader leaves detections out, unless it is told otherwise.
        overrides: settings to change, by dotted keys, such as ``data.short_side=600``.
        trusted: modules whose classes the checkpoint may name, as for `jaxdet.load`.
        progress: called with the number of programs that are done, and of all.

    Returns:
        The folder.

    Raises:
        ImportError: flatbuffers is not installed, by which ``jax.export`` writes its files.
        FileNotFoundError: there is no checkpoint.
        ValueError: something else than an export is at ``target``, a platform is not known, a batch size or a threshold
            is none, the model cannot take such an image; or as `jaxdet.load`.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("export needs flatbuffers, by which jax writes programs: pip install 'jaxdet[export]'")
    target = Path(target)
    _check(target, platforms, batch_sizes, image, score_threshold)
    trained = load(checkpoint, overrides=overrides, trusted=trusted)
    weights = {"/".join(path): np.asarray(value) for path, value in flatten(trained.variables).items()}
    programs = [
        Program(platform, canvas, batch)
        for platform in dict.fromkeys(platforms or [_platform_here()])
        for canvas in canvases(trained.experiment.data, image)
        for batch in sorted(set(batch_sizes))
    ]
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed process has left
    try:
        with named_in_errors(target):
            _write(scratch, trained, weights, programs, float(score_threshold), progress)
        _put(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _check(
    target: Path,
    platforms: Sequence[str],
    batch_sizes: Sequence[int],
    image: tuple[int, int] | None,
    score_threshold: float,
) -> None:
    check_local(target, "the folder to write")
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or isinstance(platforms, str):
        hint = "; an NVIDIA GPU is cuda, one of AMD rocm" if "gpu" in unknown else ""
        got = f"{', '.join(unknown) or platforms}{hint}"
        raise ValueError(f"platforms: expected some of {', '.join(PLATFORMS)}, got {got}")
    if not batch_sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in batch_sizes):
        raise ValueError(f"batch sizes: expected whole numbers from 1, got {list(batch_sizes)}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score threshold: expected 0 to 1, got {score_threshold}")
    if image is not None:
        try:
            check_sides(*image)
        except ValueError as error:
            raise ValueError(f"image: {error}") from error
    if not target.exists():
        return
    strangers = sorted(path.name for path in target.iterdir() if path.name not in _KNOWN) if target.is_dir() else []
    if strangers or not _is_export(target):
        what = f"with {', '.join(strangers[:3])} in it" if strangers else "that is no export"
        raise ValueError(f"{target} exists: expected nothing there or an earlier export, got something {what}")


def _is_export(folder: Path) -> bool:
    try:
        return "calling_convention_version" in json.loads((folder / DESCRIPTION).read_text())["programs"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _write(
    folder: Path,
    trained: Trained,
    weights: dict[str, np.ndarray],
    programs: Sequence[Program],
    score_threshold: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    model = trained.experiment.model
    categories = trained.categories or numbered(model.num_classes)
    if len(categories) != model.num_classes:
        given = f"{len(categories)} in the checkpoint, num_classes={model.num_classes}"
        raise ValueError(f"categories: expected one for each class of the model, got {given}")
    (folder / "programs").mkdir(parents=True)
    exported: dict[Program, Any] = {}
    for done, program in enumerate(programs, 1):
        exported[program] = trace(model, weights, program)
        (folder / program.file).write_bytes(exported[program].serialize())
        if progress is not None:
            progress(done, len(programs))
    arrays: dict[str, Any] = dict(weights)
    np.savez(folder / WEIGHTS, **arrays)
    shutil.copyfile(loader.__file__, folder / "load.py")
    found = detections_of(model, weights, programs[0].canvas)
    files = [WEIGHTS, *(program.file for program in programs)]
    sha256 = {name: loader.sha256_of(folder / name) for name in files}
    write_json(folder / DESCRIPTION, describe(trained, categories, found, exported, weights, score_threshold, sha256))


def _put(folder: Path, target: Path) -> None:
    """Put a finished folder where an earlier one may be."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _platform_here() -> str:
    return loader.platform_of(jax.local_devices()[0])
