import io

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import load_image
from jaxdet.data.images import decode_image

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
