"""Temporary folders that do not outlive their process for long."""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PREFIX = "jaxdet-"
_LOCK = ".lock"
_TRIES = 3


class Scratch:
    """A new folder for temporary files, its `path`; it goes with this object, or when the interpreter ends.

    A process that is killed leaves its folder behind.  So each holds a lock in its own, and whoever makes a new one
    first removes those that nobody holds any more.
    """

    def __init__(self) -> None:
        _sweep()
        for _ in range(_TRIES):  # another process may sweep between the making of a folder and its lock
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = _locked(self.path, os.O_CREAT)
            if lock is not None:
                break
        self.remove: Callable[[], Any] = weakref.finalize(self, _remove, self.path, lock)


def _sweep() -> None:
    """Remove this user's folders whose processes are no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = _locked(folder)
        if lock is not None:
            _remove(folder, lock)


def _locked(folder: Path, more: int = 0) -> int | None:
    """The open lock of a folder, taken; None where someone has it, or the folder is gone, or not ours, or has none."""
    lock = None
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | more)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(lock)
        if status.st_nlink and status.st_uid == os.getuid():
            return lock
    except OSError:  # also of file systems without locks: folders stay there
        pass
    if lock is not None:
        os.close(lock)
    return None


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
