"""Reading what ``tfds_builder`` wrote, at random and without tensorflow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from jaxdet.data.coco import annotation_of, read_categories
from jaxdet.data.images import decode_image
from jaxdet.data.records import Annotation, Record
from jaxdet.data.shared_arrays import SharedArrays

_BUILDER = "jaxdet_coco"  # named here as well, so that reading does not define the builder
_HOW = "`python -m jaxdet.data.tfds_builder --help` tells how to make one"


class TfdsSource:
    """Records of a prepared data set (see ``records.Source``), in the order of the json that it was made from.

    Args:
        directory: the builder's ``data_dir``, or the version folder in it.
        split: ``train`` or ``validation``.

    Raises:
        ValueError: no such data set, one of another kind, or no such split.
    """

    def __init__(self, directory: str, split: str) -> None:
        folder = _version_folder(Path(directory))
        builder = tfds.builder_from_directory(str(folder))
        splits = (builder.info.metadata or {}).keys()
        if split not in splits:
            raise ValueError(f"TFDS {folder}: expected one of the splits {sorted(splits)}, got {split!r}; {_HOW}")
        about = builder.info.metadata[split]
        self.folder = folder
        self._other_keys: dict[str, Any] = about["json"]
        self.categories = read_categories(about["json"]["categories"])
        self._records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        self._table = SharedArrays(
            {
                "image_ids": np.array(about["image_ids"], np.int64),
                "sizes": np.array(about["sizes"], np.int32).reshape(-1, 2),
                "usable": np.array(about["usable"], np.int32),
            }
        )

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
        example = self._records[index]
        name = str(json.loads(example["json"])["file_name"])
        image = decode_image(example["image"], name)
        expected = tuple(int(side) for side in self.sizes[index])
        if image.shape[:2] != expected:
            raise ValueError(f"image {name}: expected height, width {expected} as annotated, got {image.shape[:2]}")
        return Record(index, int(self.image_ids[index]), name, image, _annotations(example["annotations"]))

    def ground_truth(self) -> dict[str, Any]:
        images, annotations = [], []
        for index in range(len(self)):
            example = self._records[index]
            images.append(json.loads(example["json"]))
            annotations += [json.loads(text) for text in example["annotations"]["json"]]
        return {**self._other_keys, "images": images, "annotations": annotations}


def _version_folder(directory: Path) -> Path:
    if (directory / "dataset_info.json").is_file():
        return directory
    versions = sorted((directory / _BUILDER).glob("*/dataset_info.json"))
    if not versions:
        raise ValueError(f"TFDS {directory}: expected {_BUILDER}/<version>/dataset_info.json in it; {_HOW}")
    return versions[-1].parent


def _annotations(columns: dict[str, Any]) -> tuple[Annotation, ...]:
    return tuple(
        annotation_of(json.loads(text), int(label))
        for text, label in zip(columns["json"], columns["label"], strict=True)
    )
