"""Decoding image files to RGB, 8 bits.

The rotation that a camera writes into EXIF is *not* applied: COCO's boxes and masks count the pixels as stored,
and pycocotools never looks at the image.  A data set that was annotated on rotated views has to be saved that way.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def load_image(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read an image file as ``[H, W, 3]`` uint8 RGB (see ``decode_image``).

    Raises:
        ValueError: no such file, or not an image.
    """
    return decode_image(_bytes(path), str(path))


def load_map(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a semantic map, an image of one channel of 8 bits, as ``[H, W]`` uint8: the classes of the pixels.

    Raises:
        ValueError: no such file, or not such an image.
    """
    encoded = _bytes(path)
    with _problems_of(str(path)), Image.open(io.BytesIO(encoded)) as image:
        if image.mode not in ("L", "P"):  # of a palette the positions count, not the colours
            raise ValueError(f"one channel of 8 bits is needed, the mode is {image.mode!r}")
        return np.array(image, np.uint8)


def _bytes(path: str | PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"image {path}: expected a readable file, got {error.strerror or error}") from error


def decode_image(encoded: bytes, name: str) -> NDArray[np.uint8]:
    """Decode any format that Pillow reads to ``[H, W, 3]`` uint8 RGB.

    Grey is repeated, CMYK and palettes are converted, alpha is dropped, 16 bits lose the lower 8, of several
    frames the first counts.

    Args:
        encoded: the bytes of the file.
        name: of the file, for messages.

    Raises:
        ValueError: not an image, or a broken one.
    """
    with _problems_of(name), Image.open(io.BytesIO(encoded)) as image:
        return _rgb(image)


@contextmanager
def _problems_of(name: str) -> Iterator[None]:
    """What Pillow raises, as a ValueError that names the image."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name}: expected a whole image file, got {error}") from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(np.asarray(image))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparency
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_deep_grey(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    values = grey.astype(np.float64)
    if values.max(initial=0) > 255:
        values = np.floor(values / 256)
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
