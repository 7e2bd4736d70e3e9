"""Reading checkpoints, whole ones only; nothing in them is executed."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet.checkpoints.files.bounds import check_files, check_size
from jaxdet.checkpoints.files.checksums import CHECKSUMS, damages
from jaxdet.checkpoints.tree import Variables
from jaxdet.runtime.files import read_json_file

FORMAT = 1
"""Raised when a checkpoint's layout changes so that older code cannot read it."""
SUBFOLDER = "checkpoints"
METADATA = "metadata"
VARIABLES = "variables"

_log = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written, or was not written to its end."""


def load(path: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    """Variables (NumPy arrays) and metadata of a checkpoint, on any machine.

    ``path`` is a run folder (its newest checkpoint counts) or the folder of one step.  FileNotFoundError if it is
    not there, `DamagedCheckpoint`, ValueError if it is no checkpoint or was written by a later version.
    """
    folder = find_step(path)
    size = check_files(folder)
    refuse(folder, damages(folder))
    metadata = read_metadata(folder)
    with clear_errors(folder), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        stored = handler.metadata(folder / VARIABLES)
        check_size(stored.tree, size)
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
        "Weights in a file (.pth, .safetensors, .npz) are read by jaxdet.checkpoints.files.weights.read_weights"
    )


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a checkpoint; damaged and unfinished ones count."""
    return any(entry.name.partition(".")[0].isdigit() for entry in (run / SUBFOLDER).glob("*"))


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of the checkpoint in ``folder``.  `DamagedCheckpoint`; ValueError if it is of a later version."""
    try:
        metadata = read_json_file(folder / METADATA / METADATA, METADATA)
    except ValueError as error:
        raise DamagedCheckpoint(f"{folder} is not a complete jaxdet checkpoint: {error}") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format"), int):
        raise DamagedCheckpoint(f"{folder} is not a jaxdet checkpoint: its metadata has no format number")
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{folder} was written by jaxdet {metadata.get('version', '(version unknown)')} in format "
            f"{metadata['format']}; this version reads up to {FORMAT}. Update jaxdet"
        )
    return metadata


def misfits(folder: Path, target: Any) -> list[str]:
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


@contextlib.contextmanager
def clear_errors(folder: Path) -> Iterator[None]:
    """What goes wrong in reading the checkpoint ``folder``, as a ValueError that names it and those beside it."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise whatever fits their layers
        _log.debug("restoring %s", folder, exc_info=True)
        # Files that are those which were written are not damaged: then memory, a version or a bug is at fault.
        kind = ValueError if (folder / CHECKSUMS).exists() else DamagedCheckpoint
        raise kind(_unusable(folder, str(error))) from error


def refuse(folder: Path, problems: list[str]) -> None:
    """`DamagedCheckpoint` if there are any."""
    if problems:
        hint = f" (if that is as you want it, remove {CHECKSUMS})"
        raise DamagedCheckpoint(_unusable(folder, f"it is damaged: {'; '.join(problems)}{hint}"))


def _unusable(folder: Path, why: str) -> str:
    others = [step for step in _finished(folder.parent) if str(step) != folder.name]
    hint = f" Other checkpoints beside it: {others}" if others else ""
    return f"cannot restore {folder}: {why}.{hint}"


def _finished(folder: Path) -> list[int]:
    """The steps in ``folder`` whose checkpoints were written to the end."""
    entries = (
        [entry for entry in folder.iterdir() if entry.name.isdigit() and entry.name.isascii()]
        if folder.is_dir()
        else []
    )
    return sorted(int(entry.name) for entry in entries if ocp.utils.is_checkpoint_finalized(str(entry)))
