"""A plain COCO folder as a data source: images, and one instances json.

Ids of images and categories may have gaps and come in any order.  Images keep the order of the json, and labels follow
the category ids in ascending order, as in the reference.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.images import load_image, load_map, read_header
from jaxdet.data.masks import has_mask
from jaxdet.data.records import Annotation, Category, Record, usable_boxes
from jaxdet.data.sources.stored import CHECK, SharedArrays, StoredSource, pack_texts, unpack_text
from jaxdet.data.validation.entries import (
    MAX_ANNOTATIONS,
    annotation_of,
    category_of,
    check_categories,
    check_ids_differ,
    each,
    file_name_of,
    hw_of,
    known,
    whole,
)
from jaxdet.data.validation.names import missing_files, missing_text
from jaxdet.runtime.files import read_json_file

#: What `annotation_of` reads of an annotation; the rest of the json's entry is not kept in memory.
_ENTRY_KEYS = ("id", "bbox", "area", "iscrowd", "ignore", "segmentation")
_TOO_DEEP = "expected annotations of a few levels, got lists or objects nested too deep to read"


def read_json(path: str) -> dict[str, Any]:
    """Read a COCO instances json; one without annotations, as of a test set, gets an empty list of them.

    Raises:
        ValueError: there is no such file, it is not JSON, or it lacks a list of images or categories.
    """
    data = read_json_file(path, "annotations")
    keys = ("images", "annotations", "categories")
    if isinstance(data, dict):
        data.setdefault("annotations", [])
    missing = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise ValueError(f"annotations {path}: expected an object with the lists {keys}, got none for {missing}")
    assert isinstance(data, dict)
    return data


def read_categories(entries: Sequence[dict[str, Any]]) -> tuple[Category, ...]:
    """Read the list ``categories`` of a json, sorted by id.

    Raises:
        ValueError: an entry is malformed, an id occurs twice, or there are too many.
    """
    check_categories(len(entries))
    categories = tuple(sorted(each("categories", entries, category_of), key=lambda category: category.id))
    check_ids_differ("category", [category.id for category in categories])
    return categories


def open_coco(images: str, annotations: str, stuff: str | None = None) -> StoredSource:
    """Open a COCO folder.

    The json is packed into arrays here, so that worker processes need not read it again (see `SharedArrays`).

    Args:
        images: folder that ``file_name`` is relative to.
        annotations: path of the instances json.
        stuff: folder of semantic maps, which are named as the images, with the suffix ``.png``.

    Raises:
        ValueError: the json is not COCO's, ids repeat, an annotation names an unknown image or category, a file
            name leads out of the folder, or there is more than the limits of ``data.validation.entries`` allow.
    """
    if not os.path.exists(annotations):
        raise ValueError(
            f"annotations {annotations}: expected a COCO json, there is no such file; the settings "
            "data.train.annotations and data.val.annotations say where yours are (of jaxdet eval --annotations)"
        )
    data = read_json(annotations)
    try:
        categories = read_categories(data["categories"])
        table = SharedArrays(pack(data, categories, images))
    except ValueError as error:  # the functions above do not know the file
        raise ValueError(f"annotations {annotations}: {error}; {CHECK}") from error
    return StoredSource(categories, table, CocoFiles(images, annotations, stuff, table))


@dataclass(frozen=True, eq=False)
class CocoFiles:
    """The files of a COCO folder (a `Store`)."""

    images: str  #: folder of the images
    json: str  #: path of the instances json
    stuff: str | None  #: folder of the semantic maps
    table: SharedArrays  #: the json as `pack` packed it

    def read(self, index: int, image_id: int) -> Record:
        path = self.image_path(index)
        semantic = None if self.stuff is None else load_map(map_path(self.stuff, self._name(index)))
        return Record(index, image_id, path.name, load_image(path), self.annotations(index), semantic)

    def image_path(self, index: int) -> Path:
        """Path of the image at a position."""
        return Path(self.images) / self._name(index)

    def annotations(self, index: int) -> tuple[Annotation, ...]:
        """Annotations of the image at a position, in the json's order; the image itself is not read."""
        table = self.table
        rows = range(*table["first"][index : index + 2])
        texts = (unpack_text(table["entries"], table["entry_offsets"], row) for row in rows)
        try:
            return tuple(
                annotation_of(json.loads(text), int(label))
                for text, label in zip(texts, table["labels"][rows.start : rows.stop], strict=True)
            )
        except RecursionError as error:
            raise ValueError(f"annotations {self.json}, image {self._name(index)}: {_TOO_DEEP}") from error

    def ground_truth(self) -> dict[str, Any]:
        return read_json(self.json)

    def missing(self, indices: Iterable[int]) -> list[str]:
        names = [self._name(index) for index in indices]
        wanted = {self.images: names}
        if self.stuff is not None:
            wanted[self.stuff] = [str(map_path("", name)) for name in names]
        return [
            f"{folder}: {missing_text(Path(folder), name)}"
            for folder, its in wanted.items()
            for name in missing_files(Path(folder), its)
        ]

    def _name(self, index: int) -> str:
        return unpack_text(self.table["names"], self.table["name_offsets"], index).decode()


def map_path(stuff: str, file_name: str) -> Path:
    """Path of an image's semantic map in the folder ``stuff``: COCO-stuff names it as the image, with ``.png``."""
    return (Path(stuff) / file_name).with_suffix(".png")


def pack(data: dict[str, Any], categories: Sequence[Category], folder: str) -> dict[str, NDArray[Any]]:
    """Check a whole json and pack it into arrays.

    Annotations are sorted by image: those of image i are rows ``first[i]`` to ``first[i + 1]`` of ``labels`` and
    ``entries``.
    """
    images, entries = data["images"], data["annotations"]
    names = each("images", images, file_name_of)
    image_ids = np.array(each("images", images, lambda image: whole(image, "id")), np.int64)
    # An id that comes twice would give both images all annotations of either.
    check_ids_differ("image", image_ids.tolist())
    # Ids of the json -> positions, which everything else uses.
    position = {int(image_id): index for index, image_id in enumerate(image_ids)}
    owners = np.array(each("annotations", entries, lambda entry: known(position, entry, "image_id")), np.int64)
    counts = np.bincount(owners, minlength=len(images))
    _check_counts(counts, names)
    sizes = np.array(each("images", images, lambda image: stored_hw(image, folder)), np.int32).reshape(-1, 2)
    by_image = np.argsort(owners, kind="stable")  # stable: within an image the json's order stays
    columns, counted = _annotation_columns(entries, categories, sizes[owners], by_image)
    by_name = {name: np.bincount(owners[which], minlength=len(images)) for name, which in counted.items()}
    packed, offsets = pack_texts([name.encode() for name in names])
    return {
        **columns,
        **{name: count.astype(np.int32) for name, count in by_name.items()},
        "image_ids": image_ids,
        "sizes": sizes,
        "names": packed,
        "name_offsets": offsets,
        "first": np.concatenate([[0], np.cumsum(counts)]),
    }


def stored_hw(entry: Any, folder: str) -> tuple[int, int]:
    """Height and width of an entry of ``images``; its file in ``folder`` is asked where the json lacks one of them.

    Raises:
        ValueError: they exceed the limits, or the file cannot be read.
    """
    name = file_name_of(entry)
    if entry.get("height") is None or entry.get("width") is None:
        return read_header(Path(folder) / name).hw
    return hw_of(entry)


def _check_counts(counts: NDArray[np.int64], names: list[str]) -> None:
    # `initial` for a json without images, of which the maximum is not defined.
    if counts.max(initial=0) > MAX_ANNOTATIONS:
        raise ValueError(
            f"expected at most {MAX_ANNOTATIONS} annotations of an image, "
            f"got {counts.max()} of {names[counts.argmax()]}; "
            f"set the environment variable JAXDET_MAX_ANNOTATIONS={counts.max()} if it is to be trusted"
        )


def _annotation_columns(
    entries: list[Any], categories: Sequence[Category], hw: NDArray[np.int32], order: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Labels and texts of A annotations, how many of a label can be learned from, and which.

    Args:
        entries: the json's annotations.
        categories: sorted by id.
        hw: ``[A, 2]`` size of the image of each entry.
        order: ``[A]`` the order in which labels and texts are returned.

    Returns:
        The arrays for `SharedArrays`, and by the names under which `StoredSource` counts them, ``[A]`` bool in the
        order of ``entries``.
    """
    label = {category.id: index for index, category in enumerate(categories)}
    read = each("annotations", entries, lambda entry: annotation_of(entry, known(label, entry, "category_id")))
    boxes = np.array([annotation.bbox for annotation in read], np.float64).reshape(-1, 4)
    areas = np.array([annotation.area for annotation in read], np.float64)
    # Crowd regions are never positives, and the annotators ask to leave ignored ones out.
    offered = np.array([not (annotation.crowd or annotation.ignore) for annotation in read], np.bool_)
    labels = np.array([annotation.label for annotation in read], np.int32)
    # Annotations are kept as JSON text, which loses no digit of them and takes a third of the memory of lists.
    texts, offsets = pack_texts([_text(entries[row]) for row in order])
    check_ids_differ("annotation", [annotation.id for annotation in read])
    usable = usable_boxes(boxes, areas, hw) & offered
    crowd = np.array([annotation.crowd for annotation in read], np.bool_)
    masked = np.array([has_mask(annotation.segmentation) for annotation in read], np.bool_)
    columns: dict[str, NDArray[Any]] = {"labels": labels[order], "entries": texts, "entry_offsets": offsets}
    columns["learned"] = np.bincount(labels[usable], minlength=len(categories)).astype(np.int32)
    return columns, {"usable": usable, "left_out": ~usable & ~crowd, "maskless": usable & ~masked}


def _text(entry: dict[str, Any]) -> bytes:
    """The part of an annotation that is kept, as JSON."""
    kept = {key: entry[key] for key in _ENTRY_KEYS if key in entry}
    try:
        return json.dumps(kept, separators=(",", ":")).encode()
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
