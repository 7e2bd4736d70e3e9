"""Files of published weights: downloaded once into the user's cache, and read only if their hash is the published one.

A download goes on where it broke off, in the same process or a later one.  Processes that want the same file wait for
the one that downloads it.
"""

import errno
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdet.checkpoints.public.table import PublicWeights, find_public
from jaxdet.runtime.files import named_in_errors
from jaxdet.runtime.locks import hold

CACHE = "JAXDET_CACHE"
"""The environment variable that moves the cache."""

_PIECE = 2**20  #: bytes that are read at a time
_TIMEOUT = 60.0  #: seconds without a byte after which a connection counts as broken
_TRIES = 5  #: connections in a row that bring nothing before it is given up
_PAUSE = 1.0  #: seconds before the second of them, doubled each time
_WAIT = 0.5  #: seconds between looks whether another process has finished

_log = logging.getLogger(__name__)


class WrongHash(ValueError):
    """A file of weights is not the one that was published."""


def cache_folder() -> Path:
    """Where files of weights are kept: ``$JAXDET_CACHE``, or ``jaxdet`` in the user's cache; not made here.

    The user's cache is ``$XDG_CACHE_HOME``, else what the system has for it: ``~/.cache``, on macOS
    ``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``.
    """
    if own := os.environ.get(CACHE):
        return Path(own).expanduser().absolute() / "weights"
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the specification wants relative ones to be ignored
        return Path(shared) / "jaxdet" / "weights"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jaxdet" / "weights"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "jaxdet" / "weights"
    return Path.home() / ".cache" / "jaxdet" / "weights"


def fetch(weights: PublicWeights) -> Path:
    """The file of these weights: from the cache, or downloaded into it.

    Returns:
        A file whose hash is the published one.

    Raises:
        WrongHash: what is in the cache, or what came, is another file; what came is thrown away.
        ConnectionError: it cannot be downloaded; the message says where a file that was fetched otherwise is to lie.
        OSError: the cache cannot be written.
    """
    target = cache_folder() / weights.file
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as part:
            if not target.exists():  # another process may have brought it meanwhile
                _complete(weights, part)
                os.replace(part, target)
    check_hash(target, weights)
    return target


def located(checkpoint: str | Path) -> tuple[PublicWeights, Path] | None:
    """What `find_public` finds, and the file, whose hash is the published one; None where it finds nothing.

    Raises:
        WrongHash, ConnectionError, OSError: as `fetch`.
    """
    weights = find_public(checkpoint)
    if weights is None:
        return None
    path = Path(checkpoint)
    if not path.exists():
        return weights, fetch(weights)
    check_hash(path, weights)
    return weights, path


def check_hash(path: Path, weights: PublicWeights) -> None:
    """Compare a file with the hash in the table.

    Raises:
        WrongHash: it is another file than was published.
    """
    kind, _, prefix = weights.hash.partition(":")
    state = path.stat()
    found = _hash_of(path.absolute(), kind, (state.st_ino, state.st_size, state.st_mtime_ns))
    if not found.startswith(prefix):
        raise WrongHash(
            f"{path}: expected a file whose {kind} begins with {prefix}, as the one of {weights.name} that "
            f"{weights.source.name} published, got {found[: len(prefix)]}: it is damaged or another file. Remove it, "
            f"and it is downloaded again from {weights.url}"
        )


@cache
def _hash_of(path: Path, kind: str, state: tuple[int, ...]) -> str:
    """The hash of a file; once in a process, which asks for it several times in one start, unless it was changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """Yield the file to download to, which no other process writes meanwhile."""
    started = False
    while True:
        try:
            lock = hold(target.with_name(f".{target.name}.lock"), os.O_CREAT | os.O_RDWR)
        except BlockingIOError:
            if not started:
                _log.info("waiting for another process that downloads %s", target.name)
            started = True
            time.sleep(_WAIT)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            # Without locks each process has a file of its own; if it is killed, no other goes on with that.
            yield target.with_name(f".{target.name}.{os.getpid()}.part")
            return
        else:
            break
    try:
        yield target.with_name(f".{target.name}.part")
    finally:
        os.close(lock)


def _complete(weights: PublicWeights, part: Path) -> None:
    """Download what is missing of ``part``; a part of the wrong hash does not stay."""
    _log.info("downloading %s of %s to %s (licence: %s)", weights.url, weights.source.name, part.parent,
              weights.source.licence)  # fmt: skip
    failures, before = 0, _size(part)
    while True:
        try:
            _receive(weights.url, part)
            break
        except (OSError, HTTPException) as error:  # urllib's errors are OSErrors, as those of a full disk
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            refused = isinstance(error, HTTPError) and 400 <= error.code < 500
            failures = 1 if _size(part) > before else failures + 1
            before = _size(part)
            if refused or failures >= _TRIES:
                raise ConnectionError(_unreachable(weights, part, error)) from error
            time.sleep(_PAUSE * 2 ** (failures - 1))
    try:
        check_hash(part, weights)
    except WrongHash as error:
        part.unlink()
        raise WrongHash(f"what came from {weights.url} is thrown away; {error}") from None


def _unreachable(weights: PublicWeights, part: Path, error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    code = f"{error.code} " if isinstance(error, HTTPError) else ""
    return (
        f"{weights.name}: {weights.url} cannot be downloaded ({code}{reason}). If you have the file, put it into "
        f"{part.parent}, or give its path, under its name {weights.file}; {CACHE} moves that folder"
    )


def _receive(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks, over one connection.

    Raises:
        OSError: the connection cannot be made or breaks; what came until then is in the file.
    """
    start = _size(part)
    headers = {"User-Agent": "jaxdet"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if start and error.code == 416:  # nothing lies behind what there is: its hash tells whether it is right
            return
        raise
    with response, named_in_errors(part):
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # a server that knows no ranges sends all of it
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with part.open("ab" if start else "wb") as file:
            _copy(response, file, start, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection broke after {_size(part)} of {total} bytes")


def _copy(response: IO[bytes], file: IO[bytes], start: int, total: int | None) -> None:
    """Write what comes, with a bar where somebody looks."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("download", total=total, completed=start)
        while piece := response.read(_PIECE):
            file.write(piece)
            progress.advance(bar, len(piece))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
