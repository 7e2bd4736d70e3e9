"""Bounds on what a weight file or a checkpoint's folder may hold, since it may come from a stranger.

Headers can claim any size, a few kilobytes of compressed zeros expand to gigabytes, and a thousand tensors can show the
same stored bytes.  So memory is bounded by the size of the files, and odd archives are refused before they are read.
"""

import math
import os
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

#: How many times larger than its files the arrays of a checkpoint may be; trained weights hardly compress.
_MAX_EXPANSION = 16
#: Bytes that the arrays of any checkpoint may take, however small its files.
_ALWAYS_ALLOWED = 1 << 26


def max_bytes(stored: int) -> int:
    """Return how many bytes arrays may take whose files have ``stored`` bytes."""
    return _ALWAYS_ALLOWED + _MAX_EXPANSION * stored


def check_files(folder: Path) -> int:
    """Check that a checkpoint's folder holds nothing but files and folders.

    Returns:
        The bytes of all files.

    Raises:
        ValueError: there is a pipe, which a reader would wait for, a device, which has no end, or a link, which may
            lead to either.
    """
    total = 0
    for path in sorted(folder.rglob("*")):
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{path}: expected a file or a folder in a checkpoint, got a link, a pipe or a device")
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def check_size(tree: Any, stored: int, dtype: str | None = None) -> None:
    """Check that arrays are not larger than their files make plausible.

    Args:
        tree: the arrays, or their shapes and dtypes.
        stored: bytes of their files.
        dtype: the type to which all of them will be converted; None: they keep their own.

    Raises:
        ValueError: they take more than `max_bytes`.
    """
    sizes = [(math.prod(leaf.shape), np.dtype(dtype or leaf.dtype).itemsize) for leaf in jax.tree.leaves(tree)]
    total = sum(number * size for number, size in sizes)
    if total > max_bytes(stored):
        raise ValueError(
            f"its arrays have {total} bytes{f' as {dtype}' if dtype else ''}, expected at most {max_bytes(stored)} "
            f"in {stored} bytes of files"
        )


def checked_members(
    archive: zipfile.ZipFile, methods: Collection[int], most: int, writer: str
) -> dict[str, zipfile.ZipInfo]:
    """Check a zip archive before any file in it is read; odd archives are refused, not interpreted.

    Args:
        archive: the archive, which is never extracted.
        methods: compression methods that its files may have.
        most: bytes that its files may have together, decompressed.  zipfile never reads more of a file than the
            archive's directory says, so these sizes can be trusted.
        writer: the function that writes such archives, for messages.

    Returns:
        The entries of the directory by file name.

    Raises:
        ValueError: a file occurs twice, lies outside of the archive, or is encrypted or compressed otherwise, or all
            are too large.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # Two readers of such an archive could see two different files.
        if info.filename in members:
            raise ValueError(f"the archive holds {info.filename!r} twice")
        if info.filename.startswith("/") or ".." in info.filename.split("/") or "\\" in info.filename:
            raise ValueError(f"the archive holds a file outside of itself: {info.filename!r}")
        if info.compress_type not in methods or info.flag_bits & 0x1:  # bit 0: encrypted
            raise ValueError(f"{info.filename!r} is compressed or encrypted as {writer} never does it")
        members[info.filename] = info
    total = sum(info.file_size for info in members.values())
    if total > most:
        raise ValueError(f"the archive's files have {total} bytes, expected at most {most} in one of this size")
    return members


def size_of(file: IO[bytes]) -> int:
    """Return the size of an open file in bytes, and rewind it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size
