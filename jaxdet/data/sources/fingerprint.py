"""What tells data sets apart without reading their images."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.records import Source


def fingerprint(source: Source) -> dict[str, Any]:
    """A source as JSON data: its categories, and number and CRC-32 of images, sizes and usable annotations.

    Sources of one fingerprint give batches of the same shapes with the same images in the same places.  Pixels, and
    what annotations say, are not looked at.
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
    return f"{zlib.crc32(array.astype(np.int64).tobytes()):08x}"
