"""Entries of a COCO json, each checked as far as a record needs it.  Errors do not say which entry: callers do."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from jaxdet.data.images import read_header
from jaxdet.data.records import Annotation, Category
from jaxdet.data.validation.limits import BOX, check_sides
from jaxdet.data.validation.values import flag, is_number, short, text, value_of, whole

T = TypeVar("T")


def each(name: str, entries: Iterable[Any], read: Callable[[Any], T]) -> list[T]:
    """``read`` of every entry of the list ``name``; its errors say which entry it was."""
    results = []
    for place, entry in enumerate(entries):
        try:
            results.append(read(entry))
        except ValueError as error:
            known = f" (id {short(entry['id'])})" if isinstance(entry, Mapping) and "id" in entry else ""
            raise ValueError(f"{name}[{place}]{known}: {error}") from error
    return results


def category_of(entry: Any) -> Category:
    """A category of the json."""
    return Category(whole(entry, "id"), text(entry, "name"))


def annotation_of(entry: Any, label: int) -> Annotation:
    """An annotation of the json whose category has the label ``label``; without an area, that of the box is taken.

    Its segmentation is taken as it is: ``masks`` looks at it when it is needed.
    """
    x, y, width, height = _box(entry)
    area = entry.get("area")
    if area is not None and not is_number(area):
        raise ValueError(f"area: expected a finite number, got {short(area)}")
    return Annotation(
        id=whole(entry, "id"),
        label=label,
        bbox=(x, y, width, height),
        area=width * height if area is None else float(area),
        crowd=flag(entry, "iscrowd"),
        ignore=flag(entry, "ignore"),
        segmentation=entry.get("segmentation"),
    )


def _box(entry: Any) -> tuple[float, float, float, float]:
    box = value_of(entry, "bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value, BOX) for value in box):
        raise ValueError(f"bbox: expected 4 numbers x, y, width, height of at most {BOX:g}, got {short(box)}")
    x, y, width, height = (float(value) for value in box)
    return x, y, width, height


def file_name_of(entry: Any) -> str:
    """The file name of an image, relative to the image folder and inside of it.

    Links in the folder are followed wherever they lead: whoever made them could write there, which a json cannot.
    """
    name = text(entry, "file_name")
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name: expected a path inside the image folder, got {short(name)}")
    return name


def stored_hw(entry: Any, folder: str) -> tuple[int, int]:
    """Height and width of an image, asked from its file where the json has none."""
    name = file_name_of(entry)
    if entry.get("height") is None or entry.get("width") is None:
        return read_header(Path(folder) / name)[0]
    return hw_of(entry)


def hw_of(entry: Any) -> tuple[int, int]:
    """Height and width of an image as the json has them."""
    height, width = whole(entry, "height"), whole(entry, "width")
    check_sides(height, width)
    return height, width
