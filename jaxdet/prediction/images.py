"""Which images a caller means: files, folders, patterns and addresses."""

import glob
import urllib.request
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.given import ImageLike, each_image, pixels_of
from jaxdet.data.images import LARGEST_FILE, decode_image, suffixes

_SECONDS = 30  #: without a word from a server, after which an address is given up


def each_of(images: Iterable[ImageLike] | ImageLike) -> Iterator[tuple[str, ImageLike]]:
    """One image or several, each with its path or address, empty where it has none.

    A folder stands for the images in it, in order of their names, and a path with ``*`` in it for those that fit,
    unless there is a file of that very name.

    Raises:
        ValueError: it is no image and nothing with images in it, or a folder or a pattern has no images.
    """
    for image in each_image(images):
        if not isinstance(image, str | PathLike):
            yield str(getattr(image, "name", getattr(image, "filename", ""))), image
        elif is_address(image):
            yield str(image), image
        elif Path(image).is_dir() or (glob.has_magic(str(image)) and not Path(image).exists()):
            yield from ((str(file), file) for file in find_images(image))
        else:
            yield str(image), image


def read(image: ImageLike, *, upright: bool) -> NDArray[np.uint8]:
    """`pixels_of` of an image, which may lie at an address.

    Raises:
        ValueError: it cannot be read, or its server does not give it.
    """
    if not (isinstance(image, str) and is_address(image)):
        return pixels_of(image, upright=upright)
    try:
        with urllib.request.urlopen(image, timeout=_SECONDS) as answer:
            encoded = answer.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # URLError and a time that is over are OSErrors
        raise ValueError(f"image {image}: expected an address that gives an image, got {error}") from error
    if len(encoded) > LARGEST_FILE:
        raise ValueError(f"image {image}: expected at most {LARGEST_FILE:,} bytes, got more")
    return decode_image(encoded, image, upright=upright)


def is_address(path: str | PathLike[str]) -> bool:
    """Whether a text is the address of something on a server, and no path."""
    return isinstance(path, str) and path.startswith(("http://", "https://"))


def find_images(paths: Iterable[str | PathLike[str]] | str | PathLike[str]) -> list[Path]:
    """List image files: named files whatever their suffix, and of folders all images, in order of their names.

    Folders inside folders are not searched.  A path that is not there and has ``*``, ``?`` or ``[`` in it is a pattern.

    Raises:
        ValueError: a path does not exist, or a folder or a pattern has no images.
    """
    found: list[Path] = []
    known = suffixes()
    for path in map(Path, [paths] if isinstance(paths, str | PathLike) else paths):
        inside: Iterable[Path] = ()
        if path.exists():
            inside = path.iterdir() if path.is_dir() else inside
        elif glob.has_magic(str(path)):
            inside = map(Path, glob.iglob(str(path), recursive=True))
        else:
            raise ValueError(f"images: expected files or folders, {path} is not there")
        files = [path] if path.is_file() else sorted(file for file in inside if file.suffix.lower() in known)
        if not files:
            raise ValueError(f"images: expected images ({', '.join(sorted(known))}), {path} has none")
        found += [file for file in files if file not in found]
    return found
