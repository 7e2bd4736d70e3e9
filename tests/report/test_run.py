"""A report of a model: it detects, its numbers are those of evaluation, and its costs are told."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.data import Category, CocoFolder, Data
from jaxdet.experiment import Run
from jaxdet.report import report
from jaxdet.structures import Batch, Detections
from jaxdet.trained import Trained
from tests.evaluation.test_coco_eval import found, truth_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class Corner:
    """Sees label 0 in the upper left 40 pixels of every image, and label 1 beside it."""

    num_classes = 2

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        boxes = jnp.asarray([[[0.0, 0, 40, 40], [40, 0, 80, 40]]])
        scores = jnp.asarray([[0.9, 0.4]]) * variables["params"]["confidence"].sum()
        return Detections(boxes, scores, jnp.asarray([[0, 1]]), jnp.ones((1, 2), bool), jnp.asarray([[0, 1]]))


def test_a_model_and_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What processes compare is the config as data, which a model of a test cannot be.
    monkeypatch.setattr("jaxdet.evaluation.evaluate._described", lambda opened: {})
    for name in (7, 9):
        Image.new("RGB", (120, 100)).save(tmp_path / f"{name}.png")
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(truth_of((7, 3, 0, 0, 40), (9, 90, 0, 0, 40))))
    data = Data(val=CocoFolder(str(tmp_path), str(truth)), short_side=100, long_side=120, workers=0, masks=False)
    experiment: Any = SimpleNamespace(model=Corner(), data=data, run=Run(eval_batch=1))
    categories = Category(3, "dog"), Category(90, "cat")
    model = Trained(experiment, {"params": {"confidence": np.full(2, 0.5, np.float32)}}, categories, 1)
    (tmp_path / "none.json").write_text("[]")

    first, other = report(model, other=tmp_path / "none.json", out=tmp_path / "out")

    assert first["coco"] == jaxdet.evaluate(model)
    assert first["bbox"]["AP50"] == pytest.approx(first["coco"]["bbox/AP50"], abs=1e-12)
    # The dog is found once, and once seen where the cat is; beside them is nothing.
    assert first["bbox"]["errors"] == {
        "classification": 1, "localization": 0, "both": 0, "duplicate": 0, "background": 2, "missed": 0,
    }  # fmt: skip
    assert first["model"]["parameters"] == 2
    assert first["model"]["flops"] > 0
    assert first["model"]["images_per_second"] > 0
    assert other["bbox"]["errors"] == dict.fromkeys(other["bbox"]["errors"], 0) | {"missed": 2}
    assert "segm" not in first
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"0.js", "0.jpg", "1.js", "1.jpg"}


def test_mask_scores_below_0_count_as_0(tmp_path: Path) -> None:
    """A branch that regresses IoU says less than none of a mask at times; COCO's scoring takes that too."""
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(truth_of((7, 3, 0, 0, 40))))
    wrong = found(7, 3, 50, 50, 20) | {"mask_score": 0.5}
    results.write_text(json.dumps([found(7, 3, 0, 0, 40) | {"mask_score": -0.1}, wrong]))
    (numbers,) = report(results=results, truth=truth, out=tmp_path / "out")
    assert numbers["bbox"]["AP50"] == pytest.approx(1)
    assert numbers["segm"]["AP50"] == pytest.approx(0.5)
    results.write_text(json.dumps([found(7, 3, 0, 0, 40) | {"score": 1.5}]))
    with pytest.raises(ValueError, match=r"every score from 0 to 1, got 1\.5"):
        report(results=results, truth=truth, out=tmp_path / "out")


@pytest.mark.parametrize("wrong", ["missing", "broken"])
def test_wrong_images_leave_nothing(wrong: str, tmp_path: Path) -> None:
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(truth_of((7, 3, 0, 0, 40))))
    results.write_text(json.dumps([found(7, 3, 0, 0, 40)]))
    (tmp_path / "pictures").mkdir()
    if wrong == "broken":
        (tmp_path / "pictures" / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"--images .*pictures: expected a file for every|7\.png"):
        report(results=results, truth=truth, images=tmp_path / "pictures", out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"truth.json", "results.json", "pictures"}
