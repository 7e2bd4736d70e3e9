"""Files from anyone, read whole: a stranger may put a pipe or a hundred thousand brackets in the place of a json."""

import json
import os
import stat
from typing import IO, Any


def open_file(path: str | os.PathLike[str], what: str, most: int | None = None) -> IO[bytes]:
    """A regular file, to read; a pipe or a device, which may have no end, is refused.

    Args:
        path: of the file; links are followed.
        what: the file is, for messages.
        most: bytes that it may have.

    Raises:
        ValueError: no such file, not readable, no regular file, or a larger one.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{what} {path}: expected a regular file, got a folder, a pipe or a device")
        if most is not None and status.st_size > most:
            raise ValueError(f"{what} {path}: expected a file of at most {most} bytes, got {status.st_size}")
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"{what} {path}: expected a readable file, got {error.strerror or error}") from error


def read_file(path: str | os.PathLike[str], what: str, most: int | None = None) -> bytes:
    """The bytes of a regular file; arguments and errors as ``open_file``."""
    with open_file(path, what, most) as file:
        try:
            return file.read()
        except OSError as error:
            raise ValueError(f"{what} {path}: expected a readable file, got {error.strerror or error}") from error


def read_json_file(path: str | os.PathLike[str], what: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: as ``read_file``, or not JSON, or JSON nested deeper than Python reads it (hundreds of levels).
    """
    encoded = read_file(path, what)
    try:
        return json.loads(encoded)
    except ValueError as error:  # malformed JSON, or bytes that are no text
        raise ValueError(f"{what} {path}: expected JSON, got {error}") from error
    except RecursionError as error:
        raise ValueError(f"{what} {path}: expected JSON, got lists or objects nested too deep to read") from error
