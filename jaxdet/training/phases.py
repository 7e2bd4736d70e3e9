"""A training of two phases: another model is trained first, and the run starts from its weights."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxdet.experiment import Experiment, Run

BEFORE = "before"  #: the folder of the first phase in that of the run

_log = logging.getLogger(__name__)


@contextmanager
def named(what: str) -> Iterator[None]:
    """A file that is not there is reported together with what needs it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what}: {error}") from error


def first_phase(experiment: Experiment) -> Experiment | None:
    """The experiment that is trained first; None where there is none, or ``run.init_from`` gives what comes of it.

    Raises:
        ValueError: the two models have other numbers of classes.
    """
    before, run = experiment.before, experiment.run
    if before is None or run.init_from is not None:
        return None
    classes = experiment.model.num_classes
    if before.model.num_classes != classes:
        raise ValueError(
            f"before.model.num_classes: expected {classes}, as model.num_classes, got {before.model.num_classes}; "
            f"set before.model.num_classes={classes}, or both by '*model.num_classes={classes}'"
        )
    own = dataclasses.replace(
        run,
        init_from=before.init_from,
        init_skip=before.init_skip,
        init_copy=(),
        init_fresh=(),
        train_only=(),
    )
    return Experiment(before.model, experiment.data, before.optimizer, own)


def start_of(experiment: Experiment, workdir: Path, *, begun: bool, train: Callable[[Experiment, Path], Any]) -> Run:
    """The run's settings with the weights that it starts from, after the first phase, if there is one.

    Args:
        experiment: of both phases.
        workdir: folder of the run.
        begun: the run has checkpoints of its own, so that the first phase is over.
        train: trains an experiment in a folder, from where it stopped there.

    Raises:
        FileNotFoundError: the first phase is to start from weights that are not there.
    """
    first = first_phase(experiment)
    if first is None:
        return experiment.run
    folder = workdir / BEFORE
    if not begun:
        _log.info("the first of two phases, in %s", folder)
        with named("the first of two phases, whose weights to start from are before.init_from"):
            train(first, folder)
        _log.info("the second phase, from the weights in %s", folder)
    return dataclasses.replace(experiment.run, init_from=str(folder))
