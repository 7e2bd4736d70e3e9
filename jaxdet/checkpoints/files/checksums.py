"""Whether the files of a checkpoint are those that were written.

orbax notices files that are cut or missing, but not a bit that changed in the data of an array (tried: each of three
flips in either array file came back as weights).  So each checkpoint has a list of its files with their checksums.
"""

import json
import zlib
from pathlib import Path

from jaxdet.runtime.files import write_json

CHECKSUMS = "checksums.json"
_PIECE = 2**20  # bytes read at a time


def write_checksums(folder: Path) -> None:
    """Writes ``checksums.json``: the CRC-32 of every file of every item, by its path in the folder."""
    write_json(folder / CHECKSUMS, {name: _crc(path) for name, path in _files(folder).items()})


def _files(folder: Path) -> dict[str, Path]:
    """The files of the items; what lies beside these is orbax's own record of its saving, which it still changes."""
    found = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in found}


def damages(folder: Path) -> list[str]:
    """What happened to the files since, a line for each; empty too where nobody wrote checksums."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        files = _files(folder)  # and no others: a stranger may have listed what is not his to read
        lines = [_damage(folder, name, files.get(name), str(crc)) for name, crc in expected.items()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # it may be a stranger's
        return [f"{CHECKSUMS} can not be read: {error}"]
    return [line for line in lines if line]


def _damage(folder: Path, name: str, path: Path | None, crc: str) -> str:
    if path is None:
        return f"{folder}/{ascii(name)[1:-1]:.200} is missing"
    return "" if _crc(path) == crc else f"{path} has another content than was written"


def _crc(path: Path) -> str:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"
