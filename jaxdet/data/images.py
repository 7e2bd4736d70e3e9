"""Decoding image files to RGB, 8 bits.

The rotation that a camera writes into EXIF is *not* applied: COCO's boxes and masks count the pixels as stored,
and pycocotools never looks at the image.  A data set that was annotated on rotated views has to be saved that way.
"""

import io
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
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"image {path}: expected a readable file, got {error.strerror or error}") from error
    return decode_image(encoded, str(path))


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
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = _rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name}: expected a whole image file, got {error}") from error
    return pixels


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
