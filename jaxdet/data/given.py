"""An image as a caller hands it over: a path, the bytes of a file, an open file, a PIL image or an array."""

from collections.abc import Iterable, Mapping, Set
from os import PathLike
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.images import decode_image, load_image, rgb_of


class _HasRead(Protocol):
    def read(self) -> bytes: ...


class _HasArray(Protocol):
    def __array__(self) -> NDArray[Any]: ...


ImageLike: TypeAlias = str | PathLike[str] | bytes | bytearray | memoryview | _HasRead | Image.Image | _HasArray
"""A path, the bytes of an image file, a file that is open for reading bytes, a PIL image, or an array: NumPy's, or what
NumPy makes one of, such as those of jax and torch."""

_EXPECTED = "a path, the bytes of an image file, an open file, a PIL image or an [H, W, 3] uint8 RGB array"


def each_image(images: Iterable[ImageLike] | ImageLike) -> Iterable[ImageLike]:
    """Several images as they are, and one image as the only one of a list.

    Raises:
        ValueError: it is neither an image nor something ordered with images in it.
    """
    if _is_one(images):
        return [images]  # type: ignore[list-item]  # `_is_one` tells
    if isinstance(images, Iterable) and not isinstance(images, Mapping | Set):
        several: Iterable[ImageLike] = images  # type: ignore[assignment]
        return several
    raise ValueError(f"images: expected {_EXPECTED}, or a list of them, got {_kind(images)}")


def pixels_of(image: ImageLike, *, upright: bool) -> NDArray[np.uint8]:
    """Read an image as it was handed over.

    Args:
        image: what it is; a number is none, although Python would open the file descriptor of that number.
        upright: turn encoded images as their EXIF orientation says.  PIL images and arrays are pixels that the caller
            has seen already, and stay as they are.

    Returns:
        ``[H, W, 3]`` uint8 RGB, or an array as it was given, whose shape and type the caller has to check.

    Raises:
        ValueError: it is of another kind, or cannot be read (`images.decode_image`).
    """
    if isinstance(image, str | PathLike):
        return load_image(image, upright=upright)
    if isinstance(image, bytes | bytearray | memoryview):
        encoded = bytes(image)
        return decode_image(encoded, f"of {len(encoded)} bytes", upright=upright)
    if isinstance(image, Image.Image):
        return rgb_of(image)
    if callable(getattr(image, "read", None)):
        return _from_file(image, upright)
    if hasattr(image, "__array__"):
        return _from_array(image)
    raise ValueError(f"image: expected {_EXPECTED}, got {_kind(image)}")


def _is_one(images: object) -> bool:
    return (
        isinstance(images, str | PathLike | bytes | bytearray | memoryview | Image.Image)
        or callable(getattr(images, "read", None))
        or hasattr(images, "__array__")
    )


def _from_file(file: Any, upright: bool) -> NDArray[np.uint8]:
    name = str(getattr(file, "name", "of an open file"))
    try:
        encoded = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or was opened as text
        raise ValueError(f"image {name}: expected a file that is open for reading bytes, got {error}") from error
    if not isinstance(encoded, bytes | bytearray | memoryview) or not len(encoded):
        got = "none; is it at its end?" if isinstance(encoded, bytes) else f"{_kind(encoded)} from its read()"
        raise ValueError(f"image {name}: expected a file that is open for reading bytes (mode 'rb'), got {got}")
    return decode_image(bytes(encoded), name, upright=upright)


def _from_array(image: Any) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = np.asarray(image)
    except Exception as error:  # a library's own: torch's TypeError for a tensor on a GPU
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"image: expected an array that NumPy can read, got {_kind(image)}: {reason}") from error
    return pixels


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value}" if isinstance(value, int | float) else type(value).__name__
