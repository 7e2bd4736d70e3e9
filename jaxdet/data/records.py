"""What a data source delivers: records in COCO's terms, before any transform.

Boxes are COCO's here, (x, y, width, height) in pixels of the stored image; the pipeline's views convert them.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: COCO's forms of a mask: polygons, a run-length dict (``counts`` is a list or a string), or none at all.
Segmentation: TypeAlias = list[list[float]] | dict[str, Any] | None


@dataclass(frozen=True)
class Category:
    """A class of the data set.  Its label (0..K-1) is its position among all categories in order of ``id``."""

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
    ignore: bool  #: True: the annotator asks that the annotation is not used
    segmentation: Segmentation


@dataclass(frozen=True)
class Record:
    """One image with its annotations."""

    index: int  #: position in the source
    image_id: int
    name: str  #: for messages
    image: NDArray[np.uint8]  #: ``[H, W, 3]`` RGB, the pixel grid as stored
    annotations: tuple[Annotation, ...]
    semantic: NDArray[np.uint8] | None = None  #: ``[H, W]`` class of each pixel, things and stuff; 255: unknown


class Source(Protocol):
    """Random access to records; cheap to pickle, since every worker process gets a copy."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """Categories sorted by id; the position is the label."""
        ...

    @property
    def sizes(self) -> NDArray[np.int32]:
        """``[N, 2]`` height and width of the stored images."""
        ...

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """``[N]`` the images' ids in the data set, which results refer to."""
        ...

    @property
    def usable(self) -> NDArray[np.int32]:
        """``[N]`` number of annotations of each image that training can use (see `usable_boxes`)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def ground_truth(self) -> dict[str, Any]:
        """The whole ground truth as COCO's json has it, crowd included; made anew in each call."""
        ...


def usable_boxes(boxes: NDArray[np.float64], areas: NDArray[np.float64], hw: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell which boxes can be learned from, by the reference's (mmdetection's) rule.

    Args:
        boxes: ``[A, 4]`` x, y, width, height in pixels of the stored image.
        areas: ``[A]`` the annotations' areas.
        hw: ``[A, 2]`` or ``[2]`` sizes of their images.

    Returns:
        ``[A]`` bool: the area is above 0, both sides are at least 1, and the box overlaps with the image.
    """
    x, y, width, height = np.moveaxis(boxes, -1, 0)
    overlap_x = np.minimum(x + width, hw[..., 1]) - np.maximum(x, 0)
    overlap_y = np.minimum(y + height, hw[..., 0]) - np.maximum(y, 0)
    usable: NDArray[np.bool_] = (areas > 0) & (width >= 1) & (height >= 1) & (overlap_x > 0) & (overlap_y > 0)
    return usable
