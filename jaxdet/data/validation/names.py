"""File names of a json against the files of a folder: which are missing, and what tools have made of them.

Some tools export the separator of Windows, names as they stand in a URL, or letters in another Unicode form than that
of the file.  Such names are never read as if they were right, since two files may then be one name; they are told.
"""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from jaxdet.data.validation.entries import file_name_of
from jaxdet.messages import short


def missing_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Find the names, relative to ``folder``, under which there is no regular file.

    Folders are listed, once each, because to ask for every one of a hundred thousand files takes a network disk a
    minute.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        within, _, file = name.rpartition("/")
        if within not in listed:
            listed[within] = _files(folder / within)
        # Asked again, because a disk may take names that differ in case for the same.
        if file not in listed[within] and not os.path.isfile(folder / name):
            missing.append(name)
    return missing


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:  # no such folder, or one that cannot be read
        return set()


def other_spelling(folder: Path, name: str) -> str | None:
    """Find the spelling of a missing file's name under which ``folder`` has the file; None if there is none."""
    for plain in (name, unquote(name)):
        for path in (plain, plain.replace("\\", "/")):
            for form in ("NFC", "NFD"):
                spelling = unicodedata.normalize(form, path)
                if spelling != name and _inside(spelling) and os.path.isfile(folder / spelling):
                    return spelling
    return None


def _inside(name: str) -> bool:
    try:
        file_name_of({"file_name": name})
    except ValueError:
        return False
    return True


def missing_text(folder: Path, name: str) -> str:
    """Describe a missing file, and what may be wrong: the folder, or the spelling; ASCII shows in which letters."""
    said = short(name, 200)
    if not folder.is_dir():
        return f"{said}, there is no such folder"
    if (spelling := other_spelling(folder, name)) is not None:
        return f"{said}, but there is {short(spelling, 200)}: write that in the json"
    if _inside(name) and os.path.isfile(folder.parent / name):  # its names begin with the folder's own, perhaps
        return f"{said}, but it is in {folder.parent}: name that folder"
    return said
