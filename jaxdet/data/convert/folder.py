"""The folder that is converted: its files, and the sizes of its images.

A data set may be a stranger's.  Names inside its files lead to no place outside of its folder, files have limits, and
XML may define no entities, of which a few lines expand to gigabytes.
"""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from jaxdet.data.convert.found import Tally, Unusable
from jaxdet.data.images import decode_image, read_header, suffixes
from jaxdet.data.validation.entries import file_name_of
from jaxdet.runtime.files import read_file, read_json_file

_MOST_FILES = 1 << 21  #: twice ImageNet's; a list of names of them takes half a gigabyte
_LARGEST_TEXT = 1 << 30  #: bytes of one annotation file
_DEEPEST = 64  #: levels of XML; the formats here have five


@dataclass
class Folder:
    """A data set's folder, and how it is to be read."""

    root: Path
    tally: Tally = field(default_factory=Tally)
    upright: bool = False  #: images are written anew, upright; else those that EXIF turns are left out
    boxes_as_masks: bool = True  #: a box without a mask counts as a mask of its rectangle
    class_name: str = "object"  #: class of everything in formats without names

    @cached_property
    def files(self) -> list[str]:
        """Paths of all files below the folder, with forward slashes, sorted; hidden ones are none.

        Raises:
            ValueError: there are too many.
        """
        found: list[str] = []
        for at, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            below = Path(at).relative_to(self.root)
            found += [(below / name).as_posix() for name in names if not name.startswith(".")]
            if len(found) > _MOST_FILES:
                raise ValueError(f"{self.root}: expected at most {_MOST_FILES} files, got more; convert parts of it")
        return sorted(found)

    @cached_property
    def images(self) -> list[str]:
        """Those of the files that have an image's suffix."""
        return [name for name in self.files if PurePosixPath(name).suffix.lower() in suffixes()]

    def ending(self, suffix: str) -> Iterator[str]:
        """Those of the files that have a suffix, in any case."""
        return (name for name in self.files if name.lower().endswith(suffix))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.isfile(self.root / name)

    def inside(self, beside: str, name: Any) -> str:
        """The path below the folder of a file that another file, ``beside``, names.

        Raises:
            Unusable: it is no path, or leads out of the folder.
        """
        if not isinstance(name, str) or not name:
            raise Unusable("image name that is no text")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(beside), name.replace("\\", "/")))
        try:
            return file_name_of({"file_name": path})
        except ValueError as error:
            raise Unusable("image name that leads out of the folder, or has control characters") from error

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of an image as it will be read.

        Raises:
            Unusable: it is missing or broken, or EXIF turns it and it is not written anew.
        """
        file_name = self.inside("", name)
        if not self.has(file_name):
            raise Unusable("image file missing")
        try:
            header = read_header(self.root / file_name)
            if header.orientation in (0, 1):
                return header.hw
            if not self.upright:
                raise Unusable("image that EXIF turns (--images copy writes it upright)")
            pixels = decode_image(read_file(self.root / file_name, "image"), file_name, upright=True)
        except Unusable:
            raise
        except ValueError as error:
            raise Unusable("image that cannot be read") from error
        return pixels.shape[0], pixels.shape[1]

    def text(self, name: str) -> str:
        """A text file without the mark of its encoding (BOM); lines may end as on Windows.

        Raises:
            Unusable: it cannot be read, or is not UTF-8.
        """
        try:
            return read_file(self.root / name, "text", _LARGEST_TEXT).decode("utf-8-sig")
        except ValueError as error:
            raise Unusable("file that is no text in UTF-8") from error

    def json(self, name: str) -> Any:
        """What a JSON file holds.

        Raises:
            Unusable: it is none.
        """
        try:
            return read_json_file(self.root / name, "annotations")
        except ValueError as error:
            raise Unusable("file that is no JSON") from error

    def xml(self, name: str) -> Element:
        """The root of an XML file.

        Raises:
            Unusable: it is none, is nested too deep, or has a document type, which alone can define entities.
        """
        builder = TreeBuilder()
        parser = expat.ParserCreate()
        depth = 0

        def start(tag: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            depth += 1
            if depth > _DEEPEST:
                raise Unusable("XML nested too deep")
            builder.start(tag, attributes)

        def end(tag: str) -> None:
            nonlocal depth
            depth -= 1
            builder.end(tag)

        def refuse(*_: Any) -> None:
            raise Unusable("XML with a document type, which is not read since it can define entities")

        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
        parser.buffer_text = True
        try:
            parser.Parse(read_file(self.root / name, "annotations", _LARGEST_TEXT), True)
            return builder.close()
        except Unusable:
            raise
        except (expat.ExpatError, ValueError, LookupError) as error:
            raise Unusable("file that is no XML") from error


def check_apart(source: Path, out: Path) -> None:
    """Make sure that nothing is written to where the data is read.

    Raises:
        ValueError: ``out``, or the folder ``images`` in it, is the source or overlaps with it.
    """
    read, written = source.resolve(), out.resolve()
    images = written / "images"
    if written == read or read in written.parents or images == read or images in read.parents:
        raise ValueError(
            f"{out}: expected a folder apart from {source}, since files there could be replaced; name another OUT"
        )


def link(path: Path, target: Path) -> None:
    """Link to a file; a link of that name is replaced, and nothing else is.

    Raises:
        ValueError: there is something that is no link.
    """
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise ValueError(f"{target}: expected nothing there or a link, got a file; name another OUT")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(path.resolve())


def by_stem(names: list[str]) -> dict[str, list[str]]:
    """Paths by the file's name without suffix; several folders may have files of one name."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(PurePosixPath(name).stem, []).append(name)
    return found
