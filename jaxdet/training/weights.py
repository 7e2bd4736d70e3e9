"""The weights that a run starts from: read, given the classes of the data, and put into fresh variables."""

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxdet.checkpoints.classes import ClassMatch, rearrange
from jaxdet.checkpoints.copies import with_copies
from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.merge import Misfit, depends_on_classes, is_skipped, merge
from jaxdet.checkpoints.names.table import Imported
from jaxdet.checkpoints.tree import flatten
from jaxdet.experiment import Run
from jaxdet.models.detector import Detector
from jaxdet.trained import check_settings

_log = logging.getLogger(__name__)


def start_variables(model: Detector, fresh: dict[str, Any], run: Run, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The variables before step 0: those of ``run.init_from``, or the fresh ones.

    A warning names what is not trained and has random values nevertheless.

    Args:
        model: the model.
        fresh: its variables.
        run: settings, of which ``init_*`` are used.
        classes: names of the data's categories in the order of their labels; empty: labels are taken as they are.

    Raises:
        ValueError: as `with_weights`.
    """
    variables, loaded = (fresh, ()) if run.init_from is None else with_weights(model, fresh, run, classes)
    frozen = [path for path in flatten(fresh["params"]) if model.is_frozen(path)]
    random = [path for path in frozen if "/".join(("params", *path)) not in loaded]
    if random:
        _log.warning(
            "%d arrays (%s, ...) are not trained and keep random values: give them weights with run.init_from (it is "
            "%s, and run.init_skip leaves out %s), or train them with model.backbone.frozen_stages=-1",
            *(len(random), "/".join(random[0]), run.init_from, run.init_skip or "nothing"),
        )
    return variables


def with_weights(
    model: Detector, fresh: dict[str, Any], run: Run, classes: Sequence[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Put the weights of ``run.init_from`` into fresh variables, and log which variables keep their own values.

    Where weights and data both name their classes, outputs are matched by these names.  ``run.init_copy`` fills parts
    that the weights are without.

    Returns:
        The variables, and the names of those that were loaded.

    Raises:
        ValueError: the weights do not fit, but for what ``run.init_skip`` and ``run.init_new_classes`` exempt.
    """
    imported = import_weights(str(run.init_from), fresh)
    check_settings(model, imported, f"run.init_from={run.init_from}")
    try:
        variables, afresh = with_copies(fresh, imported.variables, run.init_copy)
    except ValueError as error:
        raise ValueError(
            f"run.init_from={run.init_from}, run.init_copy: {error}; weights of a backbone are for the first phase, as "
            "before.init_from, where the config has one"
        ) from None
    imported = dataclasses.replace(imported, variables=variables)
    imported, matched = _by_name(fresh, imported, run, classes)
    try:
        merged, report = merge(
            fresh,
            imported.variables,
            (*run.init_skip, *(f"^{re.escape(name)}$" for name in (*afresh, *_missing(fresh, imported, run)))),
            new_classes=run.init_new_classes,
            matched=matched,
            within=imported.within,
        )
    except Misfit as error:
        hint = f"If a part is meant to differ, skip it by a pattern, as in 'run.init_skip={error.pattern}'"
        hint += "" if run.init_new_classes else "; for other classes, set run.init_new_classes=true"
        raise ValueError(f"run.init_from={run.init_from}: {error}\n{hint}") from None
    _log.info("weights from %s: %s", run.init_from, report)
    return merged, report.loaded


def _missing(fresh: Mapping[str, Any], imported: Imported, run: Run) -> list[str]:
    """Names of the variables in parts of which the weights may have nothing (``run.init_fresh``), and have nothing.

    Raises:
        ValueError: the model has no such part.
    """
    names = []
    for place in run.init_fresh:
        part = tuple(place.split("/"))
        own, given = (
            # The first word of a path is the collection.
            ["/".join(path) for path in flatten(variables) if path[1 : 1 + len(part)] == part]
            for variables in (fresh, imported.variables)
        )
        if not own:
            raise ValueError(f"run.init_fresh: expected places of parts of the model, it has no {place!r}")
        names += [] if given else own
    return names


def _by_name(
    fresh: Mapping[str, Any], imported: Imported, run: Run, classes: Sequence[str]
) -> tuple[Imported, Collection[str]]:
    """The weights with the classes of the data, and the names of the leaves that have them."""
    outputs = [
        name
        for name in map("/".join, flatten(imported.variables))
        if depends_on_classes(name) and not is_skipped(name, run.init_skip)
    ]
    if not outputs or not classes:
        return imported, ()
    if not imported.category_names:
        if not run.init_new_classes:
            _log.warning("the weights do not name their classes: label 0 is taken for %s, and so on", classes[0])
        return imported, ()
    match = ClassMatch(tuple(classes), imported.category_names)
    if not match.complete and not run.init_new_classes:
        raise ValueError(
            f"run.init_from={run.init_from}: the weights are for other classes than those of the data, "
            f"{match.refusal()}; set run.init_new_classes=true to take those that both have, by name, and to start the "
            "others anew"
        )
    _log.info("%s", match)
    if match.nothing:
        return imported, ()
    variables, matched = rearrange(fresh, imported.variables, match)
    return dataclasses.replace(imported, variables=variables), matched
