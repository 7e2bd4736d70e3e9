"""The folder of a run: one run at a time in it, its config, and whether a rerun goes on with the same one."""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxdet.checkpoints.reading import has_checkpoint
from jaxdet.config import described, differences, from_data, to_text
from jaxdet.runtime.agreement import from_all
from jaxdet.runtime.files import write_json, write_text
from jaxdet.runtime.locks import hold

_CONFIG = "config.json"
_STOPPED = "stopped.json"
_SCHEDULE = "optimizer.schedule."  #: how the settings begin that say how long a run is
METRICS = "metrics.json"  #: scores of a finished run; that the file exists says that the run is finished
_PATIENCE = 60.0  #: seconds to wait for the lock: a job that is restarted may overlap with its predecessor's end
_PAUSE = 0.5  #: seconds between two attempts

_log = logging.getLogger(__name__)


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Make the folder, and keep other runs from writing into it; the lock ends with the process, however that ends.

    Of several processes of a job the first one holds it.  File systems without locks (some network ones), and Windows,
    let all through.

    Raises:
        ValueError: another run is in the folder, and stays there for a minute.
    """
    first = jax.process_index() == 0
    # Through `from_all`, so that the others hear of a refusal, and wait until the first one has the lock.
    descriptor = from_all(lambda: _lock(workdir) if first else None)[jax.process_index()]
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(workdir: Path) -> int | None:
    """Make, open and lock the folder itself; None where there are no locks."""
    workdir.mkdir(parents=True, exist_ok=True)
    end, waits = time.monotonic() + _PATIENCE, False
    while True:
        try:
            return hold(workdir)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ValueError(
                    f"{workdir}: expected no other run in this folder, but one is training there; wait for its end, "
                    "or give this one a --workdir of its own"
                ) from None
        except OSError:  # there are no locks here
            return None
        if not waits:
            _log.warning("another run is in %s: waiting for it to end", workdir)
            waits = True
        time.sleep(_PAUSE)


@contextmanager
def claimed(
    workdir: Path, experiment: Any, config: Any, accept_changes: bool, trusted: Sequence[str] = ()
) -> Iterator[None]:
    """Keep other runs out (`locked`), and write the config into the folder, or check that its run has the same config.

    A run that never came to a checkpoint, for example because its weights were refused, leaves the folder free:
    there is nothing to go on with.

    Writes ``config.json``, which `jaxdet.config.from_data` reads, and ``config.txt`` for people.  Of several
    processes the first does so; the others wait for it and fail if it fails.

    Args:
        workdir: folder of the run.
        experiment: the config.
        config: the same as data.
        accept_changes: go on with the new config where it differs.
        trusted: names of modules whose classes the stored config may name.

    Raises:
        ValueError: the config differs from the stored one, and every difference is listed; or as `locked`.
    """
    first = jax.process_index() == 0
    with locked(workdir):  # or it would be written over the config of a run that has no checkpoint yet
        from_all(lambda: _claim(workdir, experiment, config, accept_changes, trusted) if first else None)
        yield


def _claim(workdir: Path, experiment: Any, config: Any, accept_changes: bool, trusted: Sequence[str]) -> None:
    path = workdir / _CONFIG
    if path.exists():
        # Rebuilt before it is compared: a setting that is newer than the run gets its default and is no difference.
        stored = described(from_data(_read_json(path), trusted))
        changes = differences(stored, config)
        begun = has_checkpoint(workdir)
        if changes and begun and not accept_changes:
            raise ValueError(_refusal(workdir, changes))
        if changes and begun:
            _log.warning("going on with changes:\n  %s", "\n  ".join(changes))
        if changes:
            # With another config, a longer schedule for example, the run is not finished any more.
            (workdir / METRICS).unlink(missing_ok=True)
    write_json(path, config)
    write_text(workdir / "config.txt", to_text(experiment) + "\n")


def note_stop(workdir: Path, step: int) -> None:
    """Note that the user's ``on_eval`` ended the run after ``step`` steps, so that the same command does not go on."""
    write_json(workdir / _STOPPED, {"step": step})


def stopped_at(workdir: Path, step: int) -> bool:
    """Whether ``on_eval`` ended the run in this folder after ``step`` steps."""
    path = workdir / _STOPPED
    return path.exists() and _read_json(path) == {"step": step}


def read_metrics(workdir: Path) -> dict[str, float] | None:
    """Read the scores of the finished run in this folder; None if no run is finished there."""
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
    begin = f"{workdir} holds a run with another config (stored -> now):\n  {lines}\n"
    if all(change.startswith(_SCHEDULE) for change in changes):
        return begin + (
            "The schedule alone differs: with --accept-changes the run goes on from its last checkpoint to the new "
            "end, at the rates of the new schedule; or take another --workdir for a new run"
        )
    return begin + (
        "Take another --workdir for a new run, drop the changes to continue this one, "
        "or pass --accept-changes to continue it with them"
    )
