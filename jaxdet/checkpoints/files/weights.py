"""Weight files of any supported kind, told apart by their content: torch's, safetensors and NumPy's ``.npz``."""

import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxdet.checkpoints.files.bounds import check_size, checked_members, max_bytes, size_of
from jaxdet.checkpoints.files.pth import open_weights, read_pth
from jaxdet.checkpoints.names.table import plain_state
from jaxdet.checkpoints.tree import Array
from jaxdet.runtime.files import replacing

_ZIP_START = b"PK\x03\x04"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read a file of weights; nothing in it is executed.

    Args:
        path: torch's ``.pth`` or ``.pt`` (with the state dict as it is, or in ``state_dict`` or ``model``),
            detectron2's ``.pkl``, safetensors, or ``.npz``; the content decides, not the name.

    Returns:
        Its arrays by the names that the file gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file, which is named, is of no such kind, broken, or holds more than plain data.
    """
    path = Path(path)
    try:
        state = plain_state(_read(path))
        # The arrays become float32; and many of a ``.pth`` file's can show the same stored bytes.
        check_size(state, path.stat().st_size, "float32")
        return state
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def write_safetensors(path: str | os.PathLike[str], state: Mapping[str, Array]) -> None:
    """Write named arrays, such as ``to_mmdet`` returns, for torch's or any other reader of safetensors."""
    with replacing(path) as scratch:
        # safetensors wants contiguous memory, and names from other tools are often transposed views.
        save_file({name: np.asarray(array, order="C") for name, array in state.items()}, scratch)


def _read(path: Path) -> dict[str, Array]:
    with open_weights(path) as file:
        start = file.read(9)
        if start[:4] == _ZIP_START and _is_npz(file):
            return _read_npz(file)
    if start[8:9] == b"{":  # safetensors: the length of a JSON header in 8 bytes, then the header
        return _read_safetensors(path)
    if start[:4] == _ZIP_START or start[:1] == b"\x80":  # 0x80 begins a pickle of protocol 2 or later
        content = read_pth(path)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}, expected a state dict (name -> tensor)")
        return content
    raise ValueError("neither torch's .pth, nor safetensors, nor .npz" + (": the file is empty" if not start else ""))


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and what NumPy raises for types that it lacks
        raise ValueError(f"a broken safetensors file: {type(error).__name__}: {error}") from None


def _is_npz(file: IO[bytes]) -> bool:
    """Whether a zip archive is NumPy's; torch's have files without the suffix ``.npy``."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile checks little before it reads, so errors of any kind come up
        raise ValueError(f"a broken archive: {type(error).__name__}: {error}") from None
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(file: IO[bytes]) -> dict[str, Array]:
    """The arrays of an ``.npz`` file by name, read-only.

    ``np.load`` would allocate what a header asks for, however small the file is, and would read pickles.
    """
    most = max_bytes(size_of(file))
    try:
        with zipfile.ZipFile(file) as archive:
            methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            members = checked_members(archive, methods, most, "np.savez")
            return {name.removesuffix(".npy"): _npy_array(archive.read(info), name) for name, info in members.items()}
    except ValueError:
        raise
    except Exception as error:  # zipfile and zlib raise errors of many kinds for broken data
        raise ValueError(f"a broken .npz archive: {type(error).__name__}: {error}") from None


def _npy_array(content: bytes, name: str) -> Array:
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # NumPy parses the header as a Python literal, which fails in many ways
        raise ValueError(f"{name!r} has a broken header: {type(error).__name__}") from None
    if dtype.kind not in "biufcV" or dtype.names is not None or dtype.hasobject:
        raise ValueError(f"{name!r} holds {dtype}, expected numbers; objects would be a pickle, which can run anything")
    expected, got = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if min(shape, default=0) < 0 or expected != got:
        raise ValueError(f"{name!r} has {got} bytes, expected {expected} of an array {shape} of {dtype}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
