"""Training on a small data set of one's own in a given time: settings from a folder and a number of minutes.

What is decided here is decided once: a run that goes on has the settings with which it began, in its folder.  Before
its first checkpoint there is nothing to go on with, and it begins anew; but its folder is for that data from the start.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet.checkpoints.public.table import find_public
from jaxdet.checkpoints.reading import has_checkpoint
from jaxdet.config import from_data, load_config, override
from jaxdet.data import CocoFolder, Data, LargeScaleJitter, Source, open_source, train_batches
from jaxdet.experiment import Experiment, Schedule, as_experiment
from jaxdet.messages import counted
from jaxdet.models.two_stage import TwoStage
from jaxdet.runtime.agreement import from_all
from jaxdet.runtime.files import read_json_file, write_json
from jaxdet.runtime.mesh import all_devices, data_mesh, layout_of, replicated_key, split_batch
from jaxdet.training.optimizer import frozen_parameters, learning_rate, update_direction
from jaxdet.training.run import open_data
from jaxdet.training.state import check_weights, init_state, init_variables
from jaxdet.training.step import step_of_run
from jaxdet.training.workdir import locked

_HELD_OUT = 5  #: one of so many images is for validation, where the folder says nothing about it
_FOR_STEPS = 0.75  #: of the time; the rest is for compiling, evaluating and pictures
_EVALUATIONS = 4  #: in a run, if there is time for them
_PREDICTED = 1 / 3  #: of the time that as many pixels take in training: what predicting and judging them takes
_TIMED = 3  #: steps, after two that are not timed
_SMALL = 24  #: pixels that a small object's side is to have in evaluation
_OUTLINES = 320  #: short side at which outlines of large objects are as good as the masks' bitmaps
_LEAST, _LARGEST = 192, 640  #: short side of the canvases of training
_ENOUGH = 600  #: steps that a run is to have before its canvases grow
_FEW_STEPS = 150  #: below them few objects are found, and their outlines are coarse
_MOST_STEPS, _MOST_EPOCHS = 3000, 200  #: beyond both a small data set is only learned by heart
_FEW = 5  #: objects in a photo
_BEGUN = "small_data.json"  #: in the folder of the run: for which data and how many minutes it was begun

_log = logging.getLogger(__name__)


def default_base() -> Experiment:
    """The model for a small data set on the devices that there are, with the public weights from which it starts."""
    if all_devices()[0].platform == "cpu":
        # Two of the mask head's four convolutions, which no weights are loaded for, are a sixth of a step's time.
        settings = ["run.init_from=resnet18", "model.parts.0.heads.0.head.convs=2"]
        return as_experiment(override(load_config("mask_rcnn_r18_fpn_small"), settings))
    weights = find_public("maskrcnn_resnet50_fpn_v2")
    assert weights is not None  # a test looks it up
    settings = [f"run.init_from={weights.name}", "run.init_new_classes=true", "data.batch_size=4"]
    return as_experiment(override(load_config(weights.config), [*weights.settings, *settings]))


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
        base: the model, and what of the settings does not follow from data and time.
        folder: see `find_data`.
        minutes: how long the run may take on this machine, with its evaluations.
        workdir: folder of the run; if it has a checkpoint already, the experiment of that run is returned.
        overrides: changes by dotted names, which come last.
        trusted: names of modules whose classes the config may name.

    Raises:
        ValueError: the folder is not as expected, the time is not above 0, ``workdir`` is for other data or another run
            is in it, or there are several processes.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes: expected a number above 0, got {minutes}")
    if jax.process_count() > 1:
        raise ValueError(
            "--data: expected one process, whose steps are timed, got several; name the data by data.train"
        )
    _named(folder)  # which refuses other folders, before this run has one
    with locked(workdir):
        if has_checkpoint(workdir):
            return override(_begun(folder, minutes, workdir, trusted), overrides)
        if (there := _begun_for(workdir)) not in (None, str(folder.resolve())):
            raise ValueError(
                f"--data {folder}: {workdir} is the folder of a run on {there}; choose another --workdir, or remove it"
            )
        return _timed(base, folder, minutes, workdir, overrides)


def refuse_begun(workdir: Path) -> None:
    """Keep a run of a config out of a folder that `small_data` has taken for its data.

    A folder with a checkpoint is left to `training.workdir.claimed`, which compares configs.  All processes call this.

    Raises:
        ValueError: the folder has no checkpoint yet, and is for a run on a small data set.
    """

    def refuse() -> None:
        if not has_checkpoint(workdir) and (there := _begun_for(workdir)):
            raise ValueError(
                f"{workdir} is the folder of a run on {there}; go on with that by --data {there}, choose "
                "another --workdir, or remove it"
            )

    from_all(refuse)


def _begun_for(workdir: Path) -> str | None:
    """The folder of data that a run was begun for in ``workdir``."""
    note = workdir / _BEGUN
    return read_json_file(note, "the note")["data"] if note.exists() else None


def _begun(folder: Path, minutes: float, workdir: Path, trusted: Sequence[str]) -> Experiment:
    """The experiment of a run that goes on."""
    stored: Experiment = as_experiment(from_data(read_json_file(workdir / "config.json", "the config"), trusted))
    if (stored.data.train, stored.data.val) != _data(folder, workdir):
        raise ValueError(f"--data {folder}: {workdir} holds a run on other data; choose another --workdir")
    note = workdir / _BEGUN
    if note.exists() and (then := read_json_file(note, "the note")["minutes"]) != minutes:
        _log.warning(
            "--minutes %g: %s holds a run that was begun for %g minutes and goes on with its own schedule; for a new "
            "run choose another --workdir",
            *(minutes, workdir, then),
        )
    return stored


def _timed(base: Experiment, folder: Path, minutes: float, workdir: Path, overrides: Sequence[str]) -> Experiment:
    """The experiment of a new run, for which a step is timed."""
    train, val = find_data(folder, workdir)
    source = open_source(train)
    photos = describe(source)
    # The time of a step does not depend on the length of the schedule.
    draft = override(_fitted(base, train, val, photos, base.data.short_side, steps=1000), overrides)
    # What training refuses is refused now: to time a step takes minutes.
    open_data(draft.data, photos.classes, draft.run)
    # Not before the annotations could be read: a folder that is no data set does not claim this one.
    write_json(workdir / _BEGUN, {"data": str(folder.resolve()), "minutes": minutes})
    _log.info("%s", photos)
    check_weights(draft, [category.name for category in source.categories])
    seconds = _FOR_STEPS * 60 * minutes
    _log.info("timing a step: it is compiled for that, which may take minutes that are not part of --minutes")
    at_draft = step_seconds(draft)
    side = training_side(photos, base.data, at_draft, seconds)
    fitted = override(_fitted(base, train, val, photos, side, steps=1000), overrides)
    each = at_draft if fitted.data == draft.data else step_seconds(fitted)
    batch = fitted.data.batch_size
    steps = min(max(int(seconds / each), _EVALUATIONS), max(_MOST_STEPS, _MOST_EPOCHS * photos.images // batch))
    predicted = _PREDICTED * each / batch * (fitted.data.short_side / side) ** 2 * len(open_source(val))
    times = evaluations(predicted, 60 * minutes - seconds)
    _log.info("a step at %d pixels takes %.2f s here: %d steps, which is %.0f minutes of %g, and %s",
              side, each, steps, steps * each / 60, minutes, counted(times, "evaluation"))  # fmt: skip
    if steps < _FEW_STEPS:
        wanted = math.ceil(_ENOUGH * each / 60 / _FOR_STEPS)
        _log.warning("%d steps teach a model little; --minutes %d would be %d steps here", steps, wanted, _ENOUGH)
    return override(_fitted(base, train, val, photos, side, steps, times), overrides)


@dataclass(frozen=True)
class Photos:
    """What of a training set decides about sizes and slots."""

    images: int
    classes: int
    short_side: int  #: of the median photo, in pixels as stored
    crowded: int  #: most objects in one of them
    small: float  #: side of a small object, the square root of its area, as a share of its photo's short side
    typical: float  #: objects in a photo, the mean

    def __str__(self) -> str:
        return (
            f"{counted(self.images, 'photo')}, {counted(self.classes, 'class')}, "
            f"{self.typical:.1f} objects each, {self.crowded} at most; "
            f"one in ten is smaller than {self.small:.0%} of the photo's short side"
        )


def describe(source: Source) -> Photos:
    """Measure a training set."""
    truth = source.ground_truth()
    short = dict(zip(source.image_ids.tolist(), source.sizes.min(axis=1).tolist(), strict=True))
    found = [a for a in truth["annotations"] if not a.get("iscrowd") and a["area"] > 0 and short[a["image_id"]] > 0]
    shares = [a["area"] ** 0.5 / short[a["image_id"]] for a in found]
    return Photos(
        images=len(source),
        classes=len(source.categories),
        short_side=int(np.median(source.sizes.min(axis=1))),
        crowded=max(int(source.usable.max()), 1),
        small=float(np.quantile(shares, 0.1)) if shares else 1.0,
        typical=float(source.usable.mean()),
    )


def seen_side(photos: Photos, training: int) -> int:
    """Choose the short side of evaluation and prediction: small objects get `_SMALL` pixels, within bounds.

    No photo is enlarged for it, and none gets more than twice the side of the training canvases, of which a part is
    seen then.
    """
    wanted = min(max(_SMALL / photos.small, training), 2 * training, max(photos.short_side, training))
    return _rounded(wanted)


def training_side(photos: Photos, data: Data, seconds_a_step: float, seconds: float) -> int:
    """Choose the short side of training canvases: the largest at which the time is enough for `_ENOUGH` steps.

    Args:
        photos: the training set.
        data: settings of the base, at whose ``short_side`` a step was timed.
        seconds_a_step: by that measurement; it grows with the pixels, or less.
        seconds: of the whole run that are for steps.
    """
    # No larger than what outlines, small objects and the photos have a use for.
    most = min(max(_SMALL / photos.small, _OUTLINES), photos.short_side, _LARGEST)
    affordable = data.short_side * (seconds / (_ENOUGH * seconds_a_step)) ** 0.5
    return max(int(min(most, affordable) / 32) * 32, min(_LEAST, data.short_side))


def evaluations(seconds_of_one: float, seconds: float) -> int:
    """Choose how often a run is evaluated: `_EVALUATIONS` times, or as often as there is time, but once at the end."""
    return max(min(round(seconds / seconds_of_one), _EVALUATIONS), 1)


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
    if not folder.is_dir():
        raise ValueError(f"--data {folder}: expected a folder with annotated photos, there is none")
    found = sorted(path for place in (folder, folder / "annotations") for path in place.glob("*.json"))
    val = [path for path in found if "val" in path.stem]
    train = [path for path in found if path not in val]
    if len(train) != 1 or len(val) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise ValueError(
            f"--data {folder}: expected one COCO json for training, and perhaps one with 'val' in its name, got "
            f"{names}; without --data, data.train.annotations=FILE and data.val.annotations=FILE name them, and "
            f"`jaxdet data convert {folder} OUT --images link` makes such a folder of another tool's data"
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


def _fitted(
    base: Experiment,
    train: CocoFolder,
    val: CocoFolder,
    photos: Photos,
    side: int,
    steps: int,
    times: int = _EVALUATIONS,
) -> Experiment:
    """The base with the data, canvases of that short side in training, so many steps, and what goes with both.

    ``times`` it is evaluated.
    """
    ratio = base.data.long_side / base.data.short_side
    seen = seen_side(photos, side)
    zoom = seen / side
    data = dataclasses.replace(
        base.data,
        train=train,
        val=val,
        short_side=seen,
        long_side=_rounded(seen * ratio),
        train_sides=(side, _rounded(side * ratio)),
        max_boxes=max(photos.crowded, 10),
        augment=(LargeScaleJitter(0.6 * zoom, 1.6 * zoom),),
    )
    schedule = Schedule(
        length=steps, drops=(), unit="steps", decay="cosine", warmup_share=0.05, warmup_ratio=0.01, final_ratio=0.01
    )
    # The average looks back over a twentieth of the run.
    optimizer = dataclasses.replace(base.optimizer, schedule=schedule, ema=max(1 - 20 / steps, 0.0))
    run = dataclasses.replace(
        base.run,
        log_every=max(min(steps // 20, 50), 1),
        checkpoint_every=max(steps // 10, 1),
        eval_every=math.ceil(steps / times),  # rounded up: the last is the end alone
        keep_best="segm/AP" if data.masks else "bbox/AP",
    )
    whole = dataclasses.replace(base, data=data, optimizer=optimizer, run=run)
    return override(whole, [f"model.num_classes={photos.classes}", *_fewer_samples(base, photos)])


def _fewer_samples(base: Experiment, photos: Photos) -> list[str]:
    """Fewer samples for the heads where photos show few objects: what the heads cost follows their number."""
    if not isinstance(base.model, TwoStage) or photos.typical > _FEW:
        return []
    return [
        f"model.stages.{t}.sampler.number={max(s.sampler.number // 2, 32)}" for t, s in enumerate(base.model.stages)
    ]


def _rounded(side: float) -> int:
    return max(round(side / 32), 1) * 32


def step_seconds(experiment: Experiment) -> float:
    """Measure a training step on this machine, fresh weights and the first batches of the data: seconds."""
    model, optimizer, data = experiment.model, experiment.optimizer, experiment.data
    mesh = data_mesh()
    direction = update_direction(optimizer, frozen_parameters(model, experiment.run.train_only))
    averaged = optimizer.ema is not None
    state: Any = init_state(init_variables(model, jax.random.key(0)), direction, averaged=averaged)
    layout = layout_of(state, mesh, split=experiment.run.shard_parameters)
    step = step_of_run(experiment, direction, learning_rate(optimizer, data.batch_size, 1), mesh, layout)
    # Where a step leaves it: from elsewhere the second step would be compiled anew.
    state = jax.device_put(state, layout)
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
