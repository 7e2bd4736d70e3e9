"""Training on a small data set of one's own in a given time: settings from a folder and a number of minutes.

What is decided here is decided once: a run that goes on has the settings with which it began, in its folder.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from jaxdet.config import from_data, override
from jaxdet.data import CocoFolder, LargeScaleJitter, open_source, train_batches
from jaxdet.experiment import Experiment, Schedule, as_experiment
from jaxdet.runtime.files import write_json
from jaxdet.runtime.mesh import data_mesh, layout_of, replicated_key, split_batch
from jaxdet.training.optimizer import frozen_parameters, learning_rate, update_direction
from jaxdet.training.state import init_state, init_variables
from jaxdet.training.step import make_train_step

_HELD_OUT = 5  #: one of so many images is for validation, where the folder says nothing about it
_FOR_STEPS = 0.75  #: of the time; the rest is for compiling, evaluating and pictures
_EVALUATIONS = 4  #: in a run
_TIMED = 3  #: steps, after two that are not timed

_log = logging.getLogger(__name__)


def small_data(
    base: Experiment,
    folder: Path,
    minutes: float,
    workdir: Path,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
) -> Experiment:
    """Make the experiment of a run of some minutes on a folder of annotated photos.

    Args:
        base: the model, and what of the settings does not follow from data and time; rates as for AdamW.
        folder: see `find_data`.
        minutes: how long the run may take on this machine, with its evaluations.
        workdir: folder of the run; if it holds one already, that one's experiment is returned, which must be one on
            this data.
        overrides: changes by dotted names, which come last.
        trusted: names of modules whose classes the config may name.

    Raises:
        ValueError: the folder is not as expected, the time is not above 0, or there are several processes.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes: expected a number above 0, got {minutes}")
    if jax.process_count() > 1:
        raise ValueError(
            "--data: expected one process, whose steps are timed, got several; name the data by data.train"
        )
    if (begun := workdir / "config.json").exists():
        stored: Experiment = as_experiment(from_data(json.loads(begun.read_text()), trusted))
        if (stored.data.train, stored.data.val) != _data(folder, workdir):
            raise ValueError(f"--data {folder}: {workdir} holds a run on other data; choose another --workdir")
        return override(stored, overrides)
    train, val = find_data(folder, workdir)
    classes = len(open_source(train).categories)
    # The time of a step does not depend on the length of the schedule.
    draft = override(_fitted(base, train, val, classes, steps=1000), overrides)
    _log.info("timing a step: it is compiled for that, which may take minutes that are not part of --minutes")
    seconds = step_seconds(draft)
    steps = max(int(_FOR_STEPS * 60 * minutes / seconds), _EVALUATIONS)
    _log.info("a step takes %.2f s here: %d steps in %g minutes", seconds, steps, minutes)
    return override(_fitted(base, train, val, classes, steps), overrides)


def find_data(folder: Path, workdir: Path) -> tuple[CocoFolder, CocoFolder]:
    """Find the images and the annotations of a folder: ``images/``, or the photos beside the json.

    Of the json files in it, or in ``annotations/``, one whose name has ``val`` is for validation, and one other for
    training.  Where there is none for validation, every fifth image is held out, by two files in ``workdir``.

    Raises:
        ValueError: there is no json for training, or more than one.
    """
    _, train, val = _named(folder)
    if val is None:
        _hold_out(train, workdir)
    return _data(folder, workdir)


def _named(folder: Path) -> tuple[Path, Path, Path | None]:
    """The folder of the images, and the jsons for training and, if there is one, for validation."""
    found = sorted(path for place in (folder, folder / "annotations") for path in place.glob("*.json"))
    val = [path for path in found if "val" in path.stem]
    train = [path for path in found if path not in val]
    if len(train) != 1 or len(val) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise ValueError(
            f"--data {folder}: expected one COCO json for training, and perhaps one with 'val' in its name, got "
            f"{names}; without --data, data.train.annotations=FILE and data.val.annotations=FILE name them"
        )
    return folder / "images" if (folder / "images").is_dir() else folder, train[0], val[0] if val else None


def _data(folder: Path, workdir: Path) -> tuple[CocoFolder, CocoFolder]:
    images, train, val = _named(folder)
    parts = (train, val) if val else _held_out(workdir)
    return CocoFolder(str(images), str(parts[0])), CocoFolder(str(images), str(parts[1]))


def _held_out(workdir: Path) -> tuple[Path, Path]:
    """Where the two parts of a json lie that has no validation set beside it."""
    return workdir / "instances_train.json", workdir / "instances_val.json"


def _hold_out(annotations: Path, workdir: Path) -> None:
    """Write the two parts of a json into the folder of the run, every fifth image by id for validation."""
    whole = json.loads(annotations.read_text())
    ids = sorted(image["id"] for image in whole["images"])
    val = set(ids[_HELD_OUT - 1 :: _HELD_OUT])
    if not val:
        raise ValueError(f"{annotations}: expected at least {_HELD_OUT} images to hold one out, got {len(ids)}")
    workdir.mkdir(parents=True, exist_ok=True)
    for path, chosen in zip(_held_out(workdir), (set(ids) - val, val), strict=True):
        images = [image for image in whole["images"] if image["id"] in chosen]
        entries = [entry for entry in whole["annotations"] if entry["image_id"] in chosen]
        write_json(path, whole | {"images": images, "annotations": entries})
    _log.info("%d of %d images are held out for validation", len(val), len(ids))


def _fitted(base: Experiment, train: CocoFolder, val: CocoFolder, classes: int, steps: int) -> Experiment:
    """The base with the data, a schedule of so many steps, and what goes with both."""
    data = dataclasses.replace(base.data, train=train, val=val, augment=(LargeScaleJitter(0.6, 1.6),))
    schedule = Schedule(
        length=steps, drops=(), unit="steps", decay="cosine", warmup_share=0.05, warmup_ratio=0.01, final_ratio=0.01
    )
    # The average looks back over a twentieth of the run.
    optimizer = dataclasses.replace(base.optimizer, schedule=schedule, ema=max(1 - 20 / steps, 0.0))
    run = dataclasses.replace(
        base.run,
        log_every=max(min(steps // 20, 50), 1),
        checkpoint_every=max(steps // 10, 1),
        eval_every=max(steps // _EVALUATIONS, 1),
        keep_best="segm/AP" if data.masks else "bbox/AP",
    )
    whole = dataclasses.replace(base, data=data, optimizer=optimizer, run=run)
    return override(whole, [f"model.num_classes={classes}"])


def step_seconds(experiment: Experiment) -> float:
    """Measure a training step on this machine, fresh weights and the first batches of the data: seconds."""
    model, optimizer, data = experiment.model, experiment.optimizer, experiment.data
    mesh = data_mesh()
    frozen = frozen_parameters(model, experiment.run.train_only)
    direction = update_direction(optimizer, frozen)
    rate = learning_rate(optimizer, data.batch_size, 1)
    step = make_train_step(model, direction, rate, mesh, is_frozen=frozen, ema=optimizer.ema)
    averaged = optimizer.ema is not None
    state: Any = init_state(init_variables(model, jax.random.key(0)), direction, averaged=averaged)
    # Where a step leaves it: from elsewhere the second step would be compiled anew.
    state = jax.device_put(state, layout_of(state, mesh, split=experiment.run.shard_parameters))
    key = replicated_key(0, mesh)
    # Batches of one canvas, so that one program is compiled; in this process, since workers would cost their start.
    one = dataclasses.replace(data, workers=0)
    with train_batches(open_source(data.train), one, seed=0, start_step=0) as batches:
        first = next(batches)
        same = (batch for batch in batches if batch.image.shape == first.image.shape)
        for _ in range(2):  # the first is compiled; the second is what no later one needs to be
            state, metrics = step(state, split_batch(first, mesh), key)
        jax.block_until_ready(metrics)
        begin = time.perf_counter()
        for batch in islice(same, _TIMED - 1):
            state, metrics = step(state, split_batch(batch, mesh), key)
        state, metrics = step(state, split_batch(first, mesh), key)
        jax.block_until_ready(metrics)
    return (time.perf_counter() - begin) / _TIMED
