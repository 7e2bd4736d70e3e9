"""What was found in an image, in the forms in which one goes on with it."""

import dataclasses
import importlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data import Category
from jaxdet.data.convert.outlines import outlines
from jaxdet.data.masks import decode_mask
from jaxdet.evaluation.results import Result
from jaxdet.runtime.files import replacing
from jaxdet.visualize import overlay

READABLE = 480  #: long side, in pixels, up to which a picture is enlarged before names are written on it


@dataclass(frozen=True, eq=False)
class Prediction:
    """The detections of one image, best first; ``found[i]``, ``found[:5]`` and ``found[found.scores > 0.8]`` are some.

    Everything counts pixels of the image as it was shown to the model, after turning by EXIF.  N detections, K classes.
    """

    results: list[Result] = field(repr=False)  #: as COCO has them; `to_coco` gives them an image id
    categories: tuple[Category, ...] = field(repr=False)  #: what the labels 0..K-1 stand for
    image: NDArray[np.uint8] = field(repr=False)  #: ``[H, W, 3]`` RGB
    source: str = ""  #: path or address of the image, where it has one

    def __repr__(self) -> str:
        height, width = self.hw
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return f"<Prediction: {counts or 'nothing'} in {self.source or 'an image'} of {width}x{height} pixels>"

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, which: Any) -> "Prediction":
        """One, a slice, or those of a list of numbers or an array of bools, as NumPy takes rows."""
        places = np.atleast_1d(np.arange(len(self))[which])  # its IndexError also ends a loop over all
        return dataclasses.replace(self, results=[self.results[place] for place in places])

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def boxes(self) -> NDArray[np.float32]:
        """``[N, 4]``: x1, y1, x2, y2, the right and lower side being where the box ends."""
        boxes = np.array([result["bbox"] for result in self.results], np.float32).reshape(-1, 4)
        return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """``[N]``, from 0 to 1."""
        return np.array([result["score"] for result in self.results], np.float32)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """``[N]``, classes counted from 0 in the order of ``categories``."""
        place = {category.id: label for label, category in enumerate(self.categories)}
        return np.array([place[result["category_id"]] for result in self.results], np.int32)

    @property
    def names(self) -> list[str]:
        """The name of each one's class."""
        return [self.categories[label].name for label in self.labels]

    @property
    def rle(self) -> list[dict[str, Any]] | None:
        """Masks as COCO's compressed run lengths; None of a model without masks."""
        if any("segmentation" not in result for result in self.results):
            return None
        return [result["segmentation"] for result in self.results]

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """Masks ``[N, H, W]``; None of a model without masks."""
        if self.rle is None:
            return None
        return np.array([decode_mask(mask, self.hw) for mask in self.rle], bool).reshape(-1, *self.hw)

    @property
    def polygons(self) -> list[list[NDArray[np.float32]]] | None:
        """The outlines of each mask along the edges of its pixels, ``[P, 2]`` x, y of each of its parts.

        A mask of columns 2 to 4 reaches from x = 2 to x = 5.  Holes are filled.  None of a model without masks.
        """
        if self.masks is None:
            return None
        return [[ring.astype(np.float32) for ring in outlines(mask.astype(np.uint8))[0]] for mask in self.masks]

    def plot(self, path: str | PathLike[str] | None = None, *, zoom: int | None = None) -> NDArray[np.uint8]:
        """Draw masks, boxes, names and scores over the image.

        Args:
            path: where to write the picture, by its suffix; None: nowhere.
            zoom: whole factor by which it is enlarged before drawing; None: so that names can be read.

        Returns:
            ``[zoom H, zoom W, 3]`` uint8 RGB.

        Raises:
            ValueError: the path does not end as that of a picture.
        """
        if zoom is None:
            zoom = max(1, READABLE // max(self.hw)) if len(self) else 1
        picture = overlay(self.image, self.results, self.categories, zoom=zoom)
        if path is not None:
            if Path(path).suffix.lower() not in Image.registered_extensions():
                raise ValueError(f"plot: expected a file that ends as pictures do, as in {path}.png, got {path}")
            with replacing(path) as place:
                Image.fromarray(picture).save(place)
        return picture

    def to_coco(self, image_id: int = 0) -> list[Result]:
        """Results as COCO's json has them."""
        return [result | {"image_id": image_id} for result in self.results]

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``.  ImportError without that package."""
        supervision = _import("supervision")
        names = {"class_name": np.array(self.names, dtype=str)}
        return supervision.Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels.astype(int), data=names
        )

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each detection.  ImportError without that package."""
        pandas = _import("pandas")
        columns: dict[str, Any] = {"source": self.source, "name": self.names, "label": self.labels}
        columns |= {"score": self.scores} | dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        if self.masks is not None:
            columns["area"] = self.masks.sum((1, 2))
        return pandas.DataFrame(columns)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"this needs {package}, which is no dependency of jaxdet: pip install {package}") from error
