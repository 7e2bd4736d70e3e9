"""What a data source delivers: records in COCO's terms, before any transform."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Segmentation: TypeAlias = list[list[float]] | dict[str, Any] | None
"""COCO's three forms: polygons, a run-length dict (``counts`` a list or a string), or nothing."""


@dataclass(frozen=True)
class Category:
    """A class as the data set names it.  Labels 0..K-1 are its positions in order of ``id``."""

    id: int
    name: str


@dataclass(frozen=True)
class Annotation:
    """One instance, or one crowd region, in pixels of the stored image."""

    id: int
    label: int  #: 0..K-1
    bbox: tuple[float, float, float, float]  #: x, y, width, height as stored
    area: float
    crowd: bool
    ignore: bool  #: the annotator asks for the annotation not to be used
    segmentation: Segmentation


@dataclass(frozen=True)
class Record:
    """One image with its annotations."""

    index: int  #: position in the source
    image_id: int
    name: str  #: for messages
    image: NDArray[np.uint8]  #: ``[H, W, 3]`` RGB, the pixel grid as stored
    annotations: tuple[Annotation, ...]
    semantic: NDArray[np.uint8] | None = None  #: ``[H, W]`` class of each pixel, things and stuff; 255: not known


class Source(Protocol):
    """Random access to records; cheap to pickle, since every worker process gets a copy."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """Sorted by id; the position is the label."""
        ...

    @property
    def sizes(self) -> NDArray[np.int32]:
        """``[N, 2]`` height and width of the stored images."""
        ...

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """``[N]`` ids of the data set, for results."""
        ...

    @property
    def usable(self) -> NDArray[np.int32]:
        """``[N]`` number of annotations of an image that training can use (see ``usable_boxes``)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def ground_truth(self) -> dict[str, Any]:
        """The whole ground truth as COCO's json has it, crowd included; made afresh at each call."""
        ...


def usable_boxes(boxes: NDArray[np.float64], areas: NDArray[np.float64], hw: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which boxes can be learned from, by the reference's rule.

    Args:
        boxes: ``[A, 4]`` x, y, width, height in pixels of the stored image.
        areas: ``[A]`` the annotations' areas.
        hw: ``[A, 2]`` or ``[2]`` sizes of their images.

    Returns:
        ``[A]``: area above 0, both sides at least 1, and some overlap with the image.
    """
    x, y, width, height = np.moveaxis(boxes, -1, 0)
    overlap_x = np.minimum(x + width, hw[..., 1]) - np.maximum(x, 0)
    overlap_y = np.minimum(y + height, hw[..., 0]) - np.maximum(y, 0)
    usable: NDArray[np.bool_] = (areas > 0) & (width >= 1) & (height >= 1) & (overlap_x > 0) & (overlap_y > 0)
    return usable
