"""``log.jsonl``: one JSON object a line, and never half a line."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from jaxdet.runtime.files import named_in_errors, write_text

JSONL = "log.jsonl"

Record: TypeAlias = dict[str, Any]
"""Numbers that belong to the state after ``step`` steps, a key of each."""


class RecordFile:
    """The log of a run, opened to be continued.

    Args:
        workdir: folder of the run, which exists.
        kept: what it holds to begin with; all else in it goes.
    """

    def __init__(self, workdir: Path, kept: Iterable[Record]) -> None:
        self._path = path = workdir / JSONL
        write_text(path, "".join(map(_line, kept)))  # in one go, so that a kill now loses nothing
        self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line.  OSError if it can not be written whole; then none of it is."""
        line, end = _line(record).encode(), self._file.seek(0, os.SEEK_END)
        try:
            with named_in_errors(self._path):
                rest = memoryview(line)
                while rest:  # a write that falls short: the next one has room, or the error that says why
                    rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def read_log(workdir: Path) -> list[Record]:
    """Records of ``log.jsonl``, in order; none where there is no log.  What is no record is left out."""
    path = workdir / JSONL
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
