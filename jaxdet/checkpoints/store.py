"""The checkpoints of a run: written in the background, whole or not at all, and read on any set of devices.

A run folder holds ``checkpoints/<step>/`` with a folder for each item: ``variables``, whatever else the trainer needs
to continue (``optimizer``), and ``metadata``, which is JSON::

    {"format": 1, "step": 7330, "version": "0.1.0", "config": {..}, "categories": [{"id": 1, "name": "person"}, ..]}

So weights travel with the config (as data), the categories and all else that it takes to use them.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet.checkpoints.reading import (
    FORMAT,
    METADATA,
    SUBFOLDER,
    VARIABLES,
    DamagedCheckpoint,
    clear_errors,
    damages,
    misfits,
    read_metadata,
    refuse,
    write_checksums,
)
from jaxdet.runtime.agreement import broadcast_flag

_UNFINISHED = ".orbax-checkpoint-tmp"  #: orbax's suffix of a checkpoint that is being written

_log = logging.getLogger(__name__)


class CheckpointStore:
    """Writes and reads the checkpoints of a run.  A context manager, whose end waits for the last save.

    What a killed run left half-written is removed.

    Args:
        folder: the run's folder.
        keep: how many checkpoints stay, the newest ones; None: all.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int | None = 2) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1 or None, got {keep}")
        self.folder = Path(folder).absolute() / SUBFOLDER
        self._saving = 0  # the step that is being saved
        _name_unfinished(self.folder)
        # Checksums are written when all files are, but before the checkpoint gets its name: what has a name is whole.
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            preservation_policy=None if keep is None else ocp.checkpoint_managers.LatestN(keep),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save and release the folder.  OSError as `wait`."""
        with self._write_errors():
            self._manager.close()

    def wait(self) -> None:
        """Return when every save so far is on the disk.  OSError if one could not be written."""
        with self._write_errors():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raise an OSError if a save could not be written; does not wait for one that is going on."""
        with self._write_errors():
            self._manager.check_for_errors()

    def steps(self) -> tuple[int, ...]:
        """The steps of complete checkpoints, oldest first."""
        return tuple(sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def metadata(self, step: int) -> dict[str, Any]:
        """Read the metadata of a step; errors as ``reading.read_metadata``."""
        return read_metadata(self.folder / str(step))

    def save(self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Begin to save; arrays may be donated or changed as soon as this returns.

        On several processes all of them call this, with global arrays.

        Args:
            step: the step; if there is a checkpoint of it already, nothing is saved.
            state: item name -> tree of arrays; at least ``variables``.
            metadata: JSON data, to which ``format`` and ``step`` are added.

        Raises:
            ValueError: an item is missing, or the metadata is not JSON.
            OSError: this save could not begin, or the one before could not be written.
        """
        if VARIABLES not in state or METADATA in state:
            raise ValueError(f"state must hold {VARIABLES!r} and not {METADATA!r}, got {sorted(state)}")
        content = {**metadata, "format": FORMAT, "step": int(step)}
        _check_json(content)
        # An evaluation that is broken off right after a checkpoint saves the same step again.
        if step in self._manager.all_steps():
            return
        self.wait()  # two at a time would hold two copies of the state in memory, and `_seal` knows one step
        self._saving = step
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        with self._write_errors():
            self._manager.save(step, args=ocp.args.Composite(**items, **{METADATA: ocp.args.JsonSave(content)}))

    def restore(self, target: Mapping[str, Any], step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the state and the metadata of a step.

        Args:
            target: the state, or part of its items, with arrays or ``jax.ShapeDtypeStruct`` as leaves.  Dtypes and
                shardings of the result are the target's, whatever they were when saved.
            step: which checkpoint; None: the newest.

        Raises:
            FileNotFoundError: there is no checkpoint.
            DamagedCheckpoint: the files are not those that were written.
            ValueError: leaves are missing, superfluous or of another shape; all of them are listed.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        folder = self.folder / str(step)
        _verify(folder)
        metadata = read_metadata(folder)
        # orbax stops at the first leaf that does not fit, and does not name it; a changed model has many.
        with clear_errors(folder):
            problems = [line for name, tree in target.items() for line in misfits(folder / name, tree)]
        if problems:
            raise ValueError(f"{folder} does not fit what is to be restored\n" + "\n".join(problems))
        args = {name: ocp.args.StandardRestore(jax.tree.map(_described, tree)) for name, tree in target.items()}
        with clear_errors(folder):
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in target}, metadata

    def restore_newest(self, target: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Read the newest checkpoint that is whole; arguments and errors as `restore`.

        Damaged ones that are newer are named in a warning and renamed to ``<step>.damaged``.  If none is whole,
        `DamagedCheckpoint` is raised and nothing is renamed: a run that began anew would replace them one by one.

        Returns:
            State and metadata; None if there is no checkpoint at all.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                found = self.restore(target, step)
            except DamagedCheckpoint as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged)
            return found
        if damaged:
            raise DamagedCheckpoint(
                f"no checkpoint in {self.folder} is whole, and none was touched: take another folder to begin anew.\n"
                + "\n".join(damaged.values())
            )
        return None

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Rename damaged checkpoints (step -> what is wrong), so that their steps can be saved again."""
        for step, why in damaged.items():
            aside = self.folder / f"{step}.damaged"
            if jax.process_index() == 0:
                while aside.exists():  # the same step may be damaged twice
                    aside = aside.with_name(f"{aside.name}-again")
                (self.folder / str(step)).rename(aside)
            _log.warning("%s Going on from the one before; the damaged one is now %s", why, aside)
        if damaged:
            broadcast_flag(True)  # a barrier: the other processes list the folder after the renaming
            self._manager.reload()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn errors of writing into an OSError that says which step, where, and how much room is left."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise errors of many classes, for a full disk too
            free = shutil.disk_usage(self.folder).free
            raise OSError(
                f"the checkpoint of step {self._saving} could not be written to {self.folder}, where {free / 1e6:.0f} "
                f"MB are free: {error}. Checkpoints before it are untouched; the same command goes on from the newest"
            ) from error

    def _seal(self) -> None:
        """Write the checksums; orbax calls this on the first process, last before a checkpoint gets its name."""
        for folder in self.folder.glob(f"{self._saving}{_UNFINISHED}*"):
            write_checksums(folder)


def _check_json(content: Mapping[str, Any]) -> None:
    """Raise a ValueError if the content is not JSON: here, since in the background nobody would see the cause."""
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None


def _described(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array or of what describes one."""
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _verify(folder: Path) -> None:
    """Raise `DamagedCheckpoint`, on all processes, if the files have changed."""
    # One process reads all files, since they share the folder.
    problems = damages(folder) if jax.process_index() == 0 else []  # seconds for a large model
    if broadcast_flag(bool(problems)):
        refuse(folder, problems or ["the first process says how"])


def _name_unfinished(folder: Path) -> None:
    """Log each checkpoint that a killed run was writing; orbax removes them without a word."""
    if jax.process_index() == 0:
        for entry in folder.glob(f"*{_UNFINISHED}*"):
            _log.warning("%s was not written to its end and is removed; the checkpoint before it counts", entry)
