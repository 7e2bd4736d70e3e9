"""Decoding image files to RGB, 8 bits.

The rotation that a camera writes into EXIF is *not* applied: COCO's boxes and masks count the pixels as stored,
and pycocotools never looks at the image.  A data set that was annotated on rotated views has to be saved that way.
"""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jaxdet.data.validation.limits import PIXELS, check_sides
from jaxdet.runtime.files import open_file, read_file

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats of photographs.  Pillow's other readers are rarely looked at, and that of EPS runs another program."""

_LARGEST_FILE = 8 * PIXELS + (1 << 20)  # four channels of 16 bits, not compressed
_ORIENTATION = 0x112  # EXIF tag; 1 means upright

if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own limit comes with warnings below it; ours is checked here
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, PIXELS)


def load_image(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read an image file as ``[H, W, 3]`` uint8 RGB (see ``decode_image``).

    Raises:
        ValueError: no such file, not an image, or one larger than ``limits`` allow.
    """
    return decode_image(read_file(path, "image", _LARGEST_FILE), str(path))


def read_header(path: str | PathLike[str]) -> tuple[tuple[int, int], int]:
    """Height and width of an image file, and its EXIF orientation (1: upright); its pixels are not read.

    Raises:
        ValueError: as ``load_image``, as far as the header tells.
    """
    with open_file(path, "image", _LARGEST_FILE) as file, _opened(file, str(path)) as image:
        return (image.height, image.width), _orientation(image)


def _orientation(image: Image.Image) -> int:
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if isinstance(orientation, int) else 0


def load_map(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a semantic map, an image of one channel of 8 bits, as ``[H, W]`` uint8: the classes of the pixels.

    Raises:
        ValueError: no such file, or not such an image.
    """
    with open_file(path, "image", _LARGEST_FILE) as file, _opened(file, str(path)) as image:
        if image.mode not in ("L", "P"):  # of a palette the positions count, not the colours
            raise ValueError(f"one channel of 8 bits is needed, the mode is {image.mode!r}")
        return np.array(image, np.uint8)


def decode_image(encoded: bytes, name: str) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF to ``[H, W, 3]`` uint8 RGB.

    Grey is repeated, CMYK and palettes are converted, alpha is dropped, 16 bits lose the lower 8, of several
    frames the first counts.

    Args:
        encoded: the bytes of the file.
        name: of the file, for messages.

    Raises:
        ValueError: not an image, a broken one, or one larger than ``limits`` allow.
    """
    with _opened(io.BytesIO(encoded), name) as image:
        return _rgb(image)


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[Image.Image]:
    """The image, its pixels not yet read.  What Pillow raises, then or later, is a ValueError that names the image."""
    try:
        with Image.open(file, formats=_formats()) as image:
            check_sides(image.height, image.width)
            yield image
    except Exception as error:  # whatever the decoders run into: not all of them look before they read
        raise ValueError(f"image {name}: expected a whole image file, got {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(_formats())}"
    return str(error) if isinstance(error, ValueError | OSError) and str(error) else f"{type(error).__name__}: {error}"


@functools.cache
def suffixes() -> frozenset[str]:
    """How files of these formats end, in lower case, as ``.jpg``; what a folder has otherwise is no image."""
    formats = _formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(np.asarray(image))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparency
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_deep_grey(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    values = np.nan_to_num(grey.astype(np.float32 if grey.dtype.kind == "f" else np.int32), copy=False, nan=0)
    if values.max(initial=0) > 255:
        values = values // 256
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
