"""Whether the files of a checkpoint are those that were written.

orbax notices files that are cut or missing, but not a bit that changed in the data of an array (tried: each of three
flips in either array file came back as weights).  So each checkpoint has a list of its files with their checksums.
"""

import json
import zlib
from pathlib import Path

from jaxdet.atomic import write_json

CHECKSUMS = "checksums.json"
_PIECE = 2**20  # bytes read at a time


def write_checksums(folder: Path) -> None:
    """Writes ``checksums.json``: the CRC-32 of every file of every item, by its path in the folder."""
    # What lies beside the items is orbax's own record of when it began and ended, which it still changes.
    files = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    write_json(folder / CHECKSUMS, {str(path.relative_to(folder)): _crc(path) for path in files})


def damages(folder: Path) -> list[str]:
    """What happened to the files since, a line for each; empty too where nobody wrote checksums."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        lines = [_damage(folder / name, str(crc)) for name, crc in expected.items()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # it may be a stranger's
        return [f"{CHECKSUMS} can not be read: {error}"]
    return [line for line in lines if line]


def _damage(path: Path, crc: str) -> str:
    if not path.is_file():
        return f"{path} is missing"
    return "" if _crc(path) == crc else f"{path} has another content than was written"


def _crc(path: Path) -> str:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"
