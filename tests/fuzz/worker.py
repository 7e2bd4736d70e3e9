"""A process in which files from strangers are read, so that a crash, a hang or a hunger for memory ends it alone."""

import io
import multiprocessing
import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, TypeAlias
from unittest.mock import patch

Files: TypeAlias = dict[str, bytes | str | None]
"""What lies in a folder, by path: a file's bytes, where a link leads, or None for a pipe."""

Judge: TypeAlias = Callable[[Path], str]
"""Reads everything in a folder.  Returns what it was told, or an empty string if all of it was taken; raises if an
error was not of the documented kind."""

SECONDS = 60  # an example takes a tenth of one
MEMORY = 1 << 28  # bytes that an example may take, beside some for each byte of its files
MEMORY_PER_BYTE = 64
ADDRESSES = 1 << 32  # bytes of address space beyond those of the warm process
LIMITS = {"JAXDET_MAX_PIXELS": str(1 << 22), "JAXDET_MAX_ANNOTATIONS": "2000", "JAXDET_MAX_CATEGORIES": "1000"}


@dataclass(frozen=True)
class Outcome:
    """What became of one example."""

    kind: Literal["taken", "refused", "WRONG"]
    text: str  #: the message that was given, or what went wrong


class Worker:
    """The process; started again where an example ended it."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._judge, theirs), daemon=True)
        with patch.dict(os.environ, LIMITS):  # the process reads them as it imports
            self._process.start()
        theirs.close()

    def judge(self, files: Files) -> Outcome:
        """What becomes of these files."""
        self._pipe.send(files)
        try:
            if self._pipe.poll(SECONDS):
                return self._pipe.recv()
            self.close()
            outcome = Outcome("WRONG", f"no answer within {SECONDS} seconds")
        except EOFError:
            self._process.join()
            outcome = Outcome("WRONG", f"the process ended with exit code {self._process.exitcode}")
        self._start()
        return outcome

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _serve(judge: Judge, pipe: Connection) -> None:
    limited = False
    while True:
        try:
            files: Files = pipe.recv()
        except EOFError:
            return
        outcome = _judged(judge, files)
        pipe.send(outcome)
        if not limited:  # the first example has loaded all libraries
            most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            limited = True


def _judged(judge: Judge, files: Files) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="jaxdet-fuzz-") as name:
        folder = Path(name) / "given"
        write(folder, files)
        os.chdir(name)  # so that a file written somewhere is found
        before, memory = _listing(Path(name)), _start_of_peak()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                told = judge(folder)
        except Exception:
            return Outcome("WRONG", traceback.format_exc())
        finally:
            os.chdir("/")
        taken = _peak() - memory
        if _listing(Path(name)) != before:
            return Outcome("WRONG", "something was written beside or into the input")
    allowed = MEMORY + MEMORY_PER_BYTE * sum(len(content) for content in files.values() if isinstance(content, bytes))
    if taken > allowed:
        return Outcome("WRONG", f"took {taken >> 20} MiB, at most {allowed >> 20} are allowed")
    return Outcome("refused" if told else "taken", told)


def write(folder: Path, files: Files) -> None:
    """Make the folder."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is None:
            os.mkfifo(path)
        else:
            path.symlink_to(content)


def read(folder: Path) -> Files:
    """The files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    paths = sorted(folder.rglob("*"))
    return [(str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths]


def _start_of_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return _peak()


def _peak() -> int:
    """Largest resident size so far, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
