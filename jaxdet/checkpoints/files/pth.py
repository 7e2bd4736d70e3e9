"""torch's ``.pth`` files without torch: the zip archives of torch >= 1.6 and the pickle streams before them.

And detectron2's ``.pkl``: a single pickle of NumPy arrays by name.

Zip: ``<name>/data.pkl`` is a pickle in which a tensor refers to a storage by key; ``<name>/data/<key>`` holds its
bytes.  Stream: a magic number, a protocol version, facts on the machine, the pickle, the list of storage keys, then
for each key the number of elements and the bytes.  Nothing in the file is executed (see `restricted_pickle`).
"""

import os
import re
import reprlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxdet.checkpoints.files.bounds import checked_members, size_of
from jaxdet.checkpoints.files.pickled_arrays import Dtype, PickledArray
from jaxdet.checkpoints.files.restricted_pickle import load, loads
from jaxdet.checkpoints.tree import Array
from jaxdet.runtime.files import open_file

# The first two numbers of a stream, from torch/serialization.py.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read_pth(path: str | os.PathLike[str]) -> Any:
    """Read what ``torch.save`` wrote.

    Returns:
        What was saved, mostly a dict, flat or with the state dict inside.  Tensors are read-only NumPy arrays, with
        ``ml_dtypes`` for bfloat16 and float8; those that share a storage share memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file, which is named, is broken, or holds more than tensors, numbers, strings and plain
            containers.
    """
    path = Path(path)
    with open_weights(path) as file:
        try:
            return _read_zip(file) if file.read(4) == b"PK\x03\x04" else _read_stream(file)
        except (ValueError, RuntimeError, OSError, zipfile.BadZipFile, EOFError, OverflowError, MemoryError) as error:
            # RuntimeError (with RecursionError): lists too deep to print, or archives that zipfile cannot read.
            # OSError: an archive's directory with odd offsets.
            raise ValueError(f"{path}: {error or type(error).__name__}") from None


def open_weights(path: Path) -> IO[bytes]:
    """Open a file of weights for reading.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a regular file, or cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a file of weights")
    return open_file(path, "weights")


def _read_zip(file: IO[bytes]) -> Any:
    size = size_of(file)
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError("a TorchScript archive, which is code; save the bare state dict and load that")
        members = checked_members(archive, (zipfile.ZIP_STORED,), size, "torch.save")
        # torch.save names the folder after the file, so its name is not known.
        roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(
                f"a zip archive with {len(roots)} files */data.pkl, expected the one that torch.save writes"
            )
        order = members.get(f"{roots[0]}/byteorder")
        if order is not None and archive.read(order).strip() != b"little":
            raise ValueError("written on a big-endian machine, which is not supported")
        buffers: dict[str, Array] = {}

        def storage(pid: tuple[Any, ...]) -> Array:
            dtype, key, size = _storage_id(pid, 5)
            member = members.get(f"{roots[0]}/data/{key}")
            if member is None:
                raise ValueError(f"storage {key!r} is not in the archive")
            # Tensors that share a storage must share the array, as those of tied weights do.
            if key not in buffers:
                buffers[key] = np.frombuffer(archive.read(member), np.uint8)
            return _typed(buffers[key], dtype, key, size)

        return loads(archive.read(members[f"{roots[0]}/data.pkl"]), storage)


def _storage_id(pid: tuple[Any, ...], length: int) -> tuple[np.dtype[Any], str, int]:
    """Element type, key and number of elements of a storage, from ``length`` parts of a persistent id."""
    if len(pid) != length or not isinstance(pid[1], Dtype):
        raise ValueError(f"a storage described by {reprlib.repr(pid)}")
    key, size = pid[2], pid[4]
    if not (isinstance(key, str) and re.fullmatch(r"\w+", key)) or type(size) is not int or size < 0:
        raise ValueError(f"a storage with the key {reprlib.repr(key)} and {reprlib.repr(size)} elements")
    return pid[1].numpy, key, size


def _typed(buffer: Array, dtype: np.dtype[Any], key: str, size: int) -> Array:
    if buffer.size != size * dtype.itemsize:
        raise ValueError(f"storage {key!r} has {buffer.size} bytes, expected {size} elements of {dtype}")
    return buffer.view(dtype)


def _read_stream(file: IO[bytes]) -> Any:
    size = size_of(file)
    if file.read(1) != b"\x80":
        raise ValueError("neither a zip archive nor a pickle: no file of torch.save")
    file.seek(0)
    first = load(file)
    if isinstance(first, dict):
        return _of_arrays(first, file)
    if first != MAGIC or load(file) != PROTOCOL:
        raise ValueError("a pickle, but not one that torch.save wrote (its first number is another)")
    machine = load(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("written on a big-endian machine, which is not supported")
    buffers: dict[str, Array] = {}
    # Between the pickle and the storages' bytes the stream lists the order in which they come.
    value = load(file, _stream_storage(buffers, size))
    keys = load(file)
    known = isinstance(keys, list) and all(isinstance(key, str) for key in keys) and sorted(keys) == sorted(buffers)
    if not known:
        raise ValueError("its list of storages is not the storages that its tensors use")
    for key in keys:
        _fill(file, buffers[key], key)
    if file.read(1):
        raise ValueError("there is more after its last storage")
    return value


def _of_arrays(content: dict[Any, Any], file: IO[bytes]) -> dict[Any, Any]:
    """What detectron2's zoo has: one pickle, of a dict with NumPy arrays in it or in a dict of it."""
    if file.read(1):
        raise ValueError("there is more after its pickle")

    def unwrapped(value: Any) -> Any:
        return value.array if isinstance(value, PickledArray) else value

    return {
        key: {k: unwrapped(v) for k, v in value.items()} if isinstance(value, dict) else unwrapped(value)
        for key, value in content.items()
    }


def _stream_storage(buffers: dict[str, Array], file_size: int) -> Callable[[tuple[Any, ...]], Array]:
    """Storages of a stream.  They follow the pickle, so tensors get their memory first, and `_fill` fills it later."""

    def storage(pid: tuple[Any, ...]) -> Array:
        dtype, key, size = _storage_id(pid, 6)
        if key not in buffers:
            # Memory is allocated before the bytes are read, so a storage may not claim more than the file has.
            if sum(b.nbytes for b in buffers.values()) + size * dtype.itemsize > file_size:
                raise ValueError(f"storage {key!r} of {size} elements is larger than the file")
            buffers[key] = np.zeros(size, dtype)
        elif (buffers[key].dtype, buffers[key].size) != (dtype, size):
            raise ValueError(f"storage {key!r} is used as two different ones")
        return _window(buffers[key], pid[5])

    return storage


def _window(whole: Array, view: Any) -> Array:
    """The part of a storage that files of torch < 0.4 may use as a storage: ``view`` is (its key, offset, size)."""
    if view is None:
        return whole
    if not (isinstance(view, tuple) and len(view) == 3 and all(type(n) is int and n >= 0 for n in view[1:])):
        raise ValueError(f"a part of a storage described by {reprlib.repr(view)}")
    offset, size = view[1:]
    if offset + size > whole.size:
        raise ValueError(f"a part of a storage up to element {offset + size} of {whole.size}")
    return whole[offset : offset + size]


def _fill(file: IO[bytes], buffer: Array, key: str) -> None:
    """Read the next storage of a stream into its memory."""
    header, data = file.read(8), file.read(buffer.nbytes)
    if len(header) < 8 or len(data) < buffer.nbytes:
        raise ValueError(f"the file ends inside storage {key!r}")
    if int.from_bytes(header, "little") != buffer.size:
        raise ValueError(f"storage {key!r} has another number of elements than its tensors say, {buffer.size}")
    buffer.view(np.uint8)[:] = np.frombuffer(data, np.uint8)
