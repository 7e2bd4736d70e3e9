"""A TFDS data set as a source: random access to what ``tfds_builder`` wrote, without tensorflow."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from jaxdet.data.images import decode_image
from jaxdet.data.records import Annotation, Record
from jaxdet.data.sources.coco import read_categories
from jaxdet.data.sources.stored import SharedArrays, StoredSource
from jaxdet.data.validation.entries import annotation_of, check_sides, text
from jaxdet.messages import short
from jaxdet.runtime.files import read_json_file

_BUILDER = "jaxdet_coco"  #: its name, written here again: importing the builder would register it with TFDS
_HOW = "`python -m jaxdet.data.sources.tfds_builder --help` tells how to make one"


def open_tfds(directory: str, split: str) -> StoredSource:
    """Open a prepared data set; records keep the order of the json that it was made from.

    Args:
        directory: the builder's ``data_dir``, or the version folder in it.
        split: ``train`` or ``validation``.

    Raises:
        ValueError: there is no such data set or split, or the data set is of another kind or damaged.
    """
    folder = _version_folder(Path(directory))
    try:
        _check_features(folder)
        builder = tfds.builder_from_directory(str(folder))
        splits = sorted(builder.info.metadata or {})
        about = builder.info.metadata[split] if split in splits else None
        examples = about and builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        source = about and _source(about, examples)
    except Exception as error:  # TFDS checks little of what it reads: a broken file shows as KeyError and the like
        raise ValueError(f"TFDS {folder}: expected a whole data set, got {type(error).__name__}: {error}") from error
    if source is None:
        raise ValueError(f"TFDS {folder}: expected one of the splits {splits}, got {split!r}; {_HOW}")
    return source


def _source(about: Any, examples: Any) -> StoredSource:
    """The source over the examples of a split; ``about`` is what the builder wrote of all its images."""
    columns: dict[str, NDArray[Any]] = {
        "image_ids": np.array(about["image_ids"], np.int64),
        "sizes": np.array(about["sizes"], np.int32).reshape(-1, 2),
        "usable": np.array(about["usable"], np.int32),
    }
    columns |= {name: np.array(about[name], np.int32) for name in ("left_out", "maskless") if name in about}
    counts = {name: len(column) for name, column in columns.items()} | {"records": len(examples)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected as many of each, got {counts}")
    for height, width in columns["sizes"].tolist():
        check_sides(height, width)
    categories = read_categories(about["json"]["categories"])
    if "learned" in about:
        columns["learned"] = np.array(about["learned"], np.int32).reshape(len(categories))
    return StoredSource(categories, SharedArrays(columns), _TfdsFiles(examples, about["json"]))


@dataclass(frozen=True, eq=False)
class _TfdsFiles:
    """The files of one split (a ``stored.Store``)."""

    examples: Any  #: TFDS's data source: position -> example
    other_keys: dict[str, Any]  #: what the json had beside images and annotations

    def read(self, index: int, image_id: int) -> Record:
        try:
            example = self.examples[index]
            name = text(json.loads(example["json"]), "file_name")
            image, annotations = decode_image(example["image"], name), _annotations(example["annotations"])
        except Exception as error:  # array_record and TFDS raise errors of many kinds for a damaged record
            raise ValueError(f"TFDS record {index} (image id {image_id}): expected a whole one, got {error}") from error
        return Record(index, image_id, name, image, annotations)

    def missing(self, indices: Iterable[int]) -> list[str]:
        return []  # the images are in the records

    def ground_truth(self) -> dict[str, Any]:
        images, annotations = [], []
        for example in map(self.examples.__getitem__, range(len(self.examples))):
            images.append(json.loads(example["json"]))
            annotations += [json.loads(entry) for entry in example["annotations"]["json"]]
        return {**self.other_keys, "images": images, "annotations": annotations}


def _version_folder(directory: Path) -> Path:
    if (directory / "dataset_info.json").is_file():
        return directory
    versions = sorted((directory / _BUILDER).glob("*/dataset_info.json"))
    if not versions:
        raise ValueError(f"TFDS {directory}: expected {_BUILDER}/<version>/dataset_info.json in it; {_HOW}")
    return versions[-1].parent  # the newest, where several versions were prepared


def _check_features(folder: Path) -> None:
    """Refuse features that are not TFDS's own: TFDS imports whatever module ``features.json`` names, and runs it."""
    for value in _values(read_json_file(folder / "features.json", "TFDS features"), ("pythonClassName", "type")):
        if not isinstance(value, str) or not value.startswith("tensorflow_datasets.core.features."):
            raise ValueError(f"expected features of TFDS, one is of class {short(value)}")


def _values(tree: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    """Yield what the objects of a json have under any of ``keys``, at any depth."""
    if isinstance(tree, dict):
        yield from (tree[key] for key in keys if key in tree)
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _values(below, keys)


def _annotations(columns: dict[str, Any]) -> tuple[Annotation, ...]:
    return tuple(
        annotation_of(json.loads(entry), int(label))
        for entry, label in zip(columns["json"], columns["label"], strict=True)
    )
