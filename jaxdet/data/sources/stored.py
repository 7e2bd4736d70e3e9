"""A data set that lies on the disk, as a source of records: what COCO folders and TFDS have in common.

Whatever is known of all images (sizes, ids, and for COCO the annotations) is packed into memory-mapped arrays when a
source is opened.  The json as Python objects would take three times that memory, and once more in every worker.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.records import Category, Record
from jaxdet.runtime.files import ScratchFolder

CHECK = "`jaxdet data check` lists everything that is wrong with a data set"


class SharedArrays(Mapping[str, NDArray[Any]]):
    """Named arrays in memory-mapped temporary files, which several processes read without a copy for each.

    Only the folder's name is pickled, so a worker process takes no memory beyond the pages that it touches, and these
    the operating system shares.  The files are removed with the object that wrote them.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._scratch: ScratchFolder | None = ScratchFolder()  # kept, because the folder goes with this object
        self._folder = str(self._scratch.path)
        for name, array in arrays.items():
            np.save(Path(self._folder) / f"{name}.npy", array)
        self._arrays = _mapped(self._folder)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getstate__(self) -> str:
        return self._folder  # workers map the same files again

    def __setstate__(self, folder: str) -> None:
        self._scratch = None  # the folder belongs to the process that wrote it, which also removes it
        self._folder = folder
        self._arrays = _mapped(folder)


def _mapped(folder: str) -> dict[str, NDArray[Any]]:
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("*.npy"))}


def pack_texts(texts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join n byte strings into one array ``[total]``, with the offsets ``[n + 1]`` at which each begins."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def unpack_text(joined: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> bytes:
    """Return byte string number ``index`` of those that `pack_texts` joined."""
    return joined[offsets[index] : offsets[index + 1]].tobytes()


class Store(Protocol):
    """The files in which the records of a source lie."""

    def read(self, index: int, image_id: int) -> Record:
        """Read the image at position ``index``, whose id is ``image_id``, with its annotations."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """As ``records.Source.ground_truth``, but images may lack width and height."""
        ...

    def missing(self, indices: Iterable[int]) -> list[str]:
        """Describe which files of the images at some positions, and of their semantic maps, are not there."""
        ...


@dataclass(frozen=True, eq=False)
class StoredSource:
    """A ``records.Source`` over a store."""

    categories: tuple[Category, ...]
    table: SharedArrays
    """Has for all images ``sizes [N, 2]``, ``image_ids [N]`` and ``usable [N]``.  Absent from TFDS data sets of earlier
    builders: ``left_out [N]``, annotations that are no crowd and that training cannot use; ``maskless [N]``, usable
    ones without a mask; ``learned [K]``, usable ones of each label."""
    store: Store

    @property
    def sizes(self) -> NDArray[np.int32]:
        return self.table["sizes"]

    @property
    def image_ids(self) -> NDArray[np.int64]:
        return self.table["image_ids"]

    @property
    def usable(self) -> NDArray[np.int32]:
        return self.table["usable"]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        record = self.store.read(index, int(self.image_ids[index]))
        # Canvases follow from the annotated size before any image is read, and boxes and masks count its pixels.
        expected = tuple(int(side) for side in self.sizes[index])
        for kind, pixels in (("image", record.image), ("semantic map of image", record.semantic)):
            if pixels is not None and pixels.shape[:2] != expected:
                raise ValueError(
                    f"{kind} {record.name}: expected height, width {expected} as annotated, "
                    f"got {pixels.shape[:2]}; {CHECK}"
                )
        return record

    def ground_truth(self) -> dict[str, Any]:
        content = self.store.ground_truth()
        for image, (height, width) in zip(content["images"], self.sizes.tolist(), strict=True):
            image |= {"height": height, "width": width}  # the json may lack them, and pycocotools needs them
        return content
