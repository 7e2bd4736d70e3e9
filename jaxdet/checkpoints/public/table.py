"""The table of published weights: where each file lies, which model it is for, and what its publishers say of it.

``weights.tsv`` has a row for each.  Names are those of the source, for mmdetection without its ``_coco``.  All
detectors were trained on COCO 2017; ``coco.tsv`` has its categories, whose order by id is that of the labels.
"""

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

_HERE = Path(__file__).parent
_SHOWN = 5  #: near names that an error lists


@dataclass(frozen=True)
class Source:
    """Who publishes weights, and what they say of their licence."""

    name: str
    licence: str


#: By the host of the address.
_SOURCES = {
    "download.openmmlab.com": Source(
        "mmdetection", "the project is Apache-2.0; nothing is said of the weights by themselves"
    ),
    "download.pytorch.org": Source(
        "torchvision",
        "the project is BSD-3-Clause; models may have their own licences or terms derived from the dataset used for "
        "training",
    ),
    "dl.fbaipublicfiles.com": Source("detectron2", "CC BY-SA 3.0"),
}


@dataclass(frozen=True)
class PublicWeights:
    """A row of the table."""

    name: str
    config: (
        str  #: the file in ``configs/`` without ``.py``, which has the input convention too; empty: a backbone alone
    )
    settings: tuple[str, ...]  #: overrides of that config
    box_ap: float | None  #: on COCO val2017, as published; None: not given
    mask_ap: float | None  #: likewise
    hash: str  #: ``sha256:`` or ``md5:`` and the first hex digits of the file's hash, which end its published name
    url: str

    @property
    def file(self) -> str:
        """The published name of the file."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def source(self) -> Source:
        return _SOURCES[urlsplit(self.url).netloc]


@cache
def public_weights() -> dict[str, PublicWeights]:
    """All rows by name, in the order of the file."""
    rows = [
        PublicWeights(
            name=row["name"],
            config=row["config"],
            settings=tuple(row["settings"].split()),
            box_ap=float(row["box_ap"]) if row["box_ap"] else None,
            mask_ap=float(row["mask_ap"]) if row["mask_ap"] else None,
            hash=row["hash"],
            url=row["url"],
        )
        for row in _read("weights.tsv")
    ]
    return {row.name: row for row in rows}


@cache
def coco_categories() -> tuple[tuple[int, str], ...]:
    """Id and name of COCO's 80 categories in the order of the labels."""
    return tuple((int(row["id"]), row["name"]) for row in _read("coco.tsv"))


def find_public(checkpoint: object) -> PublicWeights | None:
    """The row that is meant by a name, or by the path of a file that has the published name of one.

    What lies at a path goes before a name: a run folder may be called as weights are.

    Returns:
        None for a path of something else, and for what is no path.
    """
    if not isinstance(checkpoint, str | Path):
        return None
    path, rows = Path(checkpoint), public_weights()
    if path.exists():
        return next((row for row in rows.values() if path.is_file() and row.file == path.name), None)
    return rows.get(str(checkpoint).removesuffix("_coco"))


def near_names(name: object) -> str:
    """A sentence on names like this one, for errors; empty where there are none."""
    near = difflib.get_close_matches(str(name), public_weights(), _SHOWN, 0.7)
    return f"; public weights of a similar name: {', '.join(near)}" if near else ""


def _read(name: str) -> list[dict[str, str]]:
    with (_HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
