"""Values and entries of a COCO json, each checked before it is used, and what a data set may not exceed.

A data set may come from a stranger: the json may hold any type anywhere, and a small file can ask for any amount of
memory or time.  Functions here return what they read, or raise a ValueError with what was expected and what came.
Only `each` knows the place in the json, so that the others need not be told it.
"""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from jaxdet.data.records import Annotation, Category
from jaxdet.messages import short

_T = TypeVar("_T")
_INT64 = range(-(1 << 63), 1 << 63)


# Limits.  Those that could be in the way of honest data are raised by environment variables and not by settings,
# because every worker process inherits these.


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or not text.isascii() or len(text) > 18 or int(text) < 1:
        raise ValueError(f"environment variable {name}: expected a whole number from 1, got {text[:40]!r}")
    return int(text)


#: Pixels of an image (134 million).
MAX_PIXELS = _from_environment("JAXDET_MAX_PIXELS", 1 << 27)

#: Annotations of an image.  All of them are read whenever the image is.
MAX_ANNOTATIONS = _from_environment("JAXDET_MAX_ANNOTATIONS", 1 << 16)

#: Categories of a data set.  COCO's evaluation allocates 200 kB for each, whether it occurs or not.
_MAX_CATEGORIES = _from_environment("JAXDET_MAX_CATEGORIES", 1 << 14)

#: Pixels of an image's side.  JPEG has no longer ones, and float32 holds every position on such a side exactly.
_MAX_SIDE = (1 << 16) - 1

#: Pixels that the outlines of one instance may run through.  pycocotools allocates 250 bytes for each, and a zigzag
#: of a few kilobytes would run through billions.  Run lengths have no such limit.
MAX_OUTLINE = 1 << 19

#: Pixels between a polygon's point and the image's origin.  pycocotools counts fifths of a pixel in 32 bits.
MAX_COORDINATE = 1 << 24

#: Largest number in a box: sums and products of such numbers are finite in float32.
MAX_BOX_VALUE = 1e9


def check_sides(height: int, width: int) -> None:
    """Raise a ValueError if an image of this size is empty or larger than the limits."""
    if min(height, width) < 1 or max(height, width) > _MAX_SIDE:
        raise ValueError(f"expected sides of 1 to {_MAX_SIDE} pixels, got height {short(height)}, width {short(width)}")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"expected at most {MAX_PIXELS} pixels, got {height} x {width}; "
            f"set the environment variable JAXDET_MAX_PIXELS={height * width} if the image is to be trusted"
        )


def check_categories(count: int) -> None:
    """Raise a ValueError if a data set has more categories than the limit."""
    if count > _MAX_CATEGORIES:
        raise ValueError(
            f"expected at most {_MAX_CATEGORIES} categories, got {count}; "
            f"set the environment variable JAXDET_MAX_CATEGORIES={count} if there is memory to evaluate them"
        )


# Single values.


def _value_of(entry: Any, key: str) -> Any:
    """Return what an object of the json has under ``key``; it must be an object and have the key."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected an object, got {short(entry)}")
    if key not in entry:
        raise ValueError(f"expected the key {key!r}, got {short(list(entry))}")
    return entry[key]


def whole(entry: Any, key: str) -> int:
    """Read an integer of 64 bits; 3.0 counts as 3, true does not count as 1."""
    value = _value_of(entry, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value not in _INT64:
        raise ValueError(f"{key}: expected a whole number, got {short(value)}")
    return value


def text(entry: Any, key: str) -> str:
    """Read a string without control characters, which a terminal would obey, and without lone surrogates."""
    value = _value_of(entry, key)
    if not isinstance(value, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        raise ValueError(f"{key}: expected a string without control characters, got {short(value)}")
    return value


def flag(entry: Any, key: str) -> bool:
    """Read 0, 1, false or true; absent and null count as false."""
    value = entry.get(key)
    if value is not None and (type(value) not in (int, float, bool) or value not in (0, 1)):
        raise ValueError(f"{key}: expected 0 or 1, got {short(value)}")
    return bool(value)


def is_number(value: Any, most: float = sys.float_info.max) -> bool:
    """Whether a value is a number whose magnitude is at most ``most``; NaN and infinity are not, nor are bools."""
    # The exact type, because bool is a subclass of int; and NaN fails both comparisons.
    return type(value) in (int, float) and -most <= value <= most


# Entries.


def each(name: str, entries: Iterable[Any], read: Callable[[Any], _T]) -> list[_T]:
    """Read every entry of a list of the json.

    Args:
        name: what the list is called, for messages.
        entries: the list.
        read: reads one entry.

    Raises:
        ValueError: what ``read`` raised, with the entry's position and its id.
    """
    results = []
    for place, entry in enumerate(entries):
        try:
            results.append(read(entry))
        except ValueError as error:
            known = f" (id {short(entry['id'])})" if isinstance(entry, Mapping) and "id" in entry else ""
            raise ValueError(f"{name}[{place}]{known}: {error}") from error
    return results


def known(table: Mapping[int, _T], entry: Any, key: str) -> _T:
    """Return what ``table`` has for the id that an entry refers to under ``key``."""
    value = whole(entry, key)
    if value not in table:
        raise ValueError(f"{key}: expected one that the json lists, got {value}")
    return table[value]


def check_ids_differ(what: str, ids: Iterable[int]) -> None:
    """Raise a ValueError that names an id which occurs twice; ``what`` they are ids of is for the message."""
    twice = [value for value, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"expected {what} ids that differ, got an id twice: {twice[0]}; number them anew")


def category_of(entry: Any) -> Category:
    """Read an entry of ``categories``."""
    return Category(whole(entry, "id"), text(entry, "name"))


def annotation_of(entry: Any, label: int) -> Annotation:
    """Read an entry of ``annotations``.

    Args:
        entry: the entry; without an area it gets that of its box.
        label: the label (0..K-1) of the entry's category.

    Returns:
        The annotation.  Its segmentation is not looked at: ``data.masks`` checks it when the mask is needed.
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
    box = _value_of(entry, "bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value, MAX_BOX_VALUE) for value in box):
        raise ValueError(f"bbox: expected 4 numbers x, y, width, height of at most {MAX_BOX_VALUE:g}, got {short(box)}")
    x, y, width, height = (float(value) for value in box)
    return x, y, width, height


def file_name_of(entry: Any) -> str:
    """Read the file name of an entry of ``images``: a path relative to the image folder that stays inside it.

    Links in the folder are followed wherever they lead: only who can write to the folder could make one, and a json
    cannot.
    """
    name = text(entry, "file_name")
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name: expected a path inside the image folder, got {short(name)}")
    return name


def hw_of(entry: Any) -> tuple[int, int]:
    """Read height and width of an entry of ``images``, both within the limits."""
    height, width = whole(entry, "height"), whole(entry, "width")
    check_sides(height, width)
    return height, width
