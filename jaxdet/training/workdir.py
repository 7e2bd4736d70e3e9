"""The folder of a run: its config, and whether a rerun goes on with the same one."""

import json
import logging
from pathlib import Path
from typing import Any

import jax

from jaxdet.checkpoints.reading import has_checkpoint
from jaxdet.config import differences, from_data, to_data, to_text
from jaxdet.runtime.agreement import from_all
from jaxdet.runtime.files import write_json, write_text

CONFIG = "config.json"
METRICS = "metrics.json"

_log = logging.getLogger(__name__)


def claim(workdir: Path, experiment: Any, config: Any, accept_changes: bool) -> None:
    """Makes the folder and writes the config into it, or checks that the run in it has the same config.

    A run that never came to a checkpoint, say because its weights were refused, leaves the folder free: there is
    nothing to go on with.

    Writes ``config.json`` (`jaxdet.config.from_data` reads it) and ``config.txt`` (for people).  Of several processes
    the first does so; the others wait for it and fail if it fails.

    Args:
        workdir: folder of the run.
        experiment: the config.
        config: the same as data.
        accept_changes: go on with the new config where it differs.

    Raises:
        ValueError: the config differs from the stored one; every difference is listed.
    """
    first = jax.process_index() == 0
    from_all(lambda: _claim(workdir, experiment, config, accept_changes) if first else None)


def _claim(workdir: Path, experiment: Any, config: Any, accept_changes: bool) -> None:
    path = workdir / CONFIG
    if path.exists():
        # Rebuilt, so that a setting that is newer than the run counts with its default.
        stored = to_data(from_data(_read_json(path)))
        changes = differences(stored, config)
        begun = has_checkpoint(workdir)
        if changes and begun and not accept_changes:
            raise ValueError(_refusal(workdir, changes))
        if changes and begun:
            _log.warning("going on with changes:\n  %s", "\n  ".join(changes))
        if changes:
            (workdir / METRICS).unlink(missing_ok=True)
    write_json(path, config)
    write_text(workdir / "config.txt", to_text(experiment) + "\n")


def read_metrics(workdir: Path) -> dict[str, float] | None:
    """Numbers of the finished run in this folder; None where none is finished."""
    path = workdir / METRICS
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): expected JSON; remove it to go on with the run in this folder"
        ) from None


def _refusal(workdir: Path, changes: list[str]) -> str:
    lines = "\n  ".join(changes)
    return (
        f"{workdir} holds a run with another config (stored -> now):\n  {lines}\n"
        "Take another --workdir for a new run, drop the changes to continue this one, "
        "or pass --accept-changes to continue it with them"
    )
