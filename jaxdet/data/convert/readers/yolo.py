"""YOLO: a text file for each image, whose lines are a class number and a polygon, or a box, in shares of the image.

    images/train/a.jpg  labels/train/a.txt  data.yaml or classes.txt (names)

Layout and meaning are those of Ultralytics' documentation ("Instance Segmentation Datasets Overview").
"""

import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml

from jaxdet.data.convert.folder import Folder
from jaxdet.data.convert.found import SPLITS, Contents, Found, Picture, Unusable, one_word, split_of
from jaxdet.data.convert.shapes import box, polygon
from jaxdet.messages import short

_LARGEST_SHARE = 2.0  #: a number beyond is in pixels; up to it, an object reaches outside of the image


def signs(folder: Folder) -> tuple[bool, str]:
    """Whether the folder has this layout, and by what one sees it."""
    if _yaml(folder) is not None:
        return True, f"{_yaml(folder)} has names of classes"
    if _text_names(folder) and any(_image_names(folder)):
        return True, f"{_text_names(folder)} beside text files named as the images"
    return False, "no data.yaml with names, and no classes.txt"


def read(folder: Folder) -> Contents:
    """Read the layout."""
    settings = yaml.safe_load(folder.text(name)) if (name := _yaml(folder)) else None
    names = _names(settings["names"]) if settings else folder.text(_text_names(folder) or "").splitlines()
    return [one_word(name) for name in names if name != ""], _pictures(folder, names, _lists(folder, settings or {}))


def _yaml(folder: Folder) -> str | None:
    """The first settings file with names of classes."""
    for name in folder.files:
        if name.lower().endswith((".yaml", ".yml")) and _settings(folder, name):
            return name
    return None


def _settings(folder: Folder, name: str) -> bool:
    try:
        # Loads plain values alone; what an alias repeats is shared, so that it takes no memory.
        settings = yaml.safe_load(folder.text(name))
    except (yaml.YAMLError, Unusable, RecursionError, ValueError):
        return False
    return isinstance(settings, dict) and isinstance(settings.get("names"), list | dict)


def _text_names(folder: Folder) -> str | None:
    return next((name for name in folder.files if PurePosixPath(name).name in ("classes.txt", "obj.names")), None)


def _names(names: Any) -> list[Any]:
    """The names in the order of their numbers.

    Raises:
        ValueError: they are numbered otherwise than 0, 1, ..., or are no texts, as ``no`` is in YAML.
    """
    if isinstance(names, dict):
        keys = [key for key in names if type(key) is int]
        if sorted(keys) != list(range(len(names))):
            raise ValueError(f"data.yaml, names: expected the numbers 0 to {len(names) - 1}, got {short(list(names))}")
        names = [names[key] for key in sorted(keys)]
    try:
        return [one_word(name) for name in names]
    except Unusable as error:
        raise ValueError(
            f"data.yaml, names: expected texts, got {short(names, 200)}; write names such as no, on or null in quotes"
        ) from error


def _lists(folder: Folder, settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Beginnings of image paths, and the split that the settings give to them."""
    at = posixpath.dirname(_yaml(folder) or "")
    home = settings.get("path") if isinstance(settings.get("path"), str) else ""
    found = []
    for split in SPLITS:
        given = settings.get(split)
        for entry in given if isinstance(given, list) else [given]:
            if not isinstance(entry, str):
                continue
            # `path` is often of another machine, and Roboflow writes ../train/images for what lies beside the file.
            plain = posixpath.normpath(entry.replace("\\", "/").lstrip("./"))
            for start in (posixpath.join(at, home or "", plain), posixpath.join(at, plain), plain):
                start = posixpath.normpath(start)
                if start.endswith(".txt") and folder.has(start) and start in folder.files:
                    lines = folder.text(start).splitlines()
                    found += [(line.strip().replace("\\", "/").lstrip("./"), split) for line in lines if line.strip()]
                    break
                if any(name.startswith(f"{start}/") for name in folder.images):
                    found.append((f"{start}/", split))
                    break
    return _without_repeats(folder, found)


def _without_repeats(folder: Folder, lists: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is named for two splits counts for the first.

    Ultralytics' own small sets name the same images for training and for validation, so that it is no error; but
    scores on images that were trained on say nothing, and so the account says what became of it.
    """
    first: dict[str, str] = {}
    for start, split in lists:
        if first.setdefault(start, split) != split:
            folder.tally.note(
                f"named for {first[start]} and {split}: for {first[start]} alone; --val-share .2 holds images out",
                start,
            )
    return list(first.items())


def _label_of(image: str) -> str:
    """The label file of an image: the last folder ``images`` of its path is ``labels`` there."""
    parts = PurePosixPath(image).with_suffix(".txt").parts
    places = [place for place, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if not places:
        return "/".join(parts)
    return "/".join((*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]))


def _image_names(folder: Folder) -> Iterator[str]:
    """Images with a label file, and those in a folder ``images``."""
    for name in folder.images:
        if "images" in PurePosixPath(name.lower()).parts[:-1] or folder.has(_label_of(name)):
            yield name


def _pictures(folder: Folder, names: list[str], lists: list[tuple[str, str]]) -> Iterator[Picture]:
    taken = set()
    wholes = {start: split for start, split in lists if not start.endswith("/")}
    starts = [(start, split) for start, split in lists if start.endswith("/")]
    for image in _image_names(folder):
        label = _label_of(image)
        taken.add(label)
        with folder.tally.skipping(image):
            hw = folder.size(image)
            lines = []
            if folder.has(label):
                lines = folder.text(label).splitlines()
            else:
                folder.tally.note("image without a label file: kept, without objects", image)
            objects = []
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with folder.tally.skipping(f"{label}:{number}"):
                        objects.append(_object(line.split(), names, hw, folder, f"{label}:{number}"))
            split = wholes.get(image) or next((its for start, its in starts if image.startswith(start)), None)
            yield Picture(image, hw, tuple(objects), split or split_of(image))
    for name in folder.files:
        parts = PurePosixPath(name).parts
        if name.endswith(".txt") and "labels" in parts[:-1] and name not in taken:
            folder.tally.skip("label file without an image", name)


def _object(words: list[str], names: list[str], hw: tuple[int, int], folder: Folder, where: str) -> Found:
    try:
        numbers = np.array(words, np.float64)
    except ValueError as error:
        raise Unusable("line that is not all numbers") from error
    if not np.isfinite(numbers).all() or numbers[0] != int(numbers[0]):
        raise Unusable("line whose numbers are not finite, or whose class is no whole number")
    label = int(numbers[0])
    if not 0 <= label < len(names):
        raise Unusable("class number without a name")
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise Unusable("line of a length that neither a polygon of 3 points nor a box has")
    if np.abs(numbers[1:]).max() > _LARGEST_SHARE:
        raise Unusable("coordinates that are no shares of the image's size")
    if len(numbers) == 5:
        x, y, width, height = numbers[1:] * [hw[1], hw[0], hw[1], hw[0]]
        if folder.boxes_as_masks:
            folder.tally.note("box: its rectangle counts as the mask", where)
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found = box(names[label], corners, hw, folder.boxes_as_masks)
    else:
        found = polygon(names[label], [numbers[1:].reshape(-1, 2) * [hw[1], hw[0]]], hw)
    folder.tally.took("boxes" if len(numbers) == 5 else "polygons")
    return found
