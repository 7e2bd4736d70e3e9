"""COCO instances *with masks* as a TFDS data set: array_record files, and no tensorflow.

    python -m jaxdet.data.sources.tfds_builder --data_dir DATA --manual_dir COCO     # from an extracted folder
    python -m jaxdet.data.sources.tfds_builder --data_dir DATA --download           # COCO 2017 from its site, 20 GB

The folder holds, for each split, ``annotations/instances_<split>2017.json`` and the images in ``<split>2017/``, as
COCO's zip files have it; or ``instances_<split>.json`` and ``images/``, as ``jaxdet.data.scenes`` writes it.  Splits
are train and val; one of them is enough.  Read the result by ``Tfds(directory=DATA, split="train")``.

The stock ``coco`` builder of TFDS has no masks and needs tensorflow.  Here records keep the json's order, and all its
values as text: TFDS needs tensorflow for ragged arrays, such as polygons, and stores floats in 32 bits.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdet.data.sources.coco import CocoFiles, open_coco

_SPLITS = {"train": "train", "val": "validation"}  #: COCO's names of the splits -> TFDS's
_SITE = "http://images.cocodataset.org"
#: Size and SHA-256 of the official files, as TFDS has them: github.com/tensorflow/datasets,
#: tensorflow_datasets/url_checksums/coco.txt at 333639b37af6c6fedf3610a4a2d42f1c6ef6f7d5.
FILES = {
    f"{_SITE}/zips/train2017.zip": (
        19336861798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    f"{_SITE}/zips/val2017.zip": (
        815585330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    f"{_SITE}/annotations/annotations_trainval2017.zip": (
        252907541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
}
_INFO_KEYS = ("categories", "licenses", "info")  #: parts of the json that the ground truth must have again


class JaxdetCoco(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """TFDS's builder of COCO-format instance data; it makes the splits that a COCO folder has."""

    name = "jaxdet_coco"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A COCO folder; see python -m jaxdet.data.sources.tfds_builder --help"

    @property
    def url_infos(self) -> dict[str, Any]:
        """Expected size and checksum of each download."""
        return {
            url: tfds.download.checksums.UrlInfo(size=size, checksum=digest, filename=url.rsplit("/", 1)[1])
            for url, (size, digest) in FILES.items()
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="COCO-format instances with masks, for jaxdet.",
            features=_features(),
            homepage="https://cocodataset.org/",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # record i is image i of the json, as in a plain folder
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = _manual_folder(dl_manager)
        found = find_splits(folder) if folder else _downloaded(dl_manager)
        return {_SPLITS[split]: self._generate_examples(split, *paths) for split, paths in found.items()}

    def _generate_examples(self, split: str, images: Path, annotations: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        source = open_coco(str(images), str(annotations))
        assert isinstance(source.store, CocoFiles)
        raw = source.ground_truth()
        self.info.metadata[_SPLITS[split]] = {
            "image_ids": source.image_ids.tolist(),
            "sizes": source.sizes.tolist(),
            **{name: source.table[name].tolist() for name in ("usable", "left_out", "maskless", "learned")},
            "json": {key: raw[key] for key in _INFO_KEYS if key in raw},
        }
        of_image: dict[int, list[dict[str, Any]]] = {}
        for entry in raw["annotations"]:
            of_image.setdefault(entry["image_id"], []).append(entry)
        for index, image in enumerate(raw["images"]):
            entries = of_image.get(image["id"], [])
            yield index, _example(source.store, index, image, entries)


def _features() -> tfds.features.FeaturesDict:
    """The fields of a record: the json as text, and again as arrays what other readers need most."""
    annotation = {
        "id": np.int64,
        "label": np.int32,  # 0..K-1, by ascending category id
        "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),  # x, y, width, height in pixels
        "is_crowd": np.bool_,
        "json": tfds.features.Text(),  # the annotation's entry, segmentation included
    }
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),  # the file's bytes
            "json": tfds.features.Text(),  # the image's entry
            "annotations": tfds.features.Sequence(annotation),
        }
    )


def _example(files: CocoFiles, index: int, image: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image": str(files.image_path(index)),
        "json": json.dumps(image),
        "annotations": [
            {
                "id": annotation.id,
                "label": annotation.label,
                "bbox": np.array(annotation.bbox, np.float32),
                "is_crowd": annotation.crowd,
                "json": json.dumps(entry),
            }
            for annotation, entry in zip(files.annotations(index), entries, strict=True)
        ],
    }


def find_splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Find the splits of a COCO folder, in any of the layouts that the module's text names.

    Returns:
        Split name -> image folder and json.

    Raises:
        ValueError: there is no split.
    """
    found = {}
    for split in _SPLITS:
        candidates = (
            (folder / f"{split}2017", folder / "annotations" / f"instances_{split}2017.json"),
            (folder / "images", folder / "annotations" / f"instances_{split}2017.json"),
            (folder / "images", folder / f"instances_{split}.json"),
        )
        for images, annotations in candidates:
            if images.is_dir() and annotations.is_file():
                found[split] = images, annotations
                break
    if not found:
        raise ValueError(
            f"manual_dir {folder}: expected annotations/instances_train2017.json with train2017/, or "
            "instances_train.json with images/ (likewise val), got neither"
        )
    return found


def _manual_folder(dl_manager: tfds.download.DownloadManager) -> Path | None:
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS asserts that one was given
        return None


def _downloaded(dl_manager: tfds.download.DownloadManager) -> dict[str, tuple[Path, Path]]:
    extracted = dl_manager.download_and_extract({url.rsplit("/", 1)[1]: url for url in FILES})
    annotations = Path(extracted["annotations_trainval2017.zip"]) / "annotations"
    return {
        split: (
            Path(extracted[f"{split}2017.zip"]) / f"{split}2017",
            annotations / f"instances_{split}2017.json",
        )
        for split in _SPLITS
    }


def prepare(data_dir: str, manual_dir: str | None = None) -> Path:
    """Write the array_record files; those that exist are kept.

    Args:
        data_dir: the folder to write to.
        manual_dir: an extracted COCO folder; None downloads COCO 2017.

    Returns:
        The folder of the data set, which ``Tfds.directory`` may name instead of ``data_dir``.
    """
    if manual_dir is not None:
        find_splits(Path(manual_dir))  # a wrong folder is an error now, and not after TFDS has set up its own
    builder = JaxdetCoco(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=config, file_format="array_record")
    return Path(builder.data_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxdet.data.sources.tfds_builder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="where the data set is written")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--manual_dir", help="extracted COCO folder")
    origin.add_argument("--download", action="store_true", help="fetch COCO 2017 from its site")
    options = parser.parse_args(arguments)
    print(f"prepared {prepare(options.data_dir, options.manual_dir)}")


if __name__ == "__main__":
    main()
