"""A model that lies on a device and predicts whatever images it is given."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdet.data import image_batch, single_batch
from jaxdet.data.given import ImageLike, each_image
from jaxdet.data.pipeline.transforms import canvas_hw
from jaxdet.evaluation.augmented import TestTimeAugmentation, augmented_results
from jaxdet.evaluation.categories import numbered
from jaxdet.evaluation.inference import image_of, predict_batch, results_of
from jaxdet.evaluation.results import Result
from jaxdet.models.limits import Limits, limits_of
from jaxdet.prediction.found import Prediction
from jaxdet.prediction.images import each_of, read
from jaxdet.prediction.merging import merge_windows
from jaxdet.prediction.tiles import Window, in_image, tiles_of
from jaxdet.runtime.mesh import data_mesh, split_batch
from jaxdet.trained import Checkpoint, load


@dataclass(frozen=True)
class _Asked:
    """What a call asks for."""

    score_threshold: float
    limits: Limits | None  #: of suppression; None: the settings of the model


class Predictor:
    """A model on one device (``jaxdet.Predictor``): weights go there once, and each canvas is compiled once.

    Images of any size are brought to one of two canvases (``data.short_side``, ``data.long_side``; more by
    ``data.canvas_ratios``; docs/DATA.md), so that another size compiles nothing.

    Args:
        checkpoint: as `jaxdet.load` takes it, or what that returned.
        score_threshold: detections below it are left out; a call may set another.
        nms_threshold: IoU above which the better of two boxes of a class suppresses the other; None: that of the
            model.  A call may set another.
        max_detections: detections of an image, the best ones, at most as many as the model has room for; None: those.
            A call may set another.
        upright: turn pictures from files and bytes as their EXIF orientation says; see `predict`.
        batch_size: images that are predicted at once, of those that follow each other and have one canvas; more
            than one pays on an accelerator.
        augment: see each image several times, one image after the other, and merge what is found; None: once.
        overrides: settings to change, by dotted keys, such as ``model.suppression.iou_threshold=0.4``.
        trusted: modules whose classes the checkpoint may name, as for `jaxdet.load`.

    Raises:
        FileNotFoundError, ValueError: as `jaxdet.load`; the checkpoint has other categories than classes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        score_threshold: float = 0.5,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
        upright: bool = True,
        batch_size: int = 1,
        augment: TestTimeAugmentation | None = None,
        overrides: Sequence[str] = (),
        trusted: Sequence[str] = (),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        trained = load(checkpoint, overrides=overrides, trusted=trusted)
        self.score_threshold, self.upright, self.batch_size = check_threshold(score_threshold), upright, batch_size
        self.nms_threshold, self.max_detections, self.augment = nms_threshold, max_detections, augment
        self._trained = trained
        self._model, self._data = trained.experiment.model, trained.experiment.data
        limits_of(self._model, nms_threshold, max_detections)  # wrong ones are refused before anything is predicted
        # One device: a batch of a single image cannot be split.
        self._mesh = data_mesh(jax.local_devices()[:1])
        self._variables = trained.copies.of(trained.variables, self._mesh)
        self._ask = jax.jit(lambda variables, batch: self._model.apply(variables, batch, method="intermediates"))
        self.categories = trained.categories or numbered(self._model.num_classes)
        if len(self.categories) != self._model.num_classes:
            given = f"{len(self.categories)} in the checkpoint, num_classes={self._model.num_classes}"
            raise ValueError(f"categories: expected one for each class of the model, got {given}")

    def __repr__(self) -> str:
        limits = {"nms_threshold": self.nms_threshold, "max_detections": self.max_detections, "augment": self.augment}
        set_ones = "".join(f", {name}={value}" for name, value in limits.items() if value is not None)
        return f"<Predictor: {self._trained.summary}; score_threshold={self.score_threshold:g}{set_ones}>"

    def __call__(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[Prediction]:
        """What is found in one image or several, in their order; a folder stands for its images.

        Thresholds are those of this call, None: the predictor's.  The first call that has one of suppression, or a
        number of detections, compiles a program that takes any, and the others compile nothing.

        Raises:
            ValueError: an image cannot be read or is of another kind, a threshold is not from 0 to 1, or there are to
                be more detections than the model has room for.
        """
        found = self.stream(
            images, score_threshold=score_threshold, nms_threshold=nms_threshold, max_detections=max_detections
        )
        return list(found)

    def stream(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Iterator[Prediction]:
        """As a call, one after the other: for more images than memory holds."""
        asked = self._asked(score_threshold, nms_threshold, max_detections)
        waiting: list[tuple[str, NDArray[np.uint8]]] = []
        for source, image in each_of(images):
            pixels = read(image, upright=self.upright)
            if waiting and self._canvas(pixels) != self._canvas(waiting[0][1]):
                yield from self._predict(waiting, asked)
                waiting = []
            waiting.append((source, pixels))
            if len(waiting) == self.batch_size:
                yield from self._predict(waiting, asked)
                waiting = []
        if waiting:
            yield from self._predict(waiting, asked)

    def tiled(
        self,
        image: ImageLike,
        *,
        tile: int = 640,
        overlap: float = 0.2,
        whole: bool = True,
        agreement: float = 0.5,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """What is found in a large image, tile by tile: objects keep more pixels than in the image as a whole.

        Each tile is predicted as an image of its own; an object that several of them show, or that a border cuts,
        becomes one (`jaxdet.prediction.merging`).

        Args:
            image: as in a call, but one.
            tile: side of a tile, in pixels of the image; ``data.short_side`` says how large the model sees it.
            overlap: share of a side that neighbours have in common; objects smaller than that are whole in one.
            whole: predict the image as a whole too, for objects larger than a tile.
            agreement: from which share on two detections are of one object; see `merging`.
            score_threshold: as in a call, of each tile; so are the next two.
            nms_threshold: as in a call.
            max_detections: as in a call.
            progress: called with the number of tiles that are done, and of all, the whole image being one of them.

        Returns:
            As a call for an image that is no larger than a tile.

        Raises:
            ValueError: as in a call; the image is none or several, or tile or overlap are out of range.
        """
        chosen = list(each_of(image))
        if len(chosen) != 1:
            raise ValueError(f"tiled: expected one image, got {len(chosen)}")
        source, pixels = chosen[0][0], read(chosen[0][1], upright=self.upright)
        asked = self._asked(score_threshold, nms_threshold, max_detections)
        hw = pixels.shape[0], pixels.shape[1]
        windows = tiles_of(hw, tile, overlap) if pixels.ndim == 3 else []
        if len(windows) < 2:
            (found,) = self._predict([(source, pixels)], asked)  # which refuses what is no image
            return found
        whole_image = [Window(0, 0, hw[1], hw[0])] * whole
        parts: list[tuple[Window, list[Result]]] = []
        groups = [windows[at : at + self.batch_size] for at in range(0, len(windows), self.batch_size)]
        for some in [*groups, *([whole_image] if whole else [])]:
            for window, found in zip(some, self._predict([("", each.of(pixels)) for each in some], asked), strict=True):
                parts.append((window, [in_image(result, window, hw) for result in found.results]))
            if progress is not None:
                progress(len(parts), len(windows) + whole)
        return Prediction(merge_windows(parts, hw, agreement), self.categories, pixels, source)

    def intermediates(self, image: ImageLike) -> dict[str, Any]:
        """What the model computes of an image on the way, by name, for a batch of one, on the device.

        Pyramid, proposals, logits and what parts add: the names are those of ``intermediates`` of the model's class.
        """
        batch = single_batch(read(image, upright=self.upright), self._data)
        named: dict[str, Any] = self._ask(self._variables, batch)
        return named

    def _canvas(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        return canvas_hw((image.shape[0], image.shape[1]), self._data) if image.ndim == 3 else (0, 0)

    def _asked(self, score_threshold: float | None, nms_threshold: float | None, max_detections: int | None) -> _Asked:
        """What a call asks for, where it says nothing what the predictor does."""
        least = self.score_threshold if score_threshold is None else check_threshold(score_threshold)
        overlap = self.nms_threshold if nms_threshold is None else nms_threshold
        number = self.max_detections if max_detections is None else max_detections
        return _Asked(least, limits_of(self._model, overlap, number))

    def _predict(self, images: Sequence[tuple[str, NDArray[np.uint8]]], asked: _Asked) -> Iterator[Prediction]:
        """Of images that have one canvas, each with where it comes from."""
        ids = [category.id for category in self.categories]
        if self.augment is not None:
            for source, image in images:
                results = augmented_results(
                    self._model,
                    self._mesh,
                    self._variables,
                    image,
                    self._data,
                    self.augment,
                    ids,
                    score_threshold=asked.score_threshold,
                    limits=asked.limits,
                )
                yield Prediction(results, self.categories, image, source)
            return
        batch = image_batch([image for _, image in images], self._data, self.batch_size)
        found = predict_batch(self._model, self._mesh, self._variables, split_batch(batch, self._mesh), asked.limits)
        host = jax.tree.map(np.asarray, found)
        for row, (source, image) in enumerate(images):
            results = results_of(image_of(batch, row), image_of(host, row), 0, ids, asked.score_threshold)
            yield Prediction(results, self.categories, image, source)


def predict(
    checkpoint: Checkpoint,
    images: Iterable[ImageLike] | ImageLike,
    *,
    score_threshold: float = 0.5,
    nms_threshold: float | None = None,
    max_detections: int | None = None,
    upright: bool = True,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
) -> list[Prediction]:
    """Detect objects in images (``jaxdet.predict``); `Predictor` does the same for many calls.

    Args:
        checkpoint: a run folder, the folder of one checkpoint, or what ``jaxdet.load`` returned, which saves reading
            the weights again in each call, and all calls but the first taking them to the device.
        images: one or several of: paths and addresses (``https://...``) of image files, folders with such files and
            patterns (``photos/*.jpg``), bytes of a file, open files, PIL images, ``[H, W, 3]`` uint8 RGB arrays of
            NumPy, jax, torch and the like.
        score_threshold: detections below it are left out.
        nms_threshold: of suppression, as for `Predictor`; None: that of the model.
        max_detections: of an image, as for `Predictor`; None: that of the model.
        upright: turn pictures from files and bytes as their EXIF orientation says, which is how viewers show them;
            False: take the pixels as stored, which is how COCO's annotations count them.  PIL images and arrays are
            pixels in hand and never turned (``PIL.ImageOps.exif_transpose`` does so).
        overrides: settings to change, by dotted keys, such as ``data.short_side=600`` ``data.long_side=1000``; for
            several calls ``jaxdet.load`` takes them once.
        trusted: modules whose classes the checkpoint may name, as for ``jaxdet.load``.

    Returns:
        What is found in each image, with boxes, masks, scores and names, a picture, and COCO results (`Prediction`).

    Raises:
        FileNotFoundError: there is no checkpoint, as in ``jaxdet.load``.
        ValueError: an image cannot be read or is of another kind, or as in ``jaxdet.load``.
    """
    chosen = each_image(images)  # what is no image is refused before anything is loaded
    predictor = Predictor(
        checkpoint,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
        upright=upright,
        overrides=overrides,
        trusted=trusted,
    )
    return predictor(chosen)


def check_threshold(value: float) -> float:
    """A least score as a float; ValueError where it is none from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 <= value <= 1:
        raise ValueError(f"score threshold: expected 0 to 1, got {value!r}")
    return float(value)
