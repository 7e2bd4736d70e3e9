"""The loader computes as jaxdet does: resize, canvas, decoding, masks, run lengths; it imports nothing of jaxdet."""

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from jaxdet.data import Data
from jaxdet.data.images import decode_image
from jaxdet.data.pipeline.transforms import canvas_hw, resize_image, view_of
from jaxdet.evaluation.paste import paste_mask, snapped
from jaxdet.exporting import loader
from jaxdet.exporting.description import canvases

SIDES = st.integers(1, 90)
RNG = np.random.default_rng(0)


def noise(hw: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 256, (*hw, 3), np.uint8)


def test_it_needs_jax_and_numpy_alone() -> None:
    """At the top of the file; Pillow and OpenCV may be missing."""
    tree = ast.parse(Path(loader.__file__).read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - {"jax", "numpy"} <= sys.stdlib_module_names
    assert not any(
        "jaxdet" in ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
    )


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_resize_without_opencv(rows: int, columns: int, to_rows: int, to_columns: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "cv2", None)
        image = noise((rows, columns))
        for hw in ((to_rows, to_columns), (2 * rows, 2 * columns), (-(-rows // 2), -(-columns // 2))):
            np.testing.assert_array_equal(loader.resize(image, hw), resize_image(image, hw))


def test_resize_with_opencv() -> None:
    assert loader.cv2 is not None, "a dependency of jaxdet"
    image = noise((31, 57))
    np.testing.assert_array_equal(loader.resize(image, (50, 40)), resize_image(image, (50, 40)))


@pytest.mark.parametrize(("keep_ratio", "ratios"), [(True, ()), (False, ()), (True, (1.0, 1.5))])
def test_sizes_and_canvases(keep_ratio: bool, ratios: tuple[float, ...]) -> None:
    data = Data(short_side=75, long_side=130, keep_ratio=keep_ratio, canvas_ratios=ratios)
    longs = [96, 128, 160] if ratios else [160]
    model = object.__new__(loader.Model)
    preprocessing = {"short_side": 75, "long_side": 130, "canvas_short": 96, "canvas_longs": longs}
    model.description = {"preprocessing": preprocessing | {"keep_ratio": keep_ratio}}
    model.canvases = set(canvases(data))
    assert model.canvases == {hw for long in longs for hw in ((96, long), (long, 96))}
    for hw in [*RNG.integers(1, 500, (200, 2)).tolist(), (1, 500), (500, 1), (80, 80)]:
        assert model._resized_hw(hw) == view_of((hw[0], hw[1]), data).hw
        assert model._canvas(hw) == canvas_hw((hw[0], hw[1]), data)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "LA", "1"])
def test_decoding(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise((20, 30))).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(loader.read_image(buffer.getvalue()), decode_image(buffer.getvalue(), "a"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(noise((20, 30))).save(tmp_path / "a.jpg", exif=exif)
    expected = decode_image((tmp_path / "a.jpg").read_bytes(), "a", upright=True)
    np.testing.assert_array_equal(loader.read_image(tmp_path / "a.jpg"), expected)


def test_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    large = io.BytesIO()
    Image.fromarray(noise((20, 30))).save(large, "PNG")
    monkeypatch.setattr(loader, "MOST_PIXELS", 599)
    for image, message in (
        (b"no picture", "of 10 bytes: expected a whole image file"),
        (tmp_path / "none.png", r"none\.png"),
        (deep.getvalue(), "8 bits a channel"),
        (large.getvalue(), "at most 599 pixels, got 30 x 20"),
        (np.zeros((4, 4, 3), np.float32), r"uint8 RGB, got \(4, 4, 3\) float32"),
        (np.zeros((4, 4), np.uint8), r"got \(4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            loader.read_image(image)


@pytest.mark.parametrize("kind", ["plain", "crop", "logits", "bytes", "byte_logits", "snapped"])
def test_masks(kind: str) -> None:
    """Painted as jaxdet paints, in and beyond the image, and as the same run lengths."""
    painting = {"threshold": 0.5, "logits": "logits" in kind, "snapped": kind == "snapped", "logit_range": 8.0}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 2, (7, 9)).astype(np.float32) if kind == "logits" else rng.random((7, 9), np.float32)
        if "byte" in kind:
            values = np.round(values * 255).astype(np.uint8)
        corner = rng.uniform(-20, 40, 2)
        frame = np.concatenate([corner, corner + rng.uniform(-1, 60, 2)]).astype(np.float32)
        crop = None
        if kind in ("crop", "logits"):
            crop = (frame + rng.uniform(-5, 5, 4)).astype(np.float32)
        hw = (int(rng.integers(1, 70)), int(rng.integers(1, 70)))
        expected_frame = snapped(frame, values.shape) if kind == "snapped" else frame
        expected = paste_mask(values, expected_frame, hw, 0.5, crop, painting["logits"])
        mask = loader._paste(values, frame, hw, crop, painting)
        np.testing.assert_array_equal(loader._painted(mask, hw), expected)
        counts = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"]
        assert loader._run_lengths(mask, hw) == counts.decode()
