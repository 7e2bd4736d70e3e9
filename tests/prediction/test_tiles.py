"""Large images by tiles: each object once, as it lies in the image, whatever borders run through it."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import jaxdet
from jaxdet.commands import predict as predict_script
from jaxdet.data import Category, Data
from jaxdet.evaluation.augmented import TestTimeAugmentation
from jaxdet.prediction.merging import merge_windows
from jaxdet.prediction.tiles import Window, in_image, tiles_of
from jaxdet.structures import Batch, Detections, Masks
from jaxdet.trained import Trained

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
COLOURS = tuple(range(20, 180, 20))
HW = (150, 210)


class Colours:
    """Sees the rectangle around the pixels of each of eight greys, and a mask that fills it; all are of one class."""

    num_classes = 1

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        pixels = batch.image[:, None, :, :, 0] == jnp.asarray(COLOURS)[:, None, None]
        lines = [pixels.any(3), pixels.any(2)]  # rows and columns [B, 8, side]
        low = [line.argmax(-1) for line in lines]
        high = [line.shape[-1] - line[..., ::-1].argmax(-1) for line in lines]
        boxes = jnp.stack([low[1], low[0], high[1], high[0]], -1).astype(jnp.float32)
        valid, area = pixels.any((2, 3)), pixels.sum((2, 3))
        scores = 0.5 + area / (2 * area.max() + 1)  # pieces of an object have other scores than the whole
        index = jnp.zeros(valid.shape, jnp.int32)
        masks = Masks(jnp.ones((*valid.shape, 4, 4)), boxes) if self.masks else None
        return Detections(boxes, scores, index, valid, index, masks)


def trained(masks: bool = True) -> Trained:
    experiment: Any = SimpleNamespace(model=Colours(masks), data=Data(short_side=64, long_side=64, workers=0))
    return Trained(experiment, {"none": np.zeros(1)}, (Category(7, "thing"),), 1)


def predictor(masks: bool = True, **settings: Any) -> jaxdet.Predictor:
    return jaxdet.Predictor(trained(masks), **settings)


def picture(*boxes: tuple[int, int, int, int], hw: tuple[int, int] = HW) -> np.ndarray:
    """Rectangles x1, y1, x2, y2 in different greys."""
    image = np.zeros((*hw, 3), np.uint8)
    for colour, (x1, y1, x2, y2) in zip(COLOURS, boxes, strict=False):
        image[y1:y2, x1:x2] = colour
    return image


#: In one tile, over the border of two, over the corner of four, larger than a tile each way, and one inside of another.
OBJECTS = [
    (3, 3, 20, 25),
    (40, 70, 75, 90),
    (90, 40, 115, 62),
    (20, 100, 205, 130),
    (150, 5, 180, 95),
    (160, 20, 170, 35),
]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_object_comes_once(masks: bool, batch_size: int) -> None:
    shown: list[tuple[int, int]] = []
    model = predictor(masks, batch_size=batch_size)
    found = model.tiled(picture(*OBJECTS), tile=64, overlap=0.3, whole=False, progress=lambda *now: shown.append(now))
    assert sorted(map(tuple, np.round(found.boxes).astype(int).tolist())) == sorted(OBJECTS)
    assert (np.diff(found.scores) <= 0).all()
    assert found.hw == HW
    assert shown[-1] == (15, 15)
    if not masks:
        assert found.masks is None
        return
    assert found.masks is not None
    for box, mask in zip(found.boxes.astype(int), found.masks, strict=True):
        x1, y1, x2, y2 = box
        expected = np.zeros(HW, bool)
        expected[y1:y2, x1:x2] = True
        assert (mask & expected).sum() > 0.97 * (mask | expected).sum()  # pasting rounds corners off


def test_each_tile_is_seen_in_all_views() -> None:
    """With test-time augmentation each object comes once too, and every tile and the whole image are seen mirrored."""
    model = predictor(augment=TestTimeAugmentation(flip=True))
    found = model.tiled(picture(*OBJECTS[:3]), tile=64, overlap=0.3)
    np.testing.assert_allclose(sorted(found.boxes.tolist()), sorted(OBJECTS[:3]), atol=4)


def test_the_whole_image_is_one_more_view() -> None:
    """It gives what no tile sees whole, and doubles nothing."""
    image = picture((10, 5, 200, 145), (30, 30, 50, 50))
    found = predictor().tiled(image, tile=64, overlap=0.2)
    assert len(found) == 2
    np.testing.assert_allclose(found.boxes[found.scores.argmax()], [10, 5, 200, 145], atol=4)


def test_one_tile_is_a_plain_prediction() -> None:
    model, image = predictor(), picture((3, 3, 20, 25), hw=(40, 64))
    (plain,) = model(image)
    assert model.tiled(image, tile=64).results == plain.results
    with pytest.raises(ValueError, match="tiled: expected one image, got 2"):
        model.tiled([image, image])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8 RGB"):
        model.tiled(np.zeros((99, 99), np.uint8))
    for wrong in ({"tile": 31}, {"tile": 2.5}, {"overlap": 1.0}, {"overlap": float("nan")}):
        with pytest.raises(ValueError, match=r"tile: expected a side|overlap: expected a share"):
            model.tiled(picture(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("hw", [(150, 210), (64, 65), (40, 200), (1000, 64)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5])
def test_tiles_cover_the_image_and_overlap(hw: tuple[int, int], overlap: float) -> None:
    tiles = tiles_of(hw, 64, overlap)
    seen = np.zeros(hw, int)
    for tile in tiles:
        assert tile.hw == (min(64, hw[0]), min(64, hw[1]))
        tile.of(seen)[:] += 1
    assert seen.min() >= 1
    lefts = sorted({tile.left for tile in tiles})
    assert all(b - a <= 64 - int(64 * overlap) for a, b in pairwise(lefts))
    assert len(set(tiles)) == len(tiles)


def test_masks_of_a_tile_are_moved_pixel_for_pixel() -> None:
    rng = np.random.default_rng(0)
    window, mask = Window(30, 20, 94, 84), np.zeros((64, 64), np.uint8)
    mask[5:40, 50:64] = rng.integers(0, 2, (35, 14))
    rle = coco_mask.encode(np.asfortranarray(mask))
    moved = in_image({"bbox": [50.5, 5, 13, 35], "score": 1.0, "segmentation": rle}, window, HW)
    expected = np.zeros(HW, np.uint8)
    expected[20:84, 30:94] = mask
    np.testing.assert_array_equal(coco_mask.decode(moved["segmentation"]), expected)
    assert moved["bbox"] == [80.5, 25, 13, 35]


def result(x1: float, y1: float, x2: float, y2: float, score: float = 0.5, category: int = 1) -> dict[str, Any]:
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score, "category_id": category}


LEFT, RIGHT = Window(0, 0, 60, 100), Window(40, 0, 100, 100)


def merged(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return merge_windows([(LEFT, left), (RIGHT, right)], (100, 100))


def test_a_piece_gives_way_to_the_whole_even_with_a_higher_score() -> None:
    piece, whole = result(45, 10, 60, 30, 0.9), result(45, 10, 90, 30, 0.6)
    assert merged([piece], [whole]) == [whole]


def test_pieces_are_joined_with_the_best_score() -> None:
    assert merged([result(5, 10, 60, 30, 0.6)], [result(40, 10, 90, 30, 0.7)]) == [result(5, 10, 90, 30, 0.7)]


def test_what_is_another_class_or_lies_elsewhere_stays() -> None:
    apart = [result(41, 10, 59, 30)], [result(41, 50, 59, 70), result(41, 10, 57, 30, category=2)]
    assert len(merged(*apart)) == 3
    assert len(merged([result(42, 10, 56, 30, 0.5)], [result(42, 10, 56, 30, 0.6)])) == 1


def test_two_in_one_window_stay_two() -> None:
    """The model has told them apart, and one of the other window is like both of them."""
    two = [result(42, 10, 56, 30, 0.9), result(44, 10, 57, 30, 0.8)]
    assert merged(two, [result(43, 10, 56, 30, 0.5)]) == two


def test_a_small_one_within_a_large_one_stays() -> None:
    large, small = result(20, 0, 56, 100, 0.9), result(45, 40, 50, 50, 0.8)
    assert merged([large], [small]) == [large, small]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("jaxdet.trained.load", lambda *_, **__: trained())
    image = picture(*OBJECTS)
    Image.fromarray(image).save(tmp_path / "large.png")
    arguments = ["--checkpoint", "run", "--out", str(tmp_path / "out"), str(tmp_path / "large.png")]
    assert predict_script.main([*arguments, "--tiles", "64", "--overlap", "0.3"]) == 0
    assert capsys.readouterr().out.startswith(f"{len(OBJECTS)} detections in 1 image: ")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {result["segmentation"]["size"] == list(HW) for result in results} == {True}
    assert predict_script.main([*arguments, "--tta", "flip,64", "--tiles", "64", "--overlap", "0.3"]) == 0
    assert capsys.readouterr().out.startswith(f"{len(OBJECTS)} detections in 1 image: ")
    for wrong, message in ((["--tiles", "3"], "at least 32 pixels"), (["--tta", "flop"], "--tta: expected flip")):
        assert predict_script.main([*arguments, *wrong]) == 1
        assert message in capsys.readouterr().err
    assert predict_script.main([*arguments, "--tiles", "64", "clip.mp4"]) == 1
    assert "--tiles: expected images, got a video" in capsys.readouterr().err
