"""The models that come with jaxdet, by name."""

import importlib
from collections.abc import Sequence
from fnmatch import fnmatch

import jax

from jaxdet.config import config_names, load_config, override
from jaxdet.data import Category
from jaxdet.experiment import Experiment, as_experiment
from jaxdet.trained import Trained
from jaxdet.training.state import init_variables


def list_models(pattern: str = "*", *, tables: bool = False) -> list[str]:
    """Names of models that fit a pattern, such as ``"mask_rcnn*"`` (``jaxdet.list_models``).

    Each is what ``jaxdet.build`` and ``--config`` take.

    Args:
        pattern: of file names (`fnmatch`).
        tables: list the rows of the papers' tables too, as ``sbr_table6:row_3``.
    """
    names = config_names()
    if tables:
        names += [f"{table}:{row}" for table in config_names("tables") for row in _rows(table)]
    return [name for name in names if fnmatch(name, pattern)]


def _rows(table: str) -> list[str]:
    return list(importlib.import_module(f"jaxdet.configs.tables.{table}").ROWS)


def build(
    config: str | Experiment,
    *,
    num_classes: int | None = None,
    categories: Sequence[str] = (),
    overrides: Sequence[str] = (),
    seed: int = 0,
) -> Trained:
    """A model with fresh weights (``jaxdet.build``); ``jaxdet.load`` gives trained ones.

    Args:
        config: the name of a model, as `list_models` gives it, a config file, or an experiment.
        num_classes: how many classes it tells apart; None: as many as there are ``categories``, or as the config says.
        categories: names of the classes.
        overrides: settings to change, by dotted keys.
        seed: of the weights.

    Raises:
        ValueError: there is no such model, a setting is wrong, or there are not as many categories as classes.
    """
    experiment = as_experiment(load_config(config) if isinstance(config, str) else config)
    count = len(categories) or None if num_classes is None else num_classes
    if categories and count != len(categories):
        raise ValueError(f"categories: expected as many as num_classes={count}, got {len(categories)}")
    changes = [] if count is None else [f"model.num_classes={count}"]
    experiment = override(experiment, [*changes, *overrides])
    named = tuple(Category(i, name) for i, name in enumerate(categories, 1))
    return Trained(experiment, init_variables(experiment.model, jax.random.key(seed)), named, 0)
