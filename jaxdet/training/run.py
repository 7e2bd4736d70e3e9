"""A training run from beginning to end."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import jaxdet
from jaxdet.checkpoints.importing import find_weights
from jaxdet.checkpoints.reading import has_checkpoint
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.config import check, flat_settings, to_data, trusted_modules
from jaxdet.data import BatchIterator, Data, Source, open_source, train_batches
from jaxdet.data.pipeline.plans import train_plan
from jaxdet.data.pipeline.ready import check_trainable
from jaxdet.data.sources.open import fingerprint
from jaxdet.evaluation.categories import match_categories
from jaxdet.evaluation.evaluate import check_scorable
from jaxdet.experiment import Experiment, Run, as_experiment
from jaxdet.ops.losses import check_class_weights
from jaxdet.runtime.agreement import alike
from jaxdet.runtime.files import check_local
from jaxdet.runtime.main_guard import refuse_in_workers
from jaxdet.runtime.mesh import check_batch_size, data_mesh, device_kinds, replicated_key
from jaxdet.training.best import Best, Enough
from jaxdet.training.log import RunLog
from jaxdet.training.loop import METER, Hooks, Intervals, OnEval, OnStep, run_steps
from jaxdet.training.metrics import FiniteCheck, Meter
from jaxdet.training.optimizer import check_patterns, frozen_parameters, learning_rate, update_direction
from jaxdet.training.phases import first_phase, named, start_of
from jaxdet.training.position import CATEGORIES, DATA, POSITION, Position, check_data
from jaxdet.training.profile import Profile, steps_of
from jaxdet.training.signals import StopRequest, stop_on_signal
from jaxdet.training.state import TrainState, start_state
from jaxdet.training.step import StepByCanvas, step_of_run
from jaxdet.training.validate import validate, write_metrics
from jaxdet.training.workdir import claimed, read_metrics, stopped_at
from jaxdet.training.writers.writer import Writer, check_writers

_log = logging.getLogger(__name__)
_LONGER = "a longer optimizer.schedule.length with --accept-changes trains it on"


def train(
    experiment: Experiment,
    workdir: str | Path,
    *,
    accept_changes: bool = False,
    trusted: Sequence[str] = (),
    writers: Sequence[Writer] = (),
    on_step: OnStep | None = None,
    on_eval: OnEval | None = None,
    profile: str | None = None,
) -> dict[str, float]:
    """Train to the end of the schedule, from where the run in ``workdir`` stopped, on all devices.

    Writes into ``workdir``: ``checkpoints/``, ``config.json`` and ``.txt``, ``log.jsonl``, ``tensorboard/``,
    ``curves.png`` and, where there is a validation set, ``metrics.json`` and ``.txt`` and ``predictions.png``, and the
    folder ``best`` with ``run.keep_best``.  The first of two phases (``experiment.before``) writes the same into the
    folder ``before`` of it, and has none of writers, ``on_step``, ``on_eval`` and ``profile``.

    Args:
        experiment: what to train, on what, how.
        workdir: folder of the run; an unfinished run in it goes on, a finished one is left as it is.
        accept_changes: go on although the config or the data is not the one that the run began with.  A schedule in
            epochs goes on after as many of them, however many steps they have now.
        trusted: names or paths of modules whose classes the config may name (`jaxdet.config.trusted_modules`).
        writers: get the config, numbers and pictures of the run beside its own files, as `jaxdet.training.writers`.
        on_step: called as ``on_step(step, metrics)`` every ``run.log_every`` steps with what the log has of them.  In
            other steps the device is not waited for.
        on_eval: called as ``on_eval(step, scores)`` after each evaluation.  If it returns ``"stop"``, the run ends
            there, saved and with these scores, and the same call does not go on with it; else it returns None.  Of
            several processes the first one calls ``on_step``, ``on_eval`` and the writers.  What these two raise ends
            the run; its state is saved before.
        profile: steps to trace, such as ``"10:15"``, into the folder ``profile`` of the run (`training.profile`).

    Returns:
        COCO's numbers at the end (`jaxdet.evaluation.evaluate.evaluate`); empty without a validation set.

    Raises:
        ValueError: settings that do not fit each other, the data, the devices or the run in ``workdir``, data that is
            not what that run began with, or an object among ``writers`` that is none.
        FileNotFoundError: data, or weights to start from, that are not there.
        FloatingPointError: a loss or the gradient is not finite (see `metrics.FiniteCheck`).
        SystemExit: a signal asked to stop, after the first step or while it was compiled; the state is saved.  Or a
            data worker came here (`main_guard`).
    """
    refuse_in_workers()
    check_local(workdir, "--workdir")
    trusted = trusted_modules(trusted)
    check(as_experiment(experiment))  # a config from Python code has not been checked yet
    job = _prepare(experiment, Path(workdir), trusted, _Listeners(tuple(writers), on_step, on_eval, profile))
    with (
        claimed(job.workdir, experiment, job.metadata["config"], accept_changes, trusted),
        CheckpointStore(workdir, keep=experiment.run.keep_checkpoints) as store,
    ):
        # Claimed and checked before the first of two phases, which may take days.
        state = job.first_state(store, partial(train, accept_changes=accept_changes, trusted=trusted))
        start = int(state.step)
        stored = store.metadata(start) if start else {}
        check_data(job.workdir, stored, job.metadata, accept_changes=accept_changes)
        position = job.position(start, stored)
        with (
            # Not before: until here a signal ends the process, since there is nothing to save, and making the variables
            # can take a minute in which it could not be answered.
            stop_on_signal() as stop,
            job.batches(start, position) as batches,
            job.log(start) as log,
            job.best(position) as best,
            job.profile(start, position) as traced,
        ):
            hooks = job.hooks(start, position, stored, log, store, stop, best, traced)
            done = read_metrics(job.workdir)
            # Without scores of a run at its end, its last evaluation was cut off, and is made up for below.
            over = start >= hooks.total or hooks.enough(start) or (done is not None and stopped_at(job.workdir, start))
            if over and (done is not None or job.val is None):
                _log.info("%s holds a finished run of %d steps; %s", workdir, start, _LONGER)
                return done or {}
            hooks.resume(state)
            if not over and not hooks.stopped:
                state = job.steps(state, batches, position, hooks)
            metrics = hooks.evaluate(int(state.step), state)
            log.curves()
            store.wait()  # while signals are noted, or one could cut off the last checkpoint
    if metrics and job.writes:
        write_metrics(metrics, job.workdir)
    return metrics


@dataclass(frozen=True)
class _Listeners:
    """What the user wants to know of a run while it goes on; arguments of `train`."""

    writers: tuple[Writer, ...]
    on_step: OnStep | None
    on_eval: OnEval | None
    profile: str | None


@dataclass(frozen=True)
class _Job:
    """A run's fixed parts, and the parts that are made of them."""

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    source: Source
    val: Source | None  #: the validation set
    metadata: dict[str, Any]  #: goes into every checkpoint
    listeners: _Listeners

    @property
    def writes(self) -> bool:
        """Whether this process writes logs and pictures, which one process of a job does."""
        return jax.process_index() == 0

    @property
    def direction(self) -> optax.GradientTransformation:
        """What makes a direction of a gradient; frozen parameters do not move."""
        experiment = self.experiment
        return update_direction(experiment.optimizer, frozen_parameters(experiment.model, experiment.run.train_only))

    def first_state(self, store: CheckpointStore, train: Callable[[Experiment, Path], Any]) -> TrainState:
        """The state of the newest checkpoint, or else one to begin with; ``train`` trains the first of two phases."""
        model, averaged = self.experiment.model, self.experiment.optimizer.ema is not None
        run = start_of(self.experiment, self.workdir, begun=bool(store.steps()), train=train)
        classes = [category.name for category in self.source.categories]
        with named("the weights to start from (run.init_from)"):
            state = start_state(model, self.direction, run, store, self.mesh, classes, averaged=averaged)
        check_patterns(model, state.params, run.train_only)
        return state

    def position(self, start: int, stored: dict[str, Any]) -> Position:
        """Where in its schedule a run is after ``start`` steps; ``stored``: the metadata of their checkpoint."""
        experiment = self.experiment
        epoch = train_plan(self.source, experiment.data, experiment.run.seed).steps_per_epoch
        return Position.continued(experiment.optimizer.schedule, epoch, start, stored.get(POSITION, {}))

    def batches(self, start: int, position: Position) -> BatchIterator:
        """This process's part of the training batches from step ``start`` on."""
        return train_batches(
            self.source,
            self.experiment.data,
            seed=self.experiment.run.seed,
            start_step=start + position.shift,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def log(self, start: int) -> RunLog:
        """The log of a run from step ``start`` on."""
        settings = flat_settings(self.experiment)
        return RunLog(self.workdir, start, writes=self.writes, writers=self.listeners.writers, settings=settings)

    def profile(self, start: int, position: Position) -> "Profile | nullcontext[None]":
        """What traces some steps, if the user asks for it."""
        if self.listeners.profile is None:
            return nullcontext()
        total = position.total(self.experiment.optimizer.schedule)
        return Profile(self.listeners.profile, self.workdir, start, total, writes=self.writes)

    def best(self, position: Position) -> "Best | nullcontext[None]":
        """What keeps the best weights, if the run asks for it."""
        run, schedule = self.experiment.run, self.experiment.optimizer.schedule
        if run.keep_best is None or self.val is None:
            return nullcontext()
        return Best(self.workdir, run.keep_best, run.patience, schedule.interval(run.eval_every, position.epoch))

    def hooks(
        self,
        start: int,
        position: Position,
        stored: dict[str, Any],
        log: RunLog,
        store: CheckpointStore,
        stop: StopRequest,
        best: Best | None,
        profile: Profile | None,
    ) -> Hooks:
        """What happens between steps, for a run from step ``start``; ``stored``: the metadata of its checkpoint."""
        run, schedule = self.experiment.run, self.experiment.optimizer.schedule
        return Hooks(
            intervals=Intervals(
                log=run.log_every,
                checkpoint=schedule.interval(run.checkpoint_every, position.epoch),
                evaluate=schedule.interval(run.eval_every, position.epoch),
            ),
            start=start,
            total=position.total(schedule),
            shift=position.shift,
            # The totals go on from those of the checkpoint.
            meter=Meter.continued(self.experiment.data.batch_size, stored.get(METER, {})),
            log=log,
            store=store,
            metadata=self.metadata | {POSITION: position.saved()},
            validate=None if self.val is None else partial(self.validate, self.val, stop),
            stop=stop,
            workdir=self.workdir,
            best=best,
            on_step=self.listeners.on_step,
            on_eval=self.listeners.on_eval,
            profile=profile,
        )

    def validate(self, val: Source, stop: StopRequest, state: TrainState) -> dict[str, float]:
        """Score a state on the validation set; a signal breaks it off."""
        experiment = self.experiment
        picture = self.workdir if self.writes else None
        return validate(experiment, state.result, val, self.source.categories, self.mesh, picture, stop.break_off)

    def steps(
        self,
        state: TrainState,
        batches: BatchIterator,
        position: Position,
        hooks: Hooks,
    ) -> TrainState:
        """Run all steps that are left, from ``state``."""
        optimizer, data = self.experiment.optimizer, self.experiment.data
        rate = learning_rate(optimizer, data.batch_size, position.epoch, position.shift)
        _log.info(
            "%d steps, of which %d are done, %d in an epoch, on %s, learning rate %.3g after %d steps of warm-up",
            *(hooks.total, hooks.start, position.epoch, device_kinds(self.mesh)),
            *(optimizer.scaled_lr(data.batch_size), optimizer.schedule.warmup(position.epoch)),
        )
        for text in optimizer.schedule.notes(position.epoch):
            _log.warning(text)
        key = replicated_key(self.experiment.run.seed, self.mesh)
        skip = self.experiment.run.skip_nonfinite
        # The step keeps the state as it lies, on one device or split over many.
        layout = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = step_of_run(self.experiment, self.direction, rate, self.mesh, layout)
        train_step = StepByCanvas(step, hooks.meter.leave_out, hooks.stop.at_once)
        check = FiniteCheck(self.workdir, self.source.image_ids, skip)
        if hooks.profile is not None and hooks.profile.begins_after(hooks.start):
            hooks.profile.begin()
        try:
            return run_steps(
                train_step,
                state,
                batches,
                hooks.total,
                mesh=self.mesh,
                key=key,
                meter=hooks.meter,
                check=check,
                after=hooks,
                leave=hooks.leave,
            )
        except Enough as end:
            return end.state


def _prepare(experiment: Experiment, workdir: Path, trusted: Sequence[str], listeners: _Listeners) -> _Job:
    """Check settings and open the data before anything is written; all processes fail if one does, or theirs differ."""
    mesh, config = data_mesh(), to_data(experiment, trusted)

    def opened() -> tuple[Source, Source | None]:
        check_batch_size(experiment.data.batch_size, mesh)
        check_writers(listeners.writers)
        if listeners.profile is not None:
            steps_of(listeners.profile)
        _check_class_weights(experiment.model)
        if experiment.run.init_from is not None and not has_checkpoint(workdir):
            # Before the variables are made, which takes a minute's compiling.
            with named("the weights to start from (run.init_from)"):
                find_weights(experiment.run.init_from)
        return open_data(experiment.data, experiment.model.num_classes, experiment.run)

    def described(sources: tuple[Source, Source | None]) -> dict[str, Any]:
        # Pixels are not compared: it would mean reading all of them.
        prints = [source and fingerprint(source) for source in sources]
        return {"config": config, "data.train": prints[0], "data.val": prints[1]}

    source, val = alike(opened, described)
    if listeners.on_eval is not None and val is None:
        raise ValueError("on_eval: expected a validation set to evaluate on, got data.val=None; set data.val")
    if listeners != _Listeners((), None, None, None) and first_phase(experiment) is not None:
        _log.info("writers, on_step, on_eval and profile are for the second of two phases")
    categories = [{"id": category.id, "name": category.name} for category in source.categories]
    metadata = {
        "config": config,
        "trusted": list(trusted),
        "version": jaxdet.__version__,
        CATEGORIES: categories,
        DATA: fingerprint(source),
    }
    job = _Job(experiment, workdir, mesh, source, val, metadata, listeners)
    if not has_checkpoint(workdir):  # the steps of a run that goes on follow from its checkpoint
        job.profile(0, job.position(0, {}))
    return job


def _check_class_weights(model: Any) -> None:
    """Make sure that there is a weight for each class, which would show only when the step is compiled."""
    owners = {"dense": getattr(model, "dense", None)}
    owners |= {f"heads.{n}": head for n, head in enumerate(getattr(model, "heads", ()))}
    for key, owner in owners.items():
        weights = getattr(getattr(owner, "class_loss", None), "weights", None)
        try:
            if weights is not None:
                check_class_weights(weights, model.num_classes)
        except ValueError as error:
            raise ValueError(f"model.{key}.{error}") from None


def open_data(data: Data, classes: int, run: Run) -> tuple[Source, Source | None]:
    """Open training and validation data.

    Args:
        data: settings.
        classes: number of the model's classes.
        run: settings, of which ``keep_best`` is to have its scores.

    Returns:
        The training set, and the validation set if there is one.

    Raises:
        ValueError: there is none to train on, files or masks are missing, or categories do not fit the model.
    """
    if data.train is None:
        raise ValueError("data.train: expected a source such as CocoFolder(images=..., annotations=...), got none")
    if run.keep_best is not None and data.val is None:
        raise ValueError(
            f"data.val: expected a validation set with run.keep_best={run.keep_best}, got none; name one by "
            "data.val.images=DIR data.val.annotations=FILE, or set run.keep_best=none"
        )
    if run.keep_best is not None and run.keep_best.startswith("segm/") and not data.masks:
        raise ValueError(
            f"run.keep_best: expected a score of boxes with data.masks=False, got {run.keep_best}; set "
            "run.keep_best=bbox/AP"
        )
    source = open_source(data.train)
    names = [category.name for category in source.categories]
    if len(names) != classes:
        shown = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
        raise ValueError(
            f"model.num_classes: expected {len(names)}, the categories of the training data ({shown}), got {classes}; "
            f"set model.num_classes={len(names)}"
        )
    check_trainable(source, data, jax.process_index(), jax.process_count())
    # Opened, matched and read now: a mistake must not show at the first evaluation, hours later.
    val = None if data.val is None else open_source(data.val)
    if val is not None:
        match_categories(classes, val.categories, source.categories)
        check_scorable(val, data)
    return source, val
