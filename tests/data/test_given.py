"""Images as callers hand them over."""

import io
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdet.data import load_image
from jaxdet.data.given import each_image, pixels_of
from jaxdet.data.images import decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encoded(form: str = "PNG", orientation: int = 1) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(PIXELS).save(buffer, form, exif=exif)
    return buffer.getvalue()


class Tensor:
    """An array of another library."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.error:
            raise TypeError(self.error)
        return PIXELS


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "memory", "file", "stream", "PIL", "numpy", "jax", "other"])
def test_every_kind_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    path, data = tmp_path / "a.png", encoded()
    path.write_bytes(data)
    with path.open("rb") as file, Image.open(path) as picture:
        image: Any = {
            "path": path,
            "text": str(path),
            "bytes": data,
            "memory": memoryview(bytearray(data)),
            "file": file,
            "stream": io.BytesIO(data),
            "PIL": picture,
            "numpy": PIXELS,
            "jax": jnp.asarray(PIXELS),
            "other": Tensor(),
        }[kind]
        (one,) = each_image(image)
        assert one is image
        np.testing.assert_array_equal(pixels_of(image, upright=True), PIXELS)


def test_a_number_is_no_path_and_its_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    descriptor = os.open(tmp_path / "a.png", os.O_RDONLY)
    for refused in (lambda: each_image(descriptor), lambda: pixels_of(descriptor, upright=True)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"expected a path, the bytes of an image file.*, got int {descriptor}$"):
            refused()
    with pytest.raises(ValueError, match="image: expected a path, got int"):
        load_image(descriptor)  # type: ignore[arg-type]
    assert os.read(descriptor, 4) == b"\x89PNG"
    os.close(descriptor)


@pytest.mark.parametrize("images", [None, 3.5, {"a": "b"}, {"a.png"}, object()])
def test_what_holds_no_images_in_order_is_refused(images: Any) -> None:
    with pytest.raises(ValueError, match=r"^images: expected a path, .* or a list of them, got [^\n]*$"):
        each_image(images)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "of 0 bytes"),
        (b"no image", "of 8 bytes: expected a whole image file"),
        (io.StringIO("text"), r"open for reading bytes \(mode 'rb'\), got str"),
        (io.BytesIO(), "is it at its end"),
        (
            Tensor("can't convert cuda:0 tensor\nto numpy"),
            "that NumPy can read, got Tensor: can't convert cuda:0 tensor$",
        ),
        (Image.new("RGB", (7, 0)), "sides of 1 to"),
    ],
    ids=["nothing", "junk", "text file", "file that was read", "tensor", "empty picture"],
)
def test_what_cannot_be_read_is_said_in_a_line(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pixels_of(image, upright=True)
    assert "\n" not in str(caught.value)


def test_a_closed_file_and_a_broken_picture_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    with path.open("rb") as file:
        pass
    with pytest.raises(ValueError, match=r"a\.png: expected a file that is open"):
        pixels_of(file, upright=True)
    path.write_bytes(encoded("JPEG")[:-60])
    with Image.open(path) as picture, pytest.raises(ValueError, match=r"a\.png: expected a whole image, got"):
        pixels_of(picture, upright=True)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_as_pillow_turns(form: str, orientation: int) -> None:
    data = encoded(form, orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    result = decode_image(data, "x", upright=True)
    np.testing.assert_array_equal(result, expected)
    assert result.shape == ((7, 5, 3) if orientation > 4 else (5, 7, 3))


def test_only_encoded_images_are_turned(tmp_path: Path) -> None:
    data = encoded("PNG", 6)
    (tmp_path / "a.png").write_bytes(data)
    for image in (tmp_path / "a.png", data, io.BytesIO(data)):
        assert pixels_of(image, upright=True).shape == (7, 5, 3)
    np.testing.assert_array_equal(pixels_of(data, upright=False), PIXELS)
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(pixels_of(picture, upright=True), PIXELS)


def test_spoilt_exif_loses_no_picture() -> None:
    data = encoded("JPEG", 6)
    start = data.index(b"Exif\0\0") + 6
    spoilt = data[:start] + b"\xff" * 8 + data[start + 8 :]
    assert decode_image(spoilt, "x", upright=True).shape == (5, 7, 3)
