"""Locks on files and folders that end with the process that holds them, however that ends.

They are POSIX's ``flock``.  Windows has none, and there this behaves as on a file system without locks: nothing is
guarded, and everything else works.  The library filelock does not promise the same: it makes the file that it locks,
where here a run's folder is locked itself, and a lock file is opened, and not made, to see whether its owner lives.
"""

import errno
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def hold(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a file or folder and lock it.

    Args:
        path: what to lock.
        flags: those of ``os.open``.

    Returns:
        The descriptor; who closes it gives the lock back.

    Raises:
        BlockingIOError: another process, or another descriptor of this one, has the lock.
        OSError: it cannot be opened, or the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "expected a system with locks that end with their process", os.fspath(path))
    descriptor = os.open(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
