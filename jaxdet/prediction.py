"""Prediction: a checkpoint applied to images from files, folders or memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data import Category, load_image, single_batch
from jaxdet.data.given import ImageLike, each_image, pixels_of
from jaxdet.data.images import suffixes
from jaxdet.evaluation import write_results
from jaxdet.evaluation.inference import image_of, predict_batch, results_of
from jaxdet.evaluation.results import Result
from jaxdet.runtime.files import replacing
from jaxdet.runtime.mesh import data_mesh, split_batch
from jaxdet.trained import Checkpoint, Trained, load
from jaxdet.visualize import overlay

RESULTS = "results.json"
_READABLE = 480  #: long side, in pixels, up to which a picture is enlarged before names are written on it


def predict(
    checkpoint: Checkpoint,
    images: Iterable[ImageLike] | ImageLike,
    *,
    score_threshold: float = 0.5,
    upright: bool = True,
    overrides: Sequence[str] = (),
) -> list[list[Result]]:
    """Detect objects in images (``jaxdet.predict``).

    Args:
        checkpoint: a run folder, the folder of one checkpoint, or what ``jaxdet.load`` returned, which saves reading
            the weights again in each call, and all calls but the first taking them to the device.
        images: one or several of: paths of image files, bytes of such files, open files, PIL images, ``[H, W, 3]``
            uint8 RGB arrays of NumPy, jax, torch and the like.
        score_threshold: detections below it are left out.
        upright: turn pictures from files and bytes as their EXIF orientation says, which is how viewers show them;
            False: take the pixels as stored, which is how COCO's annotations count them.  PIL images and arrays are
            pixels in hand and never turned (``PIL.ImageOps.exif_transpose`` does so).
        overrides: settings to change, by dotted keys, such as ``data.short_side=600`` ``data.long_side=1000``; for
            several calls ``jaxdet.load`` takes them once.

    Returns:
        For each image its detections as COCO results, best first, ``bbox`` and ``segmentation`` in pixels of the
        image, after turning; ``image_id`` is the image's position.

    Raises:
        FileNotFoundError: there is no checkpoint, as in ``jaxdet.load``.
        ValueError: an image cannot be read or is of another kind, or as in ``jaxdet.load``.
    """
    chosen = each_image(images)  # what is no image is refused before anything is loaded
    predictor = Predictor(load(checkpoint, overrides=overrides), score_threshold)
    return [predictor(pixels_of(image, upright=upright), i) for i, image in enumerate(chosen)]


class Predictor:
    """A model on one device, which predicts one image after the other.

    Args:
        trained: what `jaxdet.load` returned.
        score_threshold: detections below it are left out.
    """

    def __init__(self, trained: Trained, score_threshold: float) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score threshold: expected 0 to 1, got {score_threshold}")
        self._model, self._data = trained.experiment.model, trained.experiment.data
        # One device: a batch of one image cannot be split.
        self._mesh = data_mesh(jax.local_devices()[:1])
        self._variables = trained.copies.of(trained.variables, self._mesh)
        self._score_threshold = score_threshold
        self.categories = trained.categories or _numbered(self._model.num_classes)
        if len(self.categories) != self._model.num_classes:
            given = f"{len(self.categories)} in the checkpoint, num_classes={self._model.num_classes}"
            raise ValueError(f"categories: expected one for each class of the model, got {given}")

    def __call__(self, image: NDArray[np.uint8], image_id: int) -> list[Result]:
        """Detect objects in ``[H, W, 3]`` uint8 RGB; returns COCO results with ``image_id``, best first."""
        batch = single_batch(image, self._data)
        found = predict_batch(self._model, self._mesh, self._variables, split_batch(batch, self._mesh))
        one = image_of(jax.tree.map(np.asarray, found), 0)
        ids = [category.id for category in self.categories]
        return results_of(image_of(batch, 0), one, image_id, ids, self._score_threshold)


@dataclass(frozen=True)
class Report:
    """What `predict_files` has done."""

    #: all detections; ``image_id`` is the image's position, ``file_name`` its path
    results: list[Result] = field(repr=False)
    pictures: dict[Path, Path]  #: image -> its overlay
    failed: dict[Path, str]  #: image -> what is wrong with it


def predict_files(
    trained: Trained,
    paths: Iterable[str | PathLike[str]] | str | PathLike[str],
    out: str | PathLike[str],
    *,
    score_threshold: float = 0.5,
    upright: bool = True,
) -> Report:
    """Predict image files, and write pictures and results.

    A small image is enlarged so that names can be read; one without detections is written as it is.  An image that
    cannot be read is named in the report, and the others go on.

    Args:
        trained: what `jaxdet.load` returned.
        paths: files, and folders with images, or one of them.
        out: folder for an overlay of each image and ``results.json`` with all detections; it is made if it is missing.
        score_threshold: detections below it are left out.
        upright: turn images as their EXIF orientation says, and draw and count pixels there; see `predict`.

    Raises:
        ValueError: a path does not exist, or a folder has no images.
    """
    files, folder = find_images(paths), Path(out)
    predictor = Predictor(trained, score_threshold)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    failed: dict[Path, str] = {}
    pictures = dict(_with_names(files, folder))
    for image_id, file in enumerate(files):
        try:
            image = load_image(file, upright=upright)
        except ValueError as error:
            failed[file] = str(error)  # a folder of photographs often has a broken one
            del pictures[file]
            continue
        found = predictor(image, image_id)
        zoom = max(1, _READABLE // max(image.shape[:2])) if found else 1
        with replacing(pictures[file]) as path:
            Image.fromarray(overlay(image, found, predictor.categories, zoom=zoom)).save(path)
        results += [result | {"file_name": str(file)} for result in found]
    write_results(folder / RESULTS, results)
    return Report(results, pictures, failed)


def find_images(paths: Iterable[str | PathLike[str]] | str | PathLike[str]) -> list[Path]:
    """List image files: named files whatever their suffix, and of folders all images, in order of their names.

    Folders inside folders are not searched.

    Raises:
        ValueError: a path does not exist, or a folder has no images.
    """
    found: list[Path] = []
    known = suffixes()
    for path in map(Path, [paths] if isinstance(paths, str | PathLike) else paths):
        if not path.exists():
            raise ValueError(f"images: expected files or folders, {path} is not there")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in known) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"images: expected a folder with images ({', '.join(sorted(known))}), {path} has none")
        found += [file for file in files if file not in found]
    return found


def _with_names(files: Sequence[Path], folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each file with the path of its picture; equal names from different folders get numbers."""
    taken = {file.resolve() for file in files}  # no picture may overwrite an image, where `out` is the images' folder
    for file in files:
        name, number = f"{file.stem}.png", 1
        while (folder / name).resolve() in taken:
            number += 1
            name = f"{file.stem}_{number}.png"
        taken.add((folder / name).resolve())
        yield file, folder / name


def _numbered(count: int) -> tuple[Category, ...]:
    """Categories for weights that do not say what their labels stand for."""
    return tuple(Category(i + 1, f"class {i + 1}") for i in range(count))
