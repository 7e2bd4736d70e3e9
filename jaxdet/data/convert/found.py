"""What a reader finds in a data set of another format, before it is COCO's, and the account of what was left out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jaxdet.data.records import Segmentation

SPLITS = ("train", "val", "test")
#: What others call the splits.  A folder or a list of such a name decides where its images go.
_SPLIT_OF = {
    **{name: name for name in SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}


class Unusable(ValueError):
    """Something that is left out of the outcome.  Its text is a kind, by which it is counted, and names no place."""


@dataclass(frozen=True)
class Found:
    """One object, in pixels of the image as it will be read."""

    name: str  #: its class
    segmentation: Segmentation  #: None: it has a box alone
    bbox: tuple[float, float, float, float]  #: x, y, width, height; with a mask the tight box of its pixels
    area: float  #: pixels of the mask, or else of the box


@dataclass(frozen=True)
class Picture:
    """An image and what is on it."""

    name: str  #: path of the image below the data set's folder, with forward slashes
    hw: tuple[int, int]  #: height and width of the pixels as they will be read
    objects: tuple[Found, ...]
    split: str | None = None  #: one of `SPLITS` where the data set says it
    encoded: bytes | None = None  #: the file itself, where it lay inside another one


@dataclass
class Tally:
    """The account of a conversion: nothing is left out in silence."""

    read: dict[str, int] = field(default_factory=dict)  #: number of what was read, by what it is
    notes: dict[str, list[str]] = field(default_factory=dict)  #: places of what was read otherwise than it was written
    skipped: dict[str, list[str]] = field(default_factory=dict)  #: places of what was left out, by the reason

    def took(self, kind: str, count: int = 1) -> None:
        """Count what was read."""
        self.read[kind] = self.read.get(kind, 0) + count

    def note(self, kind: str, where: str) -> None:
        """Count what was changed."""
        self.notes.setdefault(kind, []).append(where)

    def skip(self, kind: str, where: str) -> None:
        """Count what was left out."""
        self.skipped.setdefault(kind, []).append(where)

    @contextmanager
    def skipping(self, where: str) -> Iterator[None]:
        """Count an `Unusable` raised inside as left out, and go on behind the ``with``."""
        try:
            yield
        except Unusable as reason:
            self.skip(str(reason), where)


#: Names of classes in the data set's own order (None where it has no list), and the images.
Contents: TypeAlias = tuple[list[str] | None, Iterable[Picture]]


def split_of(path: str) -> str | None:
    """The split that a path's folders name, as in ``images/valid/a.jpg``; the one nearest to the file counts."""
    parts = path.lower().split("/")[:-1]
    # COCO's years: train2017.
    return next((_SPLIT_OF[part.rstrip("0123456789")] for part in reversed(parts) if _split_name(part)), None)


def _split_name(part: str) -> bool:
    return part.rstrip("0123456789") in _SPLIT_OF


def split_named(name: str) -> str | None:
    """The split that a single word names, as ``Validation`` does; None for any other word."""
    return split_of(f"{name}/.") if name and "/" not in name else None


def one_word(value: Any) -> str:
    """A class's name as text on one line, which a terminal prints as it is.

    Raises:
        Unusable: it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or not value.strip().isprintable():
        raise Unusable("class name that is no text on one line")
    return value.strip()
