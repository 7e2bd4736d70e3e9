"""Data sets as they come: looked at before an evaluation takes its time, and what `eval.py` makes of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdet.commands import eval as eval_script
from jaxdet.data import CocoFolder, Data, Source, open_source
from jaxdet.evaluation import evaluate
from jaxdet.evaluation.evaluate import check_scorable, score_all
from jaxdet.experiment import Run
from jaxdet.trained import Trained
from tests.evaluation.test_evaluate import DATA, VARIABLES, DarkSquare, Squares

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class Folder:
    """`Squares` on the disk."""

    def __init__(self, path: Path) -> None:
        self.images, self.annotations = path / "images", path / "instances.json"
        self.images.mkdir()
        squares = Squares(2)
        self.truth: dict[str, Any] = squares.ground_truth()
        for number, image in enumerate(self.truth["images"]):
            image["file_name"] = f"{number}.png"
            Image.fromarray(squares[number].image).save(self.images / f"{number}.png")

    def open(self) -> Source:
        return open_source(CocoFolder(str(self.images), self.written()))

    def written(self) -> str:
        self.annotations.write_text(json.dumps(self.truth))
        return str(self.annotations)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def trained(source: Source, **run: Any) -> Trained:
    experiment: Any = SimpleNamespace(model=DarkSquare(), data=DATA, run=Run(**run))
    return Trained(experiment, VARIABLES, source.categories, 1)


class TestBeforehand:
    def test_good_ones_pass(self, folder: Folder) -> None:
        check_scorable(folder.open(), DATA)
        check_scorable(Squares(3), DATA)
        folder.truth["annotations"] = []
        check_scorable(folder.open(), DATA)

    def test_missing_files(self, folder: Folder) -> None:
        source = folder.open()
        (folder.images / "1.png").unlink()
        with pytest.raises(ValueError, match=r"data\.val\): expected a file for every image, got none for 1 of them"):
            check_scorable(source, DATA)

    def test_masks_that_cannot_be_read(self, folder: Folder) -> None:
        folder.truth["annotations"][1]["segmentation"] = [[1, 2, 3]]
        source = folder.open()
        with pytest.raises(ValueError, match=r"data\.val\): ground truth: annotations\[1\] \(id 2\): segmentation"):
            check_scorable(source, DATA)
        check_scorable(source, Data(workers=0, masks=False))


class TestScript:
    def scored(self, folder: Folder, results: list[Any], tmp_path: Path, *options: str) -> dict[str, float]:
        (tmp_path / "results.json").write_text(json.dumps(results))
        arguments = ["--results", str(tmp_path / "results.json"), "--annotations", folder.written()]
        assert eval_script.main([*arguments, *options, "--metrics", str(tmp_path / "metrics.json")]) == 0
        metrics: dict[str, float] = json.loads((tmp_path / "metrics.json").read_text())
        return metrics

    def test_a_test_set_without_annotations_is_predicted(
        self, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        del folder.truth["annotations"]
        source = folder.open()
        monkeypatch.setattr(evaluate, "open_checkpoint", lambda *given, **options: (trained(source), source))
        out = tmp_path / "out.json"
        assert eval_script.main(["--checkpoint", "run", "--out", str(out)]) == 0
        assert [result["image_id"] for result in json.loads(out.read_text())] == [100, 107]
        assert "nothing to score by" in caplog.text

    def test_a_limit_for_results(self, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image, category = folder.truth["images"][0]["id"], folder.truth["categories"][0]["id"]
        common = {"image_id": image, "category_id": category, "area": 1, "iscrowd": 0, "segmentation": [[]]}
        places = [[n % 40, n // 40, 1, 1] for n in range(200)]
        folder.truth["annotations"] = [{**common, "id": n, "bbox": box} for n, box in enumerate(places)]
        results = [{"image_id": image, "category_id": category, "bbox": box, "score": 0.5} for box in places]
        metrics = self.scored(folder, results, tmp_path, "--max-detections", "200", "--per-class")
        assert (metrics["bbox/AR100"], metrics["bbox/AR200"]) == pytest.approx((0.5, 1))
        assert "AR200" in capsys.readouterr().out
        assert eval_script.main(["--checkpoint", "run", "--max-detections", "200"]) == 1
        assert "run.eval_detections=200" in capsys.readouterr().err
        limited = score_all(trained(folder.open(), eval_detections=200), folder.open(), results)
        assert limited.metrics == metrics

    def test_a_category_that_is_not_listed(
        self, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder.truth["annotations"][1]["category_id"] = 4
        (tmp_path / "results.json").write_text("[]")
        arguments = ["--results", str(tmp_path / "results.json"), "--annotations", folder.written()]
        assert eval_script.main(arguments) == 1
        assert "annotations[1] (id 2): category_id: expected one that the json lists, got 4" in capsys.readouterr().err


def test_evaluation_of_a_set_of_boxes(folder: Folder) -> None:
    """Ids from 0, no areas, no sizes and no masks, by a model that has masks."""
    for number, annotation in enumerate(folder.truth["annotations"]):
        annotation |= {"id": number, "segmentation": [[]]}
        del annotation["area"]
    for image in folder.truth["images"]:
        del image["width"]
    source = folder.open()
    for data in (DATA, Data(short_side=32, long_side=64, workers=0, masks=False)):
        metrics = evaluate.evaluate(DarkSquare(), VARIABLES, source, data)
        assert metrics["bbox/AP50"] == pytest.approx(1)
        assert metrics["bbox/AP_s"] > 0.7
        assert len(metrics) == 12
    assert np.isin(source.usable, 1).all()
