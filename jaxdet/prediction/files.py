"""Prediction of files: pictures and results beside each other in a folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from jaxdet.evaluation import write_results
from jaxdet.evaluation.results import Result
from jaxdet.prediction.images import find_images
from jaxdet.prediction.predictor import Predictor, check_threshold
from jaxdet.prediction.tiles import tiles_of
from jaxdet.trained import Trained

RESULTS = "results.json"


@dataclass(frozen=True)
class Report:
    """What `predict_files` has done."""

    #: all detections; ``image_id`` is the image's position, ``file_name`` its path
    results: list[Result] = field(repr=False)
    pictures: dict[Path, Path]  #: image -> its overlay
    failed: dict[Path, str]  #: image -> what is wrong with it


def predict_files(
    model: Predictor | Trained,
    paths: Iterable[str | PathLike[str]] | str | PathLike[str],
    out: str | PathLike[str],
    *,
    score_threshold: float | None = None,
    upright: bool = True,
    tile: int | None = None,
    overlap: float = 0.2,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Predict image files, and write pictures and results.

    A small image is enlarged so that names can be read; one without detections is written as it is.  An image that
    cannot be read is named in the report, and the others go on.

    Args:
        model: a predictor, whose settings count, or what `jaxdet.load` returned.
        paths: files, and folders with images, or one of them.
        out: folder for an overlay of each image and ``results.json`` with all detections; it is made if it is missing.
        score_threshold: detections below it are left out; None: the predictor's, or 0.5.
        upright: without a predictor: turn images as their EXIF orientation says, and draw and count pixels there; see
            `predict`.
        tile: predict images by tiles with this side in pixels (`Predictor.tiled`); None: as a whole.
        overlap: share of a tile's side that neighbours have in common.
        progress: called with the number of tiles that are done, and of all, of each image.

    Raises:
        ValueError: a path does not exist, or a folder has no images.
    """
    files, folder = find_images(paths), Path(out)
    predictor = model if isinstance(model, Predictor) else Predictor(model, upright=upright)
    # Before a folder is made.
    if score_threshold is not None:
        check_threshold(score_threshold)
    if tile is not None:
        tiles_of((1, 1), tile, overlap)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    failed: dict[Path, str] = {}
    pictures = dict(_with_names(files, folder))
    for image_id, file in enumerate(files):
        try:
            if tile is None:
                (found,) = predictor(file, score_threshold=score_threshold)
            else:
                limits = {"score_threshold": score_threshold, "progress": progress}
                found = predictor.tiled(file, tile=tile, overlap=overlap, **limits)  # type: ignore[arg-type]
        except ValueError as error:
            failed[file] = str(error)  # a folder of photographs often has a broken one
            del pictures[file]
            continue
        found.plot(pictures[file])
        results += [result | {"file_name": str(file)} for result in found.to_coco(image_id)]
    write_results(folder / RESULTS, results)
    return Report(results, pictures, failed)


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
