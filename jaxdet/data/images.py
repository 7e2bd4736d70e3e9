"""Decoding of image files to RGB of 8 bits.

The rotation that a camera writes into EXIF is *not* applied unless asked for: COCO's boxes and masks count the pixels
as stored, and pycocotools never looks at the image.  A data set that was annotated on rotated views has to be saved
that way.  Prediction of other files asks for it (``upright``).
"""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jaxdet.data.validation.entries import MAX_PIXELS, check_sides
from jaxdet.runtime.files import open_file, read_file

# Formats of photographs.  Pillow's other readers are little tested, and that of EPS runs another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

LARGEST_FILE = 8 * MAX_PIXELS + (1 << 20)  #: bytes: four channels of 16 bits, not compressed, and a header
_ORIENTATION = 0x112  #: EXIF tag; 1 means upright
_BITS_PER_SAMPLE = 258  #: TIFF tag

# Pillow warns of images above half its own limit.  Here `check_sides` is the limit, so Pillow's is raised beyond it.
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


def load_image(path: str | PathLike[str], *, upright: bool = False) -> NDArray[np.uint8]:
    """Read an image file as ``[H, W, 3]`` uint8 RGB (see `decode_image`).

    Raises:
        ValueError: there is no such file, it is no image, or it exceeds the limits of ``data.validation.entries``.
    """
    return decode_image(read_file(path, "image", LARGEST_FILE), str(path), upright=upright)


@dataclass(frozen=True)
class Header:
    """What the header of an image file says."""

    hw: tuple[int, int]  #: height and width as stored
    orientation: int  #: EXIF orientation: 1 for upright, 0 where the tag is no number
    deep: bool  #: grey of more than 8 bits, of which the upper 8 are read


def read_header(path: str | PathLike[str]) -> Header:
    """Read the header of an image file; its pixels are not decoded.

    Raises:
        ValueError: as `load_image`, as far as the header tells.
    """
    with open_file(path, "image", LARGEST_FILE) as file, _opened(file, str(path)) as image:
        return Header((image.height, image.width), _orientation(image), _bits(image) > 8)


def _orientation(image: Image.Image) -> int:
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if isinstance(orientation, int) else 0


def load_map(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a semantic map, an image of one channel of 8 bits, as ``[H, W]`` uint8: the class of each pixel.

    Raises:
        ValueError: there is no such file, or it is no such image.
    """
    with open_file(path, "image", LARGEST_FILE) as file, _opened(file, str(path)) as image:
        if image.mode not in ("L", "P"):  # a palette ("P") has the class as position; its colours do not matter
            raise ValueError(f"one channel of 8 bits is needed, the mode is {image.mode!r}")
        return np.array(image, np.uint8)


def decode_image(encoded: bytes, name: str, *, upright: bool = False) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF to ``[H, W, 3]`` uint8 RGB.

    Grey is repeated, CMYK and palettes are converted, alpha is dropped, of 16 bits the upper 8 are kept whatever the
    pixels hold, and only the first of several frames is read.

    Args:
        encoded: the bytes of the file.
        name: the file's name, for messages.
        upright: turn the image as its EXIF orientation says; False: the pixels as stored.

    Raises:
        ValueError: it is no image, a broken one, one that exceeds the limits of ``data.validation.entries``, or its
            pixels are floats or integers whose type has no white (see `_bits`).
    """
    with _opened(io.BytesIO(encoded), name) as image:
        # The orientation is asked for after the pixels: Pillow turns a TIFF itself and then says that it is upright.
        pixels = _rgb(image)
        return _turned(pixels, image) if upright else pixels


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """Read the pixels of a PIL image, as they lie, as ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: the file behind it is broken or closed, or the image exceeds the limits.
    """
    try:
        check_sides(image.height, image.width)
        return _rgb(image)
    except Exception as error:  # of a lazy image the decoders' errors, see `_opened`
        name = getattr(image, "filename", None) or "from PIL"
        raise ValueError(f"image {name}: expected a whole image, got {_reason(error)}") from error


#: Orientation -> what makes the picture upright: whether rows become columns, and then the step through rows, columns.
_UPRIGHT = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


def _turned(pixels: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
    """Turn ``[H, W, 3]`` pixels upright as the image's EXIF orientation says."""
    try:
        orientation = _orientation(image)
    except Exception:  # spoilt EXIF data says nothing, and is no reason to lose the picture
        return pixels
    if orientation not in _UPRIGHT:
        return pixels
    transposed, rows, columns = _UPRIGHT[orientation]
    turned = pixels.swapaxes(0, 1) if transposed else pixels
    return np.ascontiguousarray(turned[::rows, ::columns])


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[Image.Image]:
    """Yield an image whose pixels are not yet read; what Pillow raises inside becomes a ValueError that names it."""
    try:
        with Image.open(file, formats=_formats()) as image:
            check_sides(image.height, image.width)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"image {name}: expected a whole image file, got {_kind(file)}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken files: struct.error, IndexError
        raise ValueError(f"image {name}: expected a whole image file, got {_reason(error)}") from error


def _kind(file: IO[bytes]) -> str:
    """What to say of a file that Pillow does not open, by its first bytes."""
    file.seek(0)
    start = file.read(16)  # as many as Pillow looks at
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(start) is True:
            return (
                f"a {name} that is cut off or has pixels of a kind that Pillow does not read, such as floats of three "
                "channels; save it with 8 bits a channel"
            )
    return f"none of {', '.join(_formats())}"


def _reason(error: Exception) -> str:
    """What to say of an error: its text, with its class where the text alone (``'bands'``) would be a riddle."""
    return str(error) if isinstance(error, ValueError | OSError) and str(error) else f"{type(error).__name__}: {error}"


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes of image files in lower case, such as ``.jpg``; by them images are found in a folder."""
    formats = _formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of Pillow can read: AVIF and JPEG 2000 need libraries that it may lack."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    bits = _bits(image)
    if bits > 8:
        # The type's upper 8 bits, and not those that this image happens to use: two frames of a camera must not
        # differ by their brightest pixel.
        grey = np.clip(np.asarray(image), 0, (1 << bits) - 1) >> (bits - 8)
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparency
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _bits(image: Image.Image) -> int:
    """Bits of a grey pixel by the file's type; 8 for colour, of which Pillow keeps the upper 8.

    Raises:
        ValueError: floats, and integers of 32 bits or with a sign: which of their values is white, no file says.
    """
    if image.mode.startswith("I;16"):
        # TIFF has 12 bits too, which Pillow does not stretch to 16 as it does those of other formats.
        return int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0])
    if image.mode == "I" and image.format == "PPM":
        return 16  # Pillow stretches all that are above 8 to 16
    if image.mode in ("I", "F"):
        kind = "floating-point pixels" if image.mode == "F" else "pixels of 32 bits or with a sign"
        raise ValueError(f"{kind}, of which no file says what is white; save it with 8 or 16 bits, all images alike")
    return 8
