"""A plain COCO folder as a data source: images, and one instances json.

Image and category ids may be sparse and in any order.  Images are kept in the order of the json, labels follow the
category ids in ascending order.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.images import load_image, load_map
from jaxdet.data.records import Annotation, Category, Record, usable_boxes
from jaxdet.data.shared_arrays import SharedArrays, pack_texts, unpack_text
from jaxdet.data.stored import CHECK, StoredSource

_ENTRY_KEYS = (
    "id",
    "bbox",
    "area",
    "iscrowd",
    "ignore",
    "segmentation",
)  # of an annotation; what `annotation_of` reads


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
        raise ValueError(f"categories: expected ids that differ, got {[c.id for c in categories]}; {CHECK}")
    return categories


def open_coco(images: str, annotations: str, stuff: str | None = None) -> StoredSource:
    """Records of a COCO folder.

    The json is packed into memory-mapped arrays once, so worker processes neither read it again nor copy it.

    Args:
        images: folder that ``file_name`` is relative to.
        annotations: path of the instances json.
        stuff: folder of semantic maps, named as the images, with the suffix ``.png``.

    Raises:
        ValueError: the json is not COCO's, ids repeat, or an annotation names an unknown image or category.
    """
    data = read_json(annotations)
    categories = read_categories(data["categories"])
    try:
        table = SharedArrays(_pack(data, categories, images))
    except (KeyError, TypeError, ValueError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"annotations {annotations}: {what}; {CHECK}") from error
    return StoredSource(categories, table, CocoFiles(images, annotations, stuff, table))


@dataclass(frozen=True, eq=False)
class CocoFiles:
    """The files that ``open_coco`` names, and the table it packed."""

    images: str
    json: str
    stuff: str | None
    table: SharedArrays

    def read(self, index: int, image_id: int) -> Record:
        path = self.image_path(index)
        semantic = None if self.stuff is None else load_map(map_path(self.stuff, self._name(index)))
        return Record(index, image_id, path.name, load_image(path), self.annotations(index), semantic)

    def image_path(self, index: int) -> Path:
        """Path of an image."""
        return Path(self.images) / self._name(index)

    def annotations(self, index: int) -> tuple[Annotation, ...]:
        """Annotations of an image, in the json's order, without reading the image."""
        table = self.table
        rows = range(*table["first"][index : index + 2])
        texts = (unpack_text(table["entries"], table["entry_offsets"], row) for row in rows)
        return tuple(
            annotation_of(json.loads(text), int(table["labels"][row])) for text, row in zip(texts, rows, strict=True)
        )

    def ground_truth(self) -> dict[str, Any]:
        return read_json(self.json)

    def _name(self, index: int) -> str:
        return unpack_text(self.table["names"], self.table["name_offsets"], index).decode()


def map_path(stuff: str, file_name: str) -> Path:
    """Where the semantic map of an image lies: COCO-stuff names it as the image, as a png."""
    return (Path(stuff) / file_name).with_suffix(".png")


def _pack(data: dict[str, Any], categories: Sequence[Category], folder: str) -> dict[str, NDArray[Any]]:
    images = data["images"]
    image_ids = np.array([image["id"] for image in images], np.int64)
    if len(np.unique(image_ids)) < len(image_ids):
        raise ValueError("expected image ids that differ, got an id twice")
    sizes = np.array([_size(image, folder) for image in images], np.int32).reshape(-1, 2)
    names, name_offsets = pack_texts([str(image["file_name"]).encode() for image in images])
    position = {int(image_id): index for index, image_id in enumerate(image_ids)}
    owners = np.array([_known(position, entry, "image_id") for entry in data["annotations"]], np.int64)
    order = np.argsort(owners, kind="stable")
    columns, trainable = _columns([data["annotations"][row] for row in order], categories, sizes[owners[order]])
    return columns | {
        "image_ids": image_ids,
        "sizes": sizes,
        "names": names,
        "name_offsets": name_offsets,
        "first": np.searchsorted(owners[order], np.arange(len(images) + 1)),
        "usable": np.bincount(owners[order][trainable], minlength=len(images)).astype(np.int32),
    }


def _columns(
    entries: list[dict[str, Any]], categories: Sequence[Category], hw: NDArray[np.int32]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Labels and texts of annotations on images of sizes ``hw [A, 2]``, and which ``[A]`` can be learned from."""
    label = {category.id: index for index, category in enumerate(categories)}
    labels = [_known(label, entry, "category_id") for entry in entries]
    annotations = [annotation_of(entry, label) for entry, label in zip(entries, labels, strict=True)]
    boxes = np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4)
    areas = np.array([annotation.area for annotation in annotations], np.float64)
    offered = np.array([not (annotation.crowd or annotation.ignore) for annotation in annotations], np.bool_)
    # JSON text, not numbers: exact, and a third of the size of Python lists.
    texts, offsets = pack_texts([_text(entry) for entry in entries])
    columns: dict[str, NDArray[Any]] = {"labels": np.array(labels, np.int32)}
    return columns | {"entries": texts, "entry_offsets": offsets}, usable_boxes(boxes, areas, hw) & offered


def _text(entry: dict[str, Any]) -> bytes:
    kept = {key: entry[key] for key in _ENTRY_KEYS if key in entry}
    return json.dumps(kept, separators=(",", ":")).encode()


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
