"""A data set that lies somewhere, as a source of records: what all places of storage have in common."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.records import Category, Record
from jaxdet.data.sources.shared_arrays import SharedArrays

CHECK = "`python -m jaxdet.data.check` lists everything that is wrong with a data set"


class Store(Protocol):
    """Where records lie."""

    def read(self, index: int, image_id: int) -> Record:
        """The image at position ``index`` with its annotations."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """As ``Source.ground_truth``."""
        ...


@dataclass(frozen=True, eq=False)
class StoredSource:
    """Records of a store (see ``records.Source``).

    ``table`` has, for every image, ``sizes [N, 2]``, ``image_ids [N]`` and ``usable [N]``.
    """

    categories: tuple[Category, ...]
    table: SharedArrays
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
        expected = tuple(int(side) for side in self.sizes[index])
        for kind, pixels in (("image", record.image), ("semantic map of image", record.semantic)):
            if pixels is not None and pixels.shape[:2] != expected:
                raise ValueError(
                    f"{kind} {record.name}: expected height, width {expected} as annotated, "
                    f"got {pixels.shape[:2]}; {CHECK}"
                )
        return record

    def ground_truth(self) -> dict[str, Any]:
        truth = self.store.ground_truth()
        for image, (height, width) in zip(truth["images"], self.sizes.tolist(), strict=True):
            image |= {"height": height, "width": width}  # which the json may lack
        return truth
