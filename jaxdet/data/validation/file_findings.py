"""What can be wrong with the files of a COCO data set: images and semantic maps."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdet.data.images import load_image, load_map, read_header, suffixes
from jaxdet.data.sources.coco import map_path
from jaxdet.data.validation.entries import file_name_of
from jaxdet.data.validation.findings import Finding
from jaxdet.data.validation.values import short


def image_findings(entry: dict[str, Any], folder: Path, quick: bool) -> Iterator[Finding]:
    """The file of an image entry: there, readable, of the size that the json says, upright.

    Args:
        entry: of ``images``.
        folder: that ``file_name`` is relative to.
        quick: read only the file's header.
    """
    try:
        name = file_name_of(entry)
    except ValueError as error:
        yield Finding("error", "file name not usable", str(error))
        return
    path = folder / name
    if not os.path.isfile(path):
        yield Finding("error", "image file missing", name)
        return
    try:
        (height, width), orientation = read_header(path)
        if not quick:
            load_image(path)
    except ValueError as error:
        yield Finding("error", "image broken", f"{name}: {error}")
        return
    expected = entry.get("width"), entry.get("height")
    if expected == (None, None):
        yield Finding("warning", "image without width and height in the json", name)
    elif expected != (width, height):
        yield Finding(
            "error", "image size differs from the json", f"{name}: json {short(expected)}, file {width} x {height}"
        )
    if orientation not in (0, 1):
        yield Finding("warning", "image with EXIF rotation (not applied)", name)


def map_findings(entry: dict[str, Any], stuff: Path) -> Iterator[Finding]:
    """The semantic map of an image entry: there, readable, of the size that the json says; ``stuff`` is its folder."""
    try:
        name = file_name_of(entry)
    except ValueError:
        return  # reported with the image
    path = map_path(str(stuff), name)
    if not os.path.isfile(path):
        yield Finding("error", "semantic map missing", name)
        return
    try:
        size = load_map(path).shape[::-1]
    except ValueError as error:
        yield Finding("error", "semantic map unreadable", f"{name}: {error}")
        return
    expected = entry.get("width"), entry.get("height")
    if expected not in ((None, None), size):
        yield Finding("error", "semantic map of another size", f"{name}: json {short(expected)}, map {size}")


def unreferenced(names: set[str], folder: Path) -> Iterator[Finding]:
    """Image files under the folder that are not among ``names``."""
    named = {str(Path(name)) for name in names}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes() and str(path.relative_to(folder)) not in named:
            yield Finding("note", "image file that no json names", str(path.relative_to(folder)))
