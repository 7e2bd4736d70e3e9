"""A predictor that stays, and what it finds in the forms that people go on with."""

import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.commands import predict as predict_script
from jaxdet.data import Category, Data
from jaxdet.evaluation import inference
from jaxdet.ops.suppression import NMS
from jaxdet.prediction import frames, predict_video
from jaxdet.structures import Batch, Detections
from jaxdet.trained import Trained
from tests.test_prediction import run, trained, write

__all__ = ["run"]  # the fixture
# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
GREY = np.full((40, 60, 3), 120, np.uint8)


@pytest.fixture(scope="module")
def predictor() -> jaxdet.Predictor:
    """Of a cat in the left half, and less surely a dog in the right one."""
    return jaxdet.Predictor(trained(), score_threshold=0.3)


def test_the_forms_of_what_is_found(predictor: jaxdet.Predictor) -> None:
    (found,) = predictor(GREY)
    assert (len(found), found.hw, found.names) == (2, (40, 60), ["cat", "dog"])
    np.testing.assert_array_equal(found.labels, [1, 0])
    np.testing.assert_allclose(found.scores, [0.9, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, [[0, 0, 30, 40], [30, 0, 60, 40]], atol=0.5)
    assert found.masks is not None
    assert found.masks.shape == (2, 40, 60)
    assert found.masks[0, :, :29].all()
    assert not found.masks[0, :, 31:].any()
    assert found.polygons is not None
    ((outline,), _) = found.polygons
    np.testing.assert_array_equal(np.unique(outline, axis=0), [[0, 0], [0, 40], [30, 0], [30, 40]])
    assert found.rle is not None
    assert found.rle[0]["size"] == [40, 60]
    assert [result["image_id"] for result in found.to_coco(7)] == [7, 7]
    assert repr(found) == "<Prediction: 1 cat, 1 dog in an image of 60x40 pixels>"


def test_some_of_what_is_found(predictor: jaxdet.Predictor) -> None:
    (found,) = predictor(GREY)
    assert found[1].names == found[-1].names == found[found.labels == 0].names == found[[1]].names == ["dog"]
    assert found[:1].names == found[found.scores > 0.5].names == ["cat"]
    assert [each.names for each in found] == [["cat"], ["dog"]]
    empty = found[:0]
    assert (len(empty), empty.boxes.shape, empty.names) == (0, (0, 4), [])
    assert empty.masks is not None
    assert empty.masks.shape == (0, 40, 60)
    assert "nothing" in repr(empty)
    with pytest.raises(IndexError):
        found[2]


def test_a_threshold_of_a_call_goes_before(predictor: jaxdet.Predictor) -> None:
    counts = [len(predictor(GREY, score_threshold=limit)[0]) for limit in (0.0, 0.5, 1.0)]
    assert counts == [2, 1, 0]
    for wrong in (2, float("nan"), "0.5"):
        with pytest.raises(ValueError, match="0 to 1"):
            predictor(GREY, score_threshold=wrong)  # type: ignore[arg-type]
    assert len(predictor(GREY)[0]) == 2


def test_a_picture(predictor: jaxdet.Predictor, tmp_path: Path) -> None:
    (found,) = predictor(GREY)
    picture = found.plot(tmp_path / "new" / "found.png", zoom=2)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "found.png")), picture)
    assert picture.shape == (80, 120, 3)
    assert (picture[:, :50] != 120).any(-1).mean() > 0.9
    np.testing.assert_array_equal(found[:0].plot(), GREY)
    with pytest.raises(ValueError, match=r"as in .*found\.png, got .*found"):
        found.plot(tmp_path / "found")


def test_files_folders_and_patterns(predictor: jaxdet.Predictor, tmp_path: Path) -> None:
    files = [write(tmp_path / "photos" / name) for name in ("a.png", "b.jpg")]
    (tmp_path / "photos" / "notes.txt").touch()
    for images in (tmp_path / "photos", str(tmp_path / "photos" / "*"), [files[0], str(files[1])], files):
        assert [found.source for found in predictor(images)] == [str(file) for file in files]
    for images in (tmp_path / "none.png", tmp_path / "photos" / "*.gif"):
        with pytest.raises(ValueError, match=r"none.png|has none"):
            predictor(images)
    with files[0].open("rb") as file:
        assert predictor(file)[0].source == str(files[0])


def test_images_come_one_after_the_other(predictor: jaxdet.Predictor, tmp_path: Path) -> None:
    def images() -> Iterator[Any]:
        yield GREY
        yield tmp_path / "none.png"

    stream = predictor.stream(images())
    assert len(next(stream)) == 2
    with pytest.raises(ValueError, match=r"none\.png"):
        next(stream)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of the folder ``tmp_path``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses(predictor: jaxdet.Predictor, address: str, tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    (found,) = predictor(f"{address}/a.png")
    assert (len(found), found.source) == (2, f"{address}/a.png")
    for name in ("b.png", "c.png"):
        with pytest.raises(ValueError, match=f"{name}"):
            predictor(f"{address}/{name}")


def test_other_packages(predictor: jaxdet.Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are called with; without them the error names what to install."""
    (found,) = predictor(GREY)
    for package, make in (("supervision", found.to_supervision), ("pandas", found.to_pandas)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            make()
    supervision: Any = ModuleType("supervision")
    supervision.Detections = dict
    monkeypatch.setitem(sys.modules, "supervision", supervision)
    given = found.to_supervision()
    assert set(given) == {"xyxy", "mask", "confidence", "class_id", "data"}
    assert (given["xyxy"].shape, given["mask"].dtype, given["class_id"].dtype) == ((2, 4), bool, int)
    assert given["data"]["class_name"].tolist() == ["cat", "dog"]
    pandas: Any = ModuleType("pandas")
    pandas.DataFrame = dict
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame = found.to_pandas()
    assert frame["name"] == ["cat", "dog"]
    np.testing.assert_allclose(frame["area"], [1200, 1200], rtol=0.05)


def test_other_sizes_compile_nothing(run: Path) -> None:
    """Two canvases, upright and lying, whatever the size of the image; the threshold is no part of the program."""
    predictor, compiled = jaxdet.Predictor(run), inference._compiled()
    predictor([np.zeros((64, 48, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)])
    before = compiled._cache_size()
    predictor([np.zeros((h, w, 3), np.uint8) for h, w in ((30, 20), (200, 310), (64, 64))], score_threshold=0)
    assert compiled._cache_size() == before


@dataclass(frozen=True)
class TwoBoxes:
    """Sees two boxes of one class, of which the better one shares a third of their union with the other."""

    num_classes: ClassVar[int] = 1
    suppression_key: ClassVar[str] = "suppression"

    suppression: Any = NMS(0.05, 0.5, 10)

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        boxes, scores = jnp.array([[[0.0, 0, 30, 32]], [[15, 0, 45, 32]]]), jnp.array([[0.9], [0.8]])
        one: Detections = self.suppression(boxes, scores, jnp.ones(2, bool))
        return jax.tree.map(lambda leaf: leaf[None], one)


def test_the_threshold_of_a_call_decides_which_boxes_stay() -> None:
    experiment: Any = SimpleNamespace(model=TwoBoxes(), data=Data(short_side=32, long_side=64, workers=0))
    trained = Trained(experiment, {"none": np.zeros(1)}, (Category(7, "thing"),), 1)
    predictor, image = jaxdet.Predictor(trained, score_threshold=0), np.zeros((32, 64, 3), np.uint8)
    for threshold, scores in ((None, [0.9, 0.8]), (0.34, [0.9, 0.8]), (0.33, [0.9]), (0.0, [0.9])):
        np.testing.assert_allclose(predictor(image, nms_threshold=threshold)[0].scores, scores, rtol=1e-6)


def test_limits_of_a_call(run: Path) -> None:
    """The first call with one compiles a program for any; the one without stays what it is."""
    predictor, compiled = jaxdet.Predictor(run, score_threshold=0), inference._compiled()
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    (plain,) = predictor(image)
    before = compiled._cache_size()
    found = [
        predictor(image, nms_threshold=threshold, max_detections=number)[0]
        for threshold, number in ((0.5, None), (None, 7), (1.0, 5))
    ]
    assert compiled._cache_size() == before + 1
    assert predictor(image)[0].results == plain.results == found[0].results
    assert found[1].results == plain.results[:7]
    assert len(found[2]) == 5
    own = jaxdet.Predictor(run, score_threshold=0, max_detections=7)
    assert own(image)[0].results == found[1].results
    assert len(own(image, max_detections=3)[0]) == 3
    assert compiled._cache_size() == before + 1
    for wrong in ({"nms_threshold": 2}, {"max_detections": 101}):
        with pytest.raises(ValueError, match=r"0 to 1|set model\.suppression\.max_detections=101"):
            predictor(image, **wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"0 to 1|set model\.suppression\.max_detections=101"):
            jaxdet.Predictor(run, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches(run: Path, batch_size: int) -> None:
    """Images in any order of sizes come back in theirs, as each alone; slots that fill a batch leave nothing."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*hw, 3), np.uint8) for hw in ((64, 48), (48, 64), (40, 64), (30, 60), (64, 30))]
    alone = jaxdet.Predictor(run, score_threshold=0)(images)
    found = jaxdet.Predictor(run, score_threshold=0, batch_size=batch_size)(images)
    assert [each.hw for each in found] == [image.shape[:2] for image in images]
    for one, other in zip(alone, found, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        jaxdet.Predictor(run, batch_size=0)


def test_what_is_computed_on_the_way(run: Path) -> None:
    named = jaxdet.Predictor(run).intermediates(np.zeros((48, 64, 3), np.uint8))
    assert {"pyramid/P2", "pyramid/P5"} <= set(named) or any(name.startswith("pyramid/") for name in named)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three grey frames, each darker than the one before, four a second."""
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 4.0, (60, 40))
    for grey in (200, 120, 40):
        writer.write(np.full((40, 60, 3), grey, np.uint8))
    writer.release()
    return file


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_video(predictor: jaxdet.Predictor, clip: Path, suffix: str) -> None:
    """The left half of each frame is painted, as much as in a picture of it."""
    shown: list[tuple[int, int]] = []
    out = clip.with_name(f"out{suffix}")
    assert predict_video(predictor, clip, out, score_threshold=0.5, progress=lambda *now: shown.append(now)) == 3
    assert shown == [(1, 3), (2, 3), (3, 3)]
    drawn, plain = list(frames(out)), list(frames(clip))
    assert len(drawn) == len(plain) == 3
    for frame, before in zip(drawn, plain, strict=True):
        changed = np.abs(frame.astype(int) - before)[24:].mean((0, 2))  # the name is written above
        assert changed[:25].min() > 10 > 5 > changed[36:].max()
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(4)
    video.release()


def test_a_video_that_is_none(predictor: jaxdet.Predictor, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for path, out, message in (
        (tmp_path / "none.mp4", "out.mp4", "there is none"),
        (tmp_path / "broken.mp4", "out.mp4", r"broken\.mp4: expected"),
        (clip, "out.txt", r"ends in \.mp4 or \.avi, got \.txt"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_video(predictor, path, tmp_path / out)
        assert not (tmp_path / out).exists()


def test_the_command_takes_videos_and_images(
    run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write(tmp_path / "a.png")
    arguments = ["--checkpoint", str(run), "--out", str(tmp_path / "out")]
    limits = ["--score-threshold", "0", "--nms-threshold", "0.9", "--max-detections", "2"]
    assert predict_script.main([*arguments, *limits, str(clip), str(image)]) == 0
    assert "3 frames of" in (said := capsys.readouterr().out)
    assert "2 detections in 1 image: " in said
    assert predict_script.main([*arguments, str(image), "--max-detections", "101"]) == 1
    assert "set model.suppression.max_detections=101" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.mp4", "a.png", "results.json"}
