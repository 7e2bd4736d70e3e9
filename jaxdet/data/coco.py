"""A plain COCO folder as a data source: images, and one instances json.

Image and category ids may be sparse and in any order.  Images are kept in the order of the json, labels follow the
category ids in ascending order.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.images import load_image
from jaxdet.data.records import Annotation, Category, Record, usable_boxes
from jaxdet.data.shared_arrays import SharedArrays, pack_texts, unpack_text

_CHECK = "`python -m jaxdet.data.check` lists everything that is wrong with a data set"


def read_json(path: str) -> dict[str, Any]:
    """Read a COCO instances json; what it lacks of images, annotations, categories is an error.

    Raises:
        ValueError: no such file, no JSON, or not COCO's layout.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"annotations {path}: expected a readable file, got {error.strerror or error}") from error
    except ValueError as error:  # malformed JSON, or bytes that are no text
        raise ValueError(f"annotations {path}: expected JSON, got {error}") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise ValueError(f"annotations {path}: expected an object with the lists {keys}, got none for {missing}")
    assert isinstance(data, dict)
    return data


def read_categories(entries: Sequence[dict[str, Any]]) -> tuple[Category, ...]:
    """Categories sorted by id; ids must differ."""
    categories = tuple(sorted((Category(int(e["id"]), str(e["name"])) for e in entries), key=lambda c: c.id))
    if len({category.id for category in categories}) < len(categories):
        raise ValueError(f"categories: expected ids that differ, got {[c.id for c in categories]}; {_CHECK}")
    return categories


class CocoSource:
    """Records of a COCO folder (see ``records.Source``).

    The json is packed into memory-mapped arrays once, so worker processes neither read it again nor copy it.

    Args:
        images: folder that ``file_name`` is relative to.
        annotations: path of the instances json.

    Raises:
        ValueError: the json is not COCO's, ids repeat, or an annotation names an unknown image or category.
    """

    def __init__(self, images: str, annotations: str) -> None:
        data = read_json(annotations)
        self.folder, self.path = images, annotations
        self.categories = read_categories(data["categories"])
        try:
            self._table = SharedArrays(_pack(data, self.categories, images))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"annotations {annotations}: {what}; {_CHECK}") from error

    @property
    def sizes(self) -> NDArray[np.int32]:
        return self._table["sizes"]

    @property
    def image_ids(self) -> NDArray[np.int64]:
        return self._table["image_ids"]

    @property
    def usable(self) -> NDArray[np.int32]:
        return self._table["usable"]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        path = self.image_path(index)
        image = load_image(path)
        expected = tuple(int(side) for side in self.sizes[index])
        if image.shape[:2] != expected:
            raise ValueError(
                f"image {path}: expected height, width {expected} as in {self.path}, got {image.shape[:2]}; {_CHECK}"
            )
        return Record(index, int(self.image_ids[index]), path.name, image, self.annotations(index))

    def image_path(self, index: int) -> Path:
        """Path of an image."""
        table = self._table
        return Path(self.folder) / unpack_text(table["names"], table["name_offsets"], index).decode()

    def annotations(self, index: int) -> tuple[Annotation, ...]:
        """Annotations of an image, in the json's order, without reading the image."""
        first, last = self._table["first"][index : index + 2]
        return tuple(self._annotation(row) for row in range(first, last))

    def _annotation(self, row: int) -> Annotation:
        table = self._table
        x, y, width, height = table["boxes"][row].tolist()
        return Annotation(
            id=int(table["ids"][row]),
            label=int(table["labels"][row]),
            bbox=(x, y, width, height),
            area=float(table["areas"][row]),
            crowd=bool(table["crowd"][row]),
            ignore=bool(table["ignore"][row]),
            segmentation=json.loads(unpack_text(table["segmentations"], table["segmentation_offsets"], row)),
        )

    def ground_truth(self) -> dict[str, Any]:
        return read_json(self.path)


def _pack(data: dict[str, Any], categories: Sequence[Category], folder: str) -> dict[str, NDArray[Any]]:
    images = data["images"]
    image_ids = np.array([image["id"] for image in images], np.int64)
    if len(np.unique(image_ids)) < len(image_ids):
        raise ValueError("expected image ids that differ, got an id twice")
    sizes = np.array([_size(image, folder) for image in images], np.int32).reshape(-1, 2)
    names, name_offsets = pack_texts([str(image["file_name"]).encode() for image in images])
    position = {int(image_id): index for index, image_id in enumerate(image_ids)}
    owners = [_known(position, entry, "image_id") for entry in data["annotations"]]
    order = np.argsort(np.array(owners, np.int64), kind="stable")
    entries = [data["annotations"][row] for row in order]
    owner = np.array(owners, np.int64)[order]
    columns = _columns(entries, categories)
    use = usable_boxes(columns["boxes"], columns["areas"], sizes[owner]) & ~columns["crowd"] & ~columns["ignore"]
    return columns | {
        "image_ids": image_ids,
        "sizes": sizes,
        "names": names,
        "name_offsets": name_offsets,
        "first": np.searchsorted(owner, np.arange(len(images) + 1)),
        "usable": np.bincount(owner[use], minlength=len(images)).astype(np.int32),
    }


def _columns(entries: list[dict[str, Any]], categories: Sequence[Category]) -> dict[str, NDArray[Any]]:
    label = {category.id: index for index, category in enumerate(categories)}
    # JSON text, not numbers: exact, and a third of the size of Python lists.
    texts = [json.dumps(entry.get("segmentation"), separators=(",", ":")).encode() for entry in entries]
    segmentations, offsets = pack_texts(texts)
    return {
        "ids": np.array([entry["id"] for entry in entries], np.int64),
        "labels": np.array([_known(label, entry, "category_id") for entry in entries], np.int32),
        "boxes": np.array([_box(entry) for entry in entries], np.float64).reshape(-1, 4),
        "areas": np.array([_area(entry) for entry in entries], np.float64),
        "crowd": np.array([bool(entry.get("iscrowd", 0)) for entry in entries], np.bool_),
        "ignore": np.array([bool(entry.get("ignore", 0)) for entry in entries], np.bool_),
        "segmentations": segmentations,
        "segmentation_offsets": offsets,
    }


def _known(table: dict[int, int], entry: dict[str, Any], key: str) -> int:
    if entry[key] not in table:
        raise ValueError(f"annotation {entry.get('id')}: expected a {key} that the json lists, got {entry[key]}")
    return table[entry[key]]


def _box(entry: dict[str, Any]) -> list[float]:
    box = entry["bbox"]
    if len(box) != 4 or not np.isfinite(np.asarray(box, np.float64)).all():
        raise ValueError(f"annotation {entry['id']}: expected a bbox of 4 numbers x, y, width, height, got {box}")
    return [float(value) for value in box]


def annotation_of(entry: dict[str, Any], label: int) -> Annotation:
    """An annotation of the json whose category has the label ``label``; without an area, that of the box is taken."""
    x, y, width, height = _box(entry)
    return Annotation(
        id=int(entry["id"]),
        label=label,
        bbox=(x, y, width, height),
        area=_area(entry),
        crowd=bool(entry.get("iscrowd", 0)),
        ignore=bool(entry.get("ignore", 0)),
        segmentation=entry.get("segmentation"),
    )


def _area(entry: dict[str, Any]) -> float:
    area = entry.get("area")
    return float(entry["bbox"][2]) * float(entry["bbox"][3]) if area is None else float(area)


def _size(image: dict[str, Any], folder: str) -> tuple[int, int]:
    if "height" in image and "width" in image:
        return int(image["height"]), int(image["width"])
    with Image.open(Path(folder) / image["file_name"]) as opened:  # reads the header only
        return opened.height, opened.width
