"""From settings to an open data source, and what tells two sources apart."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.records import Source
from jaxdet.data.scenes.write import cached_scenes
from jaxdet.data.settings import CocoFolder, OwnSource, Scenes, SourceSettings
from jaxdet.data.sources.coco import open_coco
from jaxdet.data.sources.tfds import open_tfds


def open_source(settings: SourceSettings | None) -> Source:
    """Open a data source; generated scenes are written first where they do not exist yet.

    Raises:
        ValueError: there are no settings, or what they name cannot be read or has no images.
    """
    if settings is None:
        raise ValueError(
            "data: expected a source (CocoFolder, Tfds, Scenes or your own), got None; set data.train or data.val"
        )
    source = _open(settings)
    if not len(source):
        raise ValueError(f"data: expected images, got none in {settings}")
    return source


def _open(settings: SourceSettings) -> Source:
    if isinstance(settings, CocoFolder):
        return open_coco(settings.images, settings.annotations, settings.stuff)
    if isinstance(settings, Scenes):
        folder = cached_scenes(settings)
        maps = str(folder / "semantic") if settings.semantic else None
        return open_coco(str(folder / "images"), str(folder / f"instances_{settings.split}.json"), maps)
    if isinstance(settings, OwnSource):
        return settings.open_source()
    return open_tfds(settings.directory, settings.split)


def fingerprint(source: Source) -> dict[str, Any]:
    """Describe a source as JSON data, so that processes can compare theirs without reading images.

    Sources with equal fingerprints give batches of the same shapes with the same images in the same places.  Pixels,
    and what annotations say, do not enter.

    Returns:
        Categories, and number and CRC-32 of images, sizes and usable annotations.
    """
    return {
        "images": len(source),
        "image ids": _checksum(source.image_ids),
        "image sizes": _checksum(source.sizes),
        "usable annotations": int(source.usable.sum()),
        "usable annotations by image": _checksum(source.usable),
        "categories": [f"{category.id} {category.name}" for category in source.categories],
    }


def _checksum(array: NDArray[Any]) -> str:
    # One integer type for all sources: equal numbers must give equal checksums.
    return f"{zlib.crc32(array.astype(np.int64).tobytes()):08x}"
