"""Zip archives that may be anything: looked at before any file in them is read.  Nothing is ever extracted."""

import zipfile
from collections.abc import Collection
from typing import IO


def checked_members(
    archive: zipfile.ZipFile, methods: Collection[int], largest: int, writer: str
) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name; odd archives are refused, not interpreted.

    Args:
        archive: of which nothing was read so far.
        methods: of compression that its files may have.
        largest: bytes that its files may have together, decompressed.  zipfile never reads more of a file than its
            entry says.
        writer: the function that writes such archives, for messages.

    Raises:
        ValueError: a file twice, outside of the archive, encrypted or compressed otherwise, or too large.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise ValueError(f"the archive holds {info.filename!r} twice")
        if info.filename.startswith("/") or ".." in info.filename.split("/") or "\\" in info.filename:
            raise ValueError(f"the archive holds a file outside of itself: {info.filename!r}")
        if info.compress_type not in methods or info.flag_bits & 0x1:
            raise ValueError(f"{info.filename!r} is compressed or encrypted as {writer} never does it")
        members[info.filename] = info
    total = sum(info.file_size for info in members.values())
    if total > largest:
        raise ValueError(f"the archive's files have {total} bytes, expected at most {largest} in one of this size")
    return members


def size_of(file: IO[bytes]) -> int:
    """Bytes of an open file, which is left at its start."""
    size = file.seek(0, 2)
    file.seek(0)
    return size
