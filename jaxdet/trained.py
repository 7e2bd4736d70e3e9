"""A trained model as a checkpoint holds it: config, weights and category names, ready to be used."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.table import Imported
from jaxdet.checkpoints.public.table import PublicWeights, find_public
from jaxdet.checkpoints.reading import load as load_checkpoint
from jaxdet.config import described, from_data, load_config, override, trusted_modules
from jaxdet.data import Category, Data, single_batch
from jaxdet.data.validation.entries import category_of, each, whole
from jaxdet.experiment import Experiment, as_experiment
from jaxdet.messages import short
from jaxdet.runtime.mesh import Copies, all_devices

_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Trained:
    """What it takes to predict."""

    experiment: Experiment  #: the config, of which model and data settings count
    variables: Any  #: ``{"params": ..., "batch_stats": ...}``
    categories: tuple[Category, ...]  #: the classes that the labels 0..K-1 stand for; empty where weights do not say
    step: int  #: number of training steps; 0 where the weights do not say
    #: What of the variables lies on devices already, so that only the first of several predictions takes them there.
    copies: Copies = field(default_factory=Copies, compare=False)

    def __repr__(self) -> str:
        return f"<Trained: {self.summary}>"

    @property
    def summary(self) -> str:
        """A few words: the model, its size, its classes, the step."""
        values = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables))
        names = [category.name for category in self.categories]
        named = f" ({', '.join([*names[:3], *(['...'] if len(names) > 3 else [])])})" if names else ""
        model = type(self.experiment.model).__name__
        size = sum(np.size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.variables)) / 1e6
        what = f"{model} of {values:,} values ({size:,.0f} MB)"
        classes = f"{len(names)} categories{named}" if names else f"{self.experiment.model.num_classes} classes"
        return f"{what}, {classes}, step {self.step}"


Checkpoint: TypeAlias = str | PathLike[str] | Trained
"""A run folder (its newest checkpoint counts), the folder of one checkpoint, a name of public weights (docs/WEIGHTS.md)
or their file, or one that was loaded before."""


def load(
    checkpoint: Checkpoint,
    *,
    config: Experiment | None = None,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
) -> Trained:
    """Load a checkpoint; nothing in it is executed, and no code of others is run but that of ``trusted`` modules.

    Args:
        checkpoint: where it is, or the name of public weights, such as ``"mask_rcnn_r50_fpn_1x"``, which are downloaded
            once.  With a ``config`` also any weight file of mmdetection or torchvision.
        config: takes the place of the config that the checkpoint has, or that is in the table of public weights.
        overrides: settings to change in either, by dotted keys, such as ``data.short_side=600``
            ``data.long_side=1000``.
        trusted: names or paths of modules whose classes the checkpoint may name (`jaxdet.config.trusted_modules`).
            They are imported, which runs them.

    Raises:
        FileNotFoundError: there is nothing at that path, and no public weights have that name.
        ValueError: it is no checkpoint, it names classes of modules that are not trusted, an override is wrong, the
            weights do not fit the changed model, a file is not the published one, or there are no devices of the kind
            that was asked for (`runtime.mesh.all_devices`).
        OSError: public weights cannot be downloaded.
    """
    all_devices()
    trusted = trusted_modules(trusted)
    if not isinstance(checkpoint, str | PathLike | Trained):
        what = type(checkpoint).__name__
        raise ValueError(f"checkpoint: expected the path of a run folder, or what jaxdet.load returned, got {what}")
    if isinstance(overrides, str):
        raise ValueError(f"overrides: expected a list of KEY=VALUE, got a text; write [{overrides!r}]")
    if config is not None:
        as_experiment(config)
    elif isinstance(checkpoint, Trained) and not overrides:
        return checkpoint  # to check all settings again would take 10 ms of every prediction
    if isinstance(checkpoint, Trained):
        trained = checkpoint
    elif public := find_public(checkpoint):
        return _from_file(checkpoint, override(_config_of(public) if config is None else config, overrides))
    elif config is not None and Path(checkpoint).is_file():
        return _from_file(checkpoint, override(config, overrides))
    else:
        trained = _read(checkpoint, trusted)
    experiment = override(config if config is not None else trained.experiment, overrides)
    variables = trained.variables
    # Another model may have other variables; merged into its shapes, all of them must be there.
    if experiment.model != trained.experiment.model:
        variables, _ = merge(_shapes(experiment), variables)
    return dataclasses.replace(trained, experiment=experiment, variables=variables)


def _read(checkpoint: str | PathLike[str], trusted: Sequence[str]) -> Trained:
    """Read a checkpoint folder, whose metadata may be a stranger's."""
    variables, metadata = load_checkpoint(checkpoint)
    missing = [key for key in ("config", "categories", "step") if key not in metadata]
    if missing:
        raise ValueError(f"checkpoint {checkpoint}: expected metadata with {missing}, got {sorted(metadata)}")
    try:
        experiment = as_experiment(from_data(metadata["config"], trusted))
        if not isinstance(metadata["categories"], list):
            raise ValueError(f"expected a list of categories, got {short(metadata['categories'])}")
        categories = tuple(each("categories", metadata["categories"], category_of))
        return Trained(experiment, variables, categories, whole(metadata, "step"))
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error


def _config_of(weights: PublicWeights) -> Experiment:
    """The config of public weights, with which their publishers' numbers were made."""
    if not weights.config:
        raise ValueError(f"{weights.name}: expected weights of a detector, got a backbone: start from it, as in "
                         f"run.init_from={weights.name}")  # fmt: skip
    return override(as_experiment(load_config(weights.config)), weights.settings)


def _from_file(path: str | PathLike[str], experiment: Experiment) -> Trained:
    """Read a weight file into the model of a config; only published ones have categories."""
    shapes = _shapes(experiment)
    imported = import_weights(path, shapes)
    if imported.within:
        raise ValueError(f"weights {path}: expected those of a whole model, got the {imported.within} alone")
    check_settings(experiment.model, imported, f"weights {path}")
    variables, _ = merge(shapes, imported.variables)
    categories = zip(imported.category_ids, imported.category_names, strict=False)  # no names: no categories
    return Trained(experiment, variables, tuple(Category(i, name) for i, name in categories), 0)


def check_settings(model: Any, imported: Imported, where: str) -> None:
    """Compare a model with the settings that weights were trained with; ``where`` they are from, for messages.

    Others are named in a warning: the model would do worse with the weights than it could.

    Raises:
        ValueError: the model lacks one without which the weights are those of another network.
    """
    if not _has(model, imported.required):
        raise ValueError(
            f"{where}: these weights are of another network than the model, which needs "
            + " ".join(f"'{setting}'" for setting in imported.required)
        )
    if not _has(model, imported.settings, unknown=True):
        _log.warning(
            "%s: these weights were trained with other settings than the model has and will do worse; they want %s",
            where,
            " ".join(f"'{setting}'" for setting in imported.settings),
        )


def _has(model: Any, settings: Sequence[str], unknown: bool = False) -> bool:
    """Whether overrides change nothing of a model; ``unknown``: the answer for one that knows no such settings."""
    try:
        # By the keys that they have in an experiment: some begin with `model.`.
        return bool(described(override({"model": model}, settings)["model"]) == described(model))
    except ValueError:
        # A model of another family: the merge says which parts do not fit.
        return unknown


def _shapes(experiment: Experiment) -> Any:
    """Shapes of the model's variables, found by tracing it on a small canvas."""
    data = Data(short_side=64, long_side=64, pad_multiple=experiment.data.pad_multiple)
    batch = single_batch(np.zeros((64, 64, 3), np.uint8), data)
    return jax.eval_shape(lambda: experiment.model.init(jax.random.key(0), batch, method="predict"))
