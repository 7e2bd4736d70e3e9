"""Pictures of data before training show what training gets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdet import show
from jaxdet.data import CocoFolder, Data, Expand, MinIoUCrop, Source, open_source, train_batches, write_scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_scenes(path, train=9, val=0, size=64, seed=5, aspects=(1.5, 0.75))
    return path


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return open_source(CocoFolder(str(folder / "images"), str(folder / "instances_train.json")))


DATA = Data(short_side=64, long_side=96, batch_size=3, max_boxes=8, mask_size=28, workers=0)


def test_a_bitmap_covers_its_frame() -> None:
    """Against a loop that asks for every pixel which cell its centre is in."""
    rng = np.random.default_rng(0)
    bitmap = rng.integers(0, 2, (5, 7)).astype(np.uint8)
    for frame in ([2, 1, 16, 11], [-3.3, -2.1, 9.7, 30.4], [4.5, 4.5, 6, 5.2]):
        x1, y1, x2, y2 = frame
        expected = np.zeros((12, 20), np.uint8)
        for row in range(12):
            for column in range(20):
                y, x = (row + 0.5 - y1) / (y2 - y1) * 5, (column + 0.5 - x1) / (x2 - x1) * 7
                if 0 <= y < 5 and 0 <= x < 7:
                    expected[row, column] = bitmap[int(y), int(x)]
        np.testing.assert_array_equal(show.pasted(bitmap, np.array(frame, np.float32), (12, 20)), expected)


def drawn_arrays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], int]]:
    """What is handed over to be drawn, as it comes."""
    handed: list[tuple[dict[str, Any], int]] = []

    def draw(arrays: dict[str, Any], slot: int, categories: object) -> np.ndarray:
        handed.append((arrays, slot))
        return arrays["image"][slot]

    monkeypatch.setattr(show, "_drawn", draw)
    return handed


def test_the_batch_is_that_of_the_training(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = drawn_arrays(monkeypatch)
    show.save_batch(source, DATA, tmp_path / "step.png", seed=3, step=4)
    with train_batches(source, DATA, seed=3, start_step=0, steps=5) as batches:
        batch = list(batches)[4]
    assert [slot for _, slot in handed] == [0, 1, 2]
    arrays = handed[0][0]
    np.testing.assert_array_equal(arrays["image"], batch.image)
    assert batch.targets is not None
    np.testing.assert_array_equal(arrays["targets"]["boxes"], batch.targets.boxes)
    np.testing.assert_array_equal(arrays["targets"]["masks"], batch.targets.masks.values)


def test_draws_are_of_one_image(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = drawn_arrays(monkeypatch)
    data = Data(**{**vars(DATA), "augment": (Expand(), MinIoUCrop())})
    show.save_draws(source, data, tmp_path / "draws.png", seed=3, index=2, count=4)
    assert [int(arrays["index"][0]) for arrays, _ in handed] == [2] * 4
    assert len({arrays["image"].tobytes() for arrays, _ in handed}) > 1


def test_padding_is_hatched_and_masks_are_tinted(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def overlay(pixels: np.ndarray, objects: list[dict[str, Any]], categories: object, **_: object) -> np.ndarray:
        seen.update(pixels=pixels, objects=objects)
        return pixels

    monkeypatch.setattr(show, "overlay", overlay)
    image = np.full((1, 20, 30, 3), 7, np.uint8)
    masks = np.zeros((1, 3, 4, 4), np.uint8)
    masks[0, 0] = 1
    boxes = np.array([[[2, 3, 10, 11], [0, 0, 5, 5], [np.nan] * 4]], np.float32)  # the last slot holds nothing
    targets = {
        "boxes": boxes,
        "frames": boxes,
        "labels": np.array([[1, 0, 99]]),
        "masks": masks,
        "crowd": np.array([[False, True, False]]),
        "valid": np.array([[True, True, False]]),
    }
    show._drawn({"image": image, "true_hw": np.array([[15, 25]]), "targets": targets}, 0, source.categories)
    beyond = (seen["pixels"] != 7).all(axis=-1)
    assert beyond[15:].all()
    assert beyond[:, 25:].all()
    assert not beyond[:15, :25].any()
    first, crowd = seen["objects"]
    assert (first["bbox"], first["category_id"]) == ((2, 3, 8, 8), source.categories[1].id)
    assert first["segmentation"]["size"] == [20, 30]
    assert crowd["iscrowd"]
    assert "segmentation" not in crowd
    assert (image == 7).all()  # the batch stays as it is


def test_the_command_writes_sheets(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--truth", str(folder / "instances_train.json"), "--images", str(folder / "images")]
    assert show.main([*arguments, "--out", str(tmp_path / "a"), "--count", "2"]) == 0
    with Image.open(tmp_path / "a/truth.png") as sheet:
        assert sheet.width > 2 * 0.7 * 560  # two pictures beside each other, enlarged
    config = tmp_path / "config.py"
    config.write_text("from jaxdet.configs.demo import get_config\n")
    data = [f"data.train.directory={tmp_path}", "data.train.count=6", "data.train.size=64", "data.batch_size=2"]
    assert show.main(["--config", str(config), "--out", str(tmp_path / "b"), "--step", "7", "--count", "1", *data]) == 0
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"truth.png", "draws.png", "step_7.png"}
    wrong = ["--config", str(config), "--out", str(tmp_path / "c"), "--index", "6", *data]
    assert show.main(wrong) == 1
    assert "--index: expected 0 to 5, got 6" in capsys.readouterr().err
