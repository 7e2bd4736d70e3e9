"""NumPy's ``.npz`` files, read within bounds: ``np.load`` allocates what a header asks for, however small the file."""

import io
import math
import zipfile
from typing import IO

import numpy as np

from jaxdet.checkpoints.files.archive import checked_members, size_of
from jaxdet.checkpoints.files.bounds import largest
from jaxdet.checkpoints.tree import Array

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(file: IO[bytes]) -> dict[str, Array]:
    """Its arrays by name, read-only.  ValueError for a broken or odd archive, and for anything but plain arrays."""
    most = largest(size_of(file))
    try:
        with zipfile.ZipFile(file) as archive:
            methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            members = checked_members(archive, methods, most, "np.savez")
            return {name.removesuffix(".npy"): _array(archive.read(info), name) for name, info in members.items()}
    except ValueError:
        raise
    except Exception as error:  # whatever zipfile and zlib run into
        raise ValueError(f"a broken .npz archive: {type(error).__name__}: {error}") from None


def _array(content: bytes, name: str) -> Array:
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # the header is a Python literal, and its parser raises what it likes
        raise ValueError(f"{name!r} has a broken header: {type(error).__name__}") from None
    if dtype.kind not in "biufcV" or dtype.names is not None or dtype.hasobject:
        raise ValueError(f"{name!r} holds {dtype}, expected numbers; objects would be a pickle, which can run anything")
    expected, got = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if min(shape, default=0) < 0 or expected != got:
        raise ValueError(f"{name!r} has {got} bytes, expected {expected} of an array {shape} of {dtype}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
