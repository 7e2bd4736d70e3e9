"""Files that are whole or not there: written beside their place and renamed into it."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write to inside the ``with``; at its end it takes the place of ``path``.

    If anything is raised, or the process is killed, ``path`` stays as it was.  The file lies in the same folder, made
    where it is missing, and has the same suffix, which tells writers of pictures the format.
    """
    path = Path(os.path.realpath(path))  # through links, /dev/stdout say, which stay as they are
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "expected a file or nothing there, got a device or a pipe", os.fspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.part{path.suffix}")  # one name, so that kills leave no heap of them
    try:
        with naming(path):
            yield scratch
            _to_disk(scratch)  # else a power cut could keep the name and lose the content
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(text)


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1) -> None:
    """Writes JSON with a newline at its end, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError of writing, such as that of a full disk, gets the file's name if it has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
