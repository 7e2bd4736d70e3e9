"""The checkpoints of a run: written in the background and all or nothing, read on any set of devices.

A run folder holds ``checkpoints/<step>/``, a folder an item: ``variables``, whatever else the trainer needs to
continue (``optimizer``, ..) and ``metadata``, which is JSON::

    {"format": 1, "step": 7330, "version": "0.1.0", "config": {..}, "categories": [{"id": 1, "name": "person"}, ..]}

so that weights travel with the config (as data), the categories and all else that it takes to use them.
Reading a checkpoint executes nothing in it.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet.checkpoints.tree import Variables

FORMAT = 1
"""Raised when a checkpoint's layout changes so that older code cannot read it."""
SUBFOLDER = "checkpoints"
METADATA = "metadata"
VARIABLES = "variables"


class CheckpointStore:
    """Writes and reads the checkpoints of the run folder ``folder``; the newest ``keep`` stay (None: all).

    Use it as a context manager, or ``close`` it, which waits for the last save.  What a killed run left half
    written is removed.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int | None = 2) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1 or None, got {keep}")
        self.folder = Path(folder).absolute() / SUBFOLDER
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
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
        """Waits for the last save and lets go of the folder."""
        self._manager.close()

    def wait(self) -> None:
        """Returns when every save so far is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def steps(self) -> tuple[int, ...]:
        """The complete checkpoints, oldest first."""
        return tuple(sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """The newest complete checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a step.  ValueError as ``read_metadata``."""
        return read_metadata(self.folder / str(step))

    def save(self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Begins to save; arrays may be donated or changed as soon as this returns.

        ``state`` maps names to trees of arrays and holds at least ``variables``.  ``metadata`` goes through JSON;
        ``format`` and ``step`` are added.  A step that is there already is not saved again.  On several processes
        all of them call this, with global arrays.
        """
        if VARIABLES not in state or METADATA in state:
            raise ValueError(f"state must hold {VARIABLES!r} and not {METADATA!r}, got {sorted(state)}")
        content = {**metadata, "format": FORMAT, "step": int(step)}
        _check_json(content)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        self._manager.save(step, args=ocp.args.Composite(**items, **{METADATA: ocp.args.JsonSave(content)}))

    def restore(self, target: Mapping[str, Any], step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """State and metadata of a step, by default the newest.

        ``target`` has the structure of the state, or part of its items, with arrays or ``jax.ShapeDtypeStruct``;
        dtypes and shardings are the target's, whatever they were when saved.  FileNotFoundError without a
        checkpoint; ValueError lists the leaves that only one side has and those of another shape.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        folder = self.folder / str(step)
        metadata = read_metadata(folder)
        with _clear_errors(folder):
            problems = [line for name, tree in target.items() for line in _misfits(folder / name, tree)]
        if problems:
            raise ValueError(f"{folder} does not fit what is to be restored\n" + "\n".join(problems))
        args = {name: ocp.args.StandardRestore(jax.tree.map(_described, tree)) for name, tree in target.items()}
        with _clear_errors(folder):
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in target}, metadata


def load(path: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    """Variables (NumPy arrays) and metadata of a checkpoint, on any machine.

    ``path`` is a run folder (its newest checkpoint counts) or the folder of one step.  FileNotFoundError if it is
    not there, ValueError if it is no checkpoint, damaged, or written by a later version.
    """
    folder = find_step(path)
    metadata = read_metadata(folder)
    with _clear_errors(folder), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        stored = handler.metadata(folder / VARIABLES)
        # A NumPy target gives NumPy leaves: the devices that the arrays were saved from may not exist here.
        target = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), stored.tree)
        variables: Variables = handler.restore(folder / VARIABLES, args=ocp.args.StandardRestore(target))
    return variables, metadata


def find_step(path: str | os.PathLike[str]) -> Path:
    """The folder of one checkpoint: ``path`` itself, or the newest one of the run folder ``path``.

    Errors as ``load``.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a run folder or a checkpoint in it")
    if (path / METADATA).is_dir():
        return path
    for folder in (path / SUBFOLDER, path):
        if steps := _finished(folder):
            return folder / str(steps[-1])
    what = "a file" if path.is_file() else "a folder without a finished checkpoint"
    raise ValueError(
        f"{path} is {what}; expected a run folder (with {SUBFOLDER}/<step>) or the folder of one step. "
        "Weights in a file (.pth, .safetensors, .npz) are read by jaxdet.checkpoints.files.read_weights"
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of the checkpoint in ``folder``.  ValueError if it is none, or of a later version."""
    try:
        metadata = json.loads((folder / METADATA / METADATA).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a complete jaxdet checkpoint: {error}") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format"), int):
        raise ValueError(f"{folder} is not a jaxdet checkpoint: its metadata has no format number")
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{folder} was written by jaxdet {metadata.get('version', '(version unknown)')} in format "
            f"{metadata['format']}; this version reads up to {FORMAT}. Update jaxdet"
        )
    return metadata


def _check_json(content: Mapping[str, Any]) -> None:
    """ValueError here, where the caller is, and not in the background."""
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None


def _finished(folder: Path) -> list[int]:
    """The steps in ``folder`` whose checkpoints were written to the end."""
    entries = [entry for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []
    return sorted(int(entry.name) for entry in entries if ocp.utils.is_checkpoint_finalized(str(entry)))


def _misfits(folder: Path, target: Any) -> list[str]:
    """How the item in ``folder`` and the tree to restore it into differ, a line for each leaf."""
    if not folder.is_dir():
        return [f"  there is no {folder.name} in it"]
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        stored = ocp.tree.to_flat_dict(handler.metadata(folder).tree)
    wanted = ocp.tree.to_flat_dict(target)
    lines = []
    for path in sorted({*stored, *wanted}):
        name = "/".join((folder.name, *path))
        if path not in stored or path not in wanted:
            lines.append(f"  {name}: only {'stored' if path in stored else 'wanted'}")
        elif tuple(stored[path].shape) != np.shape(wanted[path]):
            lines.append(f"  {name}: shape {tuple(stored[path].shape)} stored, {np.shape(wanted[path])} wanted")
    return lines


def _described(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None))


@contextlib.contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise whatever fits their layers
        logging.getLogger(__name__).debug("restoring %s", folder, exc_info=True)
        others = [step for step in _finished(folder.parent) if str(step) != folder.name]
        hint = f" Other checkpoints beside it: {others}" if others else ""
        raise ValueError(f"cannot restore {folder}: {error}.{hint}") from error
