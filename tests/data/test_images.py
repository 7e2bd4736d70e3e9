import io
import struct

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import load_image
from jaxdet.data.images import decode_image, read_header

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_colour_comes_as_it_is():
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(COLOUR)), "x"), COLOUR)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_repeated(mode):
    image = Image.fromarray(GREY).convert(mode)
    result = decode_image(encoded(image), "x")
    np.testing.assert_array_equal(result, np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2))


def test_alpha_is_dropped():
    image = Image.fromarray(np.concatenate([COLOUR, GREY[..., None]], axis=2))
    np.testing.assert_array_equal(decode_image(encoded(image), "x"), COLOUR)


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_palette_is_looked_up(transparency):
    palette = Image.new("P", (7, 5))
    palette.putdata((GREY % 3).ravel().tolist())
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)[GREY % 3]
    np.testing.assert_array_equal(decode_image(encoded(palette, **options), "x"), expected)


def test_sixteen_bits_lose_the_lower_eight():
    deep = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    result = decode_image(encoded(Image.fromarray(deep)), "x")
    np.testing.assert_array_equal(result, np.repeat((deep // 256).astype(np.uint8)[..., None], 3, axis=2))


def tiff(pixels: np.ndarray, *, bits: int, kind: int) -> bytes:
    """A TIFF of one row, made by hand: Pillow writes neither 12 bits nor floats of three channels.

    ``kind`` is that of the tag SampleFormat: 1 unsigned, 2 with a sign, 3 floating point.
    """
    width, channels = pixels.shape
    content = pixels.tobytes()
    if bits == 12:  # two pixels in three bytes, the upper bits first
        packed = "".join(f"{value:012b}" for value in pixels.ravel())
        content = bytes(int(packed[place : place + 8], 2) for place in range(0, len(packed), 8))
    numbers = {256: width, 257: 1, 258: bits, 259: 1, 262: 2 if channels == 3 else 1, 277: channels, 278: 1, 339: kind}
    numbers |= {273: 8 + 2 + 12 * 10 + 4, 279: len(content)}  # where the pixels are, and how long
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag in (258, 339) else 4, 1, numbers[tag]) for tag in sorted(numbers)
    )
    return b"II*\0" + struct.pack("<IH", 8, len(numbers)) + entries + bytes(4) + content


@pytest.mark.parametrize("brightest", [255, 256, 4095, 65535])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_read_alike_whatever_their_brightest_pixel(brightest, form):
    deep = np.array([[153, 153, brightest]], np.uint16)
    result = decode_image(encoded(Image.fromarray(deep), form), "x")
    np.testing.assert_array_equal(result[0, :, 0], [0, 0, brightest >> 8])


def test_twelve_bits_lose_the_lower_four():
    values = np.array([[4095], [2048], [255], [15]], np.uint16)
    result = decode_image(tiff(values, bits=12, kind=1), "x")
    np.testing.assert_array_equal(result[0, :, 0], [255, 128, 15, 0])


@pytest.mark.parametrize(("content", "reason"), [
    (encoded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"), "floating-point pixels"),
    (encoded(Image.fromarray(np.array([[0, 200, 255]], np.float32)), "TIFF"), "floating-point pixels"),
    (encoded(Image.fromarray(np.array([[0, 200, 255]], np.int32)), "TIFF"), "pixels of 32 bits or with a sign"),
    (tiff(np.array([[7], [9]], np.int16), bits=16, kind=2), "pixels of 32 bits or with a sign"),
    (tiff(np.ones((2, 3), np.float32), bits=32, kind=3), "a TIFF that .* pixels of a kind that Pillow does not read"),
])  # fmt: skip
def test_pixels_whose_white_no_file_tells_are_refused(content, reason, tmp_path):
    path = tmp_path / "some.tif"
    path.write_bytes(content)
    for read in (load_image, read_header):
        with pytest.raises(
            ValueError, match=rf"some\.tif: expected a whole image file, got {reason}.*; save it with 8"
        ):
            read(path)


def test_cmyk_jpeg_becomes_colour():
    flat = np.zeros((16, 16, 4), np.uint8)
    flat[..., 0] = 255  # cyan ink
    result = decode_image(encoded(_cmyk(flat), "JPEG", quality=100), "x")
    assert result.shape == (16, 16, 3)
    np.testing.assert_allclose(result[8, 8], [0, 255, 255], atol=6)


def _cmyk(pixels: np.ndarray) -> Image.Image:
    return Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes())


def test_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x112] = 6
    result = decode_image(encoded(Image.fromarray(COLOUR), "JPEG", exif=exif), "x")
    assert result.shape == (5, 7, 3)


@pytest.mark.parametrize("junk", [b"", b"no image", encoded(Image.fromarray(COLOUR))[:60]])
def test_what_is_no_image_is_named(junk):
    with pytest.raises(ValueError, match=r"image some\.png: expected a whole image file"):
        decode_image(junk, "some.png")


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.jpg"):
        load_image(tmp_path / "absent.jpg")
    big = np.asarray(RNG.integers(0, 256, (64, 64, 3)), np.uint8)
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.fromarray(big), "JPEG")[:-500])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        load_image(tmp_path / "cut.jpg")
