"""Files on the disk: written whole or not at all, read although they may be a stranger's, and temporary folders.

Nothing here knows what is in a file, and nothing imports jax: the worker processes of the data pipeline use it too.
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxdet.runtime.locks import hold

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  #: of two letters at least, as C:/ is a drive
_PREFIX = "jaxdet-"  #: how temporary folders are named
_LOCK = ".lock"  #: the file in a temporary folder that its owner holds locked
_TRIES = 3  #: to make a temporary folder; losing a race once is rare, twice in a row does not happen
#: How a lock file is opened.  Others may put a pipe or a link in its place: opening the one would block, the other lead
#: elsewhere.  Windows has neither flag.
_OPENED = os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


# Writing: a kill, a full disk or an error leaves the old file.


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a file to write to inside the ``with``; at its end it takes the place of ``path``.

    If anything is raised, or the process is killed, ``path`` stays as it was.  The yielded file lies in the same
    folder, which is made where it is missing, and has the same suffix, from which image writers infer the format.

    Args:
        path: the file to write; a link stays a link, and the file behind it is replaced.

    Raises:
        OSError: the file cannot be written, or ``path`` is a device or a pipe; the error names the file.
        ValueError: ``path`` is an address.
    """
    check_local(path, "the file to write")
    # A rename would replace a link, /dev/stdout for example, and not what it points to.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "expected a file or nothing there, got a device or a pipe", os.fspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name every time: the next write overwrites and removes what a killed process has left.
    scratch = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with named_in_errors(path):
            yield scratch
            _flush_to_disk(scratch)  # otherwise a power cut could keep the rename and lose the content
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """Yield an empty folder to write to inside the ``with``; at its end its files go to the same places in ``folder``.

    If anything is raised, or the process is killed before that, nothing in ``folder`` changes, and it is not made where
    it is missing.  Other files in it stay.

    Args:
        folder: where the files are to be.
        last: the file that is moved last, by its path in the folder: whoever finds it finds the others.

    Raises:
        OSError: a file cannot be written.
        ValueError: ``folder`` is an address.
    """
    check_local(folder, "the folder to write to")
    folder = Path(os.path.realpath(folder))
    there = next(path for path in folder.parents if path.is_dir())  # on the same file system, to move and not to copy
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=there))
    try:
        yield scratch
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda file: file == Path(last)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / file, folder / file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_local(path: str | os.PathLike[str], what: str) -> None:
    """Refuse an address in the place of a path, before a folder with the name of its scheme is made.

    Args:
        path: where something is or is to be.
        what: what that is called in the message, such as ``--workdir``.

    Raises:
        ValueError: it is an address such as ``gs://bucket/run``, also as a ``Path``, which has one slash less.
    """
    if _ADDRESS.match(os.fspath(path)) and not os.path.exists(path):
        raise ValueError(
            f"{what}: expected a path in a file system, got {os.fspath(path)}; mount what is elsewhere (gcsfuse), "
            "or copy it from and to a local folder"
        )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1) -> None:
    """Write JSON with a newline at its end, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def named_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an OSError raised inside the name of the file that is written, if it has none.

    The error of a full disk comes from ``write`` or ``fsync``, which know a descriptor and not a name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _flush_to_disk(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


# Reading: a stranger may put a pipe without an end, or a hundred thousand brackets, in the place of a file.


def open_file(path: str | os.PathLike[str], what: str, most: int | None = None) -> IO[bytes]:
    """Open a regular file for reading; a pipe or a device, which may never end, is refused.

    Args:
        path: where the file is; links are followed.
        what: what the file is called in messages, such as ``image``.
        most: largest size in bytes; None for any.

    Raises:
        ValueError: there is no such file, it cannot be read, it is not a regular file, or it is too large; ``path`` is
            no path.
    """
    if not isinstance(path, str | os.PathLike):  # Python takes a number for an open descriptor, and would close it
        raise ValueError(f"{what}: expected a path, got {type(path).__name__}")
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
    """Read a regular file as bytes; arguments and errors as `open_file`."""
    with open_file(path, what, most) as file:
        try:
            return file.read()
        except OSError as error:
            raise ValueError(f"{what} {path}: expected a readable file, got {error.strerror or error}") from error


def read_json_file(path: str | os.PathLike[str], what: str) -> Any:
    """Read and decode a JSON file.

    Args:
        path: where the file is.
        what: what the file is called in messages.

    Raises:
        ValueError: as `read_file`; or it is not JSON, or is nested deeper than Python can read (hundreds of levels).
    """
    encoded = read_file(path, what)
    try:
        return json.loads(encoded)
    except ValueError as error:  # malformed JSON, or bytes that are not UTF-8
        raise ValueError(f"{what} {path}: expected JSON, got {error}") from error
    except RecursionError as error:
        raise ValueError(f"{what} {path}: expected JSON, got lists or objects nested too deep to read") from error


# Temporary folders: a process that is killed cannot remove its own, so the next process does.


class ScratchFolder:
    """A new folder for temporary files; it is removed with this object, or when the interpreter ends.

    A process that is killed leaves its folder behind.  Therefore each process holds a lock on a file in its folder,
    and whoever makes a new folder first removes those whose lock nobody holds.

    Attributes:
        path: the folder.
        remove: removes the folder at once; may be called again.
    """

    def __init__(self) -> None:
        _remove_abandoned_folders()
        for _ in range(_TRIES):
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = _take_lock(self.path, os.O_CREAT)
            if lock is not None:
                break
            # Another process has removed the folder between the two lines above, since it had no lock yet.
        self.remove: Callable[[], Any] = weakref.finalize(self, _remove_folder, self.path, lock)


def _remove_abandoned_folders() -> None:
    """Remove this user's folders whose processes have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = _take_lock(folder)
        if lock is not None:
            _remove_folder(folder, lock)


def _take_lock(folder: Path, flags: int = 0) -> int | None:
    """Lock a folder and return the open lock file.

    Returns:
        None where another process holds the lock, or the folder has no lock file, is gone, or is another user's.
    """
    try:
        lock = hold(folder / _LOCK, _OPENED | flags)
    except OSError:  # also from systems without locks, where abandoned folders stay
        return None
    status = os.fstat(lock)
    if status.st_nlink and status.st_uid == os.getuid():  # no links: it was removed meanwhile
        return lock
    os.close(lock)
    return None


def _remove_folder(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
