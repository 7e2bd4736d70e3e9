"""Weight files of any supported kind, told apart by what is in them."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxdet.checkpoints.files.bounds import check_size
from jaxdet.checkpoints.files.npz import read_npz
from jaxdet.checkpoints.files.pth import open_weights, read_pth
from jaxdet.checkpoints.names.table import plain_state
from jaxdet.checkpoints.tree import Array
from jaxdet.runtime.files import replacing


def read_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a file by the names that the file gives them; nothing in it is executed.

    Reads torch's ``.pth`` and ``.pt`` (with the state dict as it is, or in ``state_dict`` or ``model``),
    safetensors and ``.npz``; the content decides, not the name.  FileNotFoundError if there is no file, ValueError
    naming it if it is of no such kind, broken, or holds more than plain data.
    """
    path = Path(path)
    try:
        state = plain_state(_read(path))
        check_size(state, path.stat().st_size, "float32")  # many arrays can show the same stored bytes
        return state
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def write_safetensors(path: str | os.PathLike[str], state: Mapping[str, Array]) -> None:
    """Writes named arrays, as ``to_mmdet`` gives them, for torch's or anyone's safetensors reader."""
    with replacing(path) as scratch:
        save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, scratch)


def _read(path: Path) -> dict[str, Array]:
    with open_weights(path) as file:
        start = file.read(9)
        if start[:4] == b"PK\x03\x04" and _is_npz(file):
            return read_npz(file)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        content = read_pth(path)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}, expected a state dict (name -> tensor)")
        return content
    raise ValueError("neither torch's .pth, nor safetensors, nor .npz" + (": the file is empty" if not start else ""))


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        return load_file(path)
    except Exception as error:  # its own, and what NumPy says to types that it does not have
        raise ValueError(f"a broken safetensors file: {type(error).__name__}: {error}") from None


def _is_npz(file: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile checks little before it reads
        raise ValueError(f"a broken archive: {type(error).__name__}: {error}") from None
    return bool(names) and all(name.endswith(".npy") for name in names)
