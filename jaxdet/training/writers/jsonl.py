"""``log.jsonl``: a line for each set of numbers, which reports and curves are made from.

A run that is killed and continued leaves the log of one that was not: entries of steps that will be done again are
taken out at the start, and no line is ever half-written.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxdet.runtime.files import named_in_errors, write_text
from jaxdet.training.writers.writer import Settings

JSONL = "log.jsonl"

LogEntry: TypeAlias = dict[str, Any]
"""A line of the log: numbers by name that belong to the state after ``step`` steps."""


class JsonLines:
    """Writes numbers into ``log.jsonl`` (a `Writer`)."""

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        # The log is rewritten once, at the start; from then on lines are only appended.
        self._file = LogFile(workdir, [entry for entry in read_log(workdir) if entry["step"] <= step])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._file.append({"step": step, "time": round(time.time(), 1), **values})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        pass  # a line has no place for it

    def close(self) -> None:
        self._file.close()


def read_log(workdir: Path) -> list[LogEntry]:
    """Read the entries of ``log.jsonl`` in order; none if there is no log.  Lines that are no entries are left out."""
    path = workdir / JSONL
    entries = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:  # a log from before a crash of the machine may end in anything
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


class LogFile:
    """``log.jsonl``, one JSON object a line, opened to be continued.

    Args:
        workdir: folder of the run, which exists.
        kept: the entries that the file keeps; all others are removed.
    """

    def __init__(self, workdir: Path, kept: Iterable[LogEntry]) -> None:
        self._path = path = workdir / JSONL
        write_text(path, "".join(map(_line, kept)))  # in one piece, so that a kill now loses no entry
        self._file = path.open("ab", buffering=0)  # unbuffered: `append` must know whether the disk took the line

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: it could not be written whole; then no part of it stays.
        """
        line, end = _line(entry).encode(), self._file.seek(0, os.SEEK_END)
        try:
            with named_in_errors(self._path):
                rest = memoryview(line)
                # A write to a nearly full disk may take only a part; the next one then raises the error of a full disk.
                while rest:
                    rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
