"""A checkpoint on the disk: which files it has, whether they are those that were written, and how they are read.

Only whole checkpoints are read, and nothing in them is executed: they may come from a stranger.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet.checkpoints.files.bounds import check_files, check_size
from jaxdet.checkpoints.public.table import near_names
from jaxdet.checkpoints.tree import Variables
from jaxdet.runtime.files import check_local, read_json_file, write_json

FORMAT = 1  #: raised when a checkpoint's layout changes so that older code cannot read it
SUBFOLDER = "checkpoints"  #: the folder in a run's folder that has a folder for each step
METADATA = "metadata"
VARIABLES = "variables"
_CHECKSUMS = "checksums.json"
_PIECE = 2**20  #: bytes of a file that are read at a time for its checksum

_log = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written, or was not written to its end."""


def load(path: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    """Read a checkpoint, on any machine.

    Args:
        path: a run folder, of which the newest checkpoint is read, or the folder of one step.

    Returns:
        The variables as NumPy arrays, and the metadata.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        DamagedCheckpoint: weights or metadata are not those that were written.
        ValueError: it is no checkpoint, or was written by a later version.
    """
    folder = find_step(path)
    size = check_files(folder)
    refuse(folder, damages(folder, (VARIABLES, METADATA)))  # the rest is not read, and need not be there
    metadata = read_metadata(folder)
    with clear_errors(folder), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        stored = handler.metadata(folder / VARIABLES)
        check_size(stored.tree, size)
        # A target of NumPy arrays gives NumPy arrays; without it orbax wants the devices that they were saved from.
        # `broadcast_to` makes the targets' shapes without their memory.
        target = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), stored.tree)
        variables: Variables = handler.restore(folder / VARIABLES, args=ocp.args.StandardRestore(target))
    return variables, metadata


def find_step(path: str | os.PathLike[str]) -> Path:
    """Find the folder of one checkpoint: ``path`` itself, or the newest in the run folder ``path``.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: there is no finished checkpoint, or ``path`` is an address.
    """
    check_local(path, "the checkpoint")
    given, path = path, Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a run folder or a checkpoint in it{near_names(given)}"
        )
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
    """Whether a run folder holds a checkpoint; damaged and unfinished ones count, as something was trained."""
    return any(entry.name.partition(".")[0].isdigit() for entry in (run / SUBFOLDER).glob("*"))


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata of the checkpoint in ``folder``.

    Raises:
        DamagedCheckpoint: it has none, or of another form.
        ValueError: it was written by a later version.
    """
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
    """List how the item in ``folder`` and the tree to restore it into differ, one line for each leaf."""
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
    """Turn errors raised inside into ValueErrors that name the checkpoint ``folder`` and those beside it."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore have no common class for what goes wrong in reading
        _log.debug("restoring %s", folder, exc_info=True)
        # With checksums, `damages` has found the files unchanged: then memory, a version or a bug is at fault, and
        # going on from an older checkpoint would not help.
        kind = ValueError if (folder / _CHECKSUMS).exists() else DamagedCheckpoint
        raise kind(_unusable(folder, str(error))) from error


def refuse(folder: Path, problems: list[str]) -> None:
    """Raise `DamagedCheckpoint` if there are ``problems`` (from `damages`) with the checkpoint ``folder``."""
    if problems:
        hint = f" (if that is as you want it, remove {_CHECKSUMS})"
        raise DamagedCheckpoint(_unusable(folder, f"it is damaged: {'; '.join(problems)}{hint}"))


def _unusable(folder: Path, why: str) -> str:
    others = [step for step in _finished(folder.parent) if str(step) != folder.name]
    hint = f" Other checkpoints beside it: {others}" if others else ""
    return f"cannot restore {folder}: {why}.{hint}"


def _finished(folder: Path) -> list[int]:
    """The steps in ``folder`` whose checkpoints were written to their end, ascending."""
    entries = (
        [entry for entry in folder.iterdir() if entry.name.isdigit() and entry.name.isascii()]
        if folder.is_dir()
        else []
    )
    return sorted(int(entry.name) for entry in entries if ocp.utils.is_checkpoint_finalized(str(entry)))


# Checksums: orbax notices files that are cut or missing, but reads a flipped bit of an array as a weight (tried: three
# flips in each of the two files of an array).  So every checkpoint has a list of its files with their CRC-32.


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json``: the CRC-32 of every file of every item, by its path in the folder."""
    write_json(folder / _CHECKSUMS, {name: _crc(path) for name, path in _files(folder).items()})


def _files(folder: Path) -> dict[str, Path]:
    """The files of the items by path.  What lies beside the items is orbax's record of saving, which still changes."""
    found = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in found}


def damages(folder: Path, items: Collection[str] | None = None) -> list[str]:
    """List which files of a checkpoint are missing or changed, one line for each; none if it has no checksums.

    ``items`` are the folders in it that count, of which every file must have a checksum; None: all that have one.
    """
    try:
        expected: dict[str, Any] = json.loads((folder / _CHECKSUMS).read_text())
        files = _files(folder)  # the list's paths are only looked up here: a stranger's may lead out of the folder
        if items is None:
            names = list(expected.keys())
        else:
            names = [name for name in dict.fromkeys([*expected.keys(), *files]) if name.partition("/")[0] in items]
        lines = [_damage(folder, name, files.get(name), expected.get(name)) for name in names]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # the list itself is broken
        return [f"{_CHECKSUMS} can not be read: {error}"]
    return [line for line in lines if line]


def _damage(folder: Path, name: str, path: Path | None, crc: object) -> str:
    if path is None:
        return f"{folder}/{ascii(name)[1:-1]:.200} is missing"
    return "" if _crc(path) == str(crc) else f"{path} has another content than was written"


def _crc(path: Path) -> str:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"
