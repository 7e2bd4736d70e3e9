"""A source of one's own in a few lines: annotations as COCO's json has them, and a function that reads an image."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.records import Record
from jaxdet.data.sources.coco import CocoFiles, pack, read_categories
from jaxdet.data.sources.stored import SharedArrays, StoredSource, unpack_text

ReadImage: TypeAlias = Callable[[str], NDArray[np.uint8]]
"""``file_name`` -> ``[H, W, 3]`` uint8 RGB.  Worker processes get it by pickling: a function of a module, or a method
of a frozen dataclass."""

_WHERE = "the annotations of a source of your own"
_KEYS = ("images", "annotations", "categories")


def listed_source(content: Mapping[str, Any], read: ReadImage) -> StoredSource:
    """Make a source for images that lie in no COCO folder: in another format, in an archive, in a database.

    Args:
        content: ``images``, ``annotations`` and ``categories`` as COCO's json has them.  An image has ``id``,
            ``height``, ``width`` and ``file_name``, which is any text by which ``read`` knows it.
        read: reads an image by its ``file_name``.

    Raises:
        ValueError: the annotations are not as COCO's json, or an image lacks its size.
    """
    missing = [key for key in _KEYS if not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{_WHERE}: expected lists for {_KEYS}, got none for {missing}")
    for image in content["images"]:
        if not isinstance(image, dict) or image.get("height") is None or image.get("width") is None:
            raise ValueError(f"{_WHERE}: expected height and width of every image, got {image!r:.200}")
    try:
        categories = read_categories(content["categories"])
        packed = pack(dict(content), categories, folder="")
        whole = np.frombuffer(json.dumps({key: content[key] for key in _KEYS}).encode(), np.uint8)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{_WHERE}: {error}") from error
    table = SharedArrays({**packed, "content": whole})
    return StoredSource(categories, table, _Listed(CocoFiles("", _WHERE, None, table), read))


@dataclass(frozen=True, eq=False)
class _Listed:
    """Images that a function reads (a `Store`)."""

    files: CocoFiles  #: of which the annotations are used
    read_image: ReadImage

    def read(self, index: int, image_id: int) -> Record:
        table = self.files.table
        name = unpack_text(table["names"], table["name_offsets"], index).decode()
        image = self.read_image(name)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"image {name}: expected [H, W, 3] uint8 RGB from the source's function, got {got}")
        return Record(index, image_id, name, image, self.files.annotations(index))

    def ground_truth(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.files.table["content"].tobytes())
        return content

    def missing(self, indices: Iterable[int]) -> list[str]:
        return []  # only the function knows where its images lie
