"""Test-time augmentation: equal views change nothing, mirrored ones are turned back, masks are means."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import jaxdet
from jaxdet.commands import eval as eval_script
from jaxdet.data import Category, CocoFolder, Data, open_source
from jaxdet.evaluation.augmented import TestTimeAugmentation, augmented_results, merge
from jaxdet.experiment import Run
from jaxdet.models.parts.boundaries import BoundaryRefinement
from jaxdet.runtime.mesh import data_mesh, replicate
from jaxdet.structures import Batch, Detections, Masks
from jaxdet.trained import Trained
from tests.evaluation.test_coco_eval import truth_of
from tests.models.small import (
    CLASSES,
    Pooled,
    Same,
    initialize,
    make_batch,
    make_model,
    make_refine,
    make_targets,
    make_yolact,
)

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
DATA = Data(short_side=32, long_side=64, workers=0)


class Bright:
    """Sees the rectangle around bright pixels, whose mask is their left half."""

    num_classes = 1

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        bright = batch.image[..., 0] > 128
        rows, columns = bright.any(2), bright.any(1)
        low = [line.argmax(-1) for line in (columns, rows)]
        high = [line.shape[-1] - line[:, ::-1].argmax(-1) for line in (columns, rows)]
        boxes = jnp.stack([*low, *high], -1)[:, None].astype(jnp.float32)
        # Of a larger image it is surer.
        scores = jnp.clip(batch.true_hw[:, :1] / 100, 0, 1)
        zeros = jnp.zeros((len(boxes), 1), jnp.int32)
        values = jnp.zeros((len(boxes), 1, 16, 16)).at[..., :8].set(1.0)
        return Detections(boxes, scores, zeros, bright.any((1, 2))[:, None], zeros, Masks(values, boxes))


def bright(augment: TestTimeAugmentation | None) -> jaxdet.Prediction:
    experiment: Any = SimpleNamespace(model=Bright(), data=DATA)
    trained = Trained(experiment, {"none": np.zeros(1)}, (Category(7, "thing"),), 1)
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 6:26] = 255
    (found,) = jaxdet.Predictor(trained, score_threshold=0.1, augment=augment)(image)
    return found


def test_a_view_like_the_plain_one_changes_nothing() -> None:
    plain = bright(None)
    assert len(plain) == 1
    assert bright(TestTimeAugmentation(flip=False)).results == plain.results
    assert bright(TestTimeAugmentation(flip=False, short_sides=(32,))).results == plain.results


def test_views_are_one_object_with_the_best_score_and_the_mean_mask() -> None:
    """The mirrored image has the other half as its mask, turned back; of both, half of each pixel is inside."""
    plain, both = bright(None), bright(TestTimeAugmentation(flip=True))
    np.testing.assert_allclose(both.boxes, plain.boxes, atol=1)
    assert plain.masks is not None
    assert both.masks is not None
    assert plain.masks[0, 12:28, 7:15].all()
    assert not plain.masks[0, :, 18:].any()
    assert both.masks[0, 12:28, 8:24].mean() > 0.9
    sizes = bright(TestTimeAugmentation(flip=False, short_sides=(32, 64)))
    assert (len(sizes), len(both)) == (1, 1)
    np.testing.assert_allclose(sizes.scores, [0.64], atol=0.02)


def run(model: Any, augment: TestTimeAugmentation, image: np.ndarray, variables: Any) -> list[dict[str, Any]]:
    mesh, data = data_mesh(jax.local_devices()[:1]), Data(short_side=64, long_side=64, workers=0)
    return augmented_results(model, mesh, replicate(variables, mesh), image, data, augment, range(1, CLASSES + 1))


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> TestTimeAugmentation:
    """Two views that are equal, as `TestTimeAugmentation` makes none."""
    monkeypatch.setattr(TestTimeAugmentation, "views", lambda _, data: iter([(data, False), (data, False)]))
    return TestTimeAugmentation()


def masks(results: list[dict[str, Any]]) -> np.ndarray:
    return np.array([coco_mask.decode(each["segmentation"]) for each in results], bool)


@pytest.mark.parametrize("kind", ["boxes", "own"])
def test_equal_views_give_what_one_gives(kind: str, request: pytest.FixtureRequest) -> None:
    """By masks of given boxes, or, of a one-stage model, by its own."""
    model = make_yolact() if kind == "own" else make_model(backbone=Pooled(), neck=Same())
    batch = make_batch([make_targets(0)])
    image = np.ascontiguousarray(batch.image[0, :60, :56])
    # Initial outputs are all but 0, so that boxes are the anchors; louder ones of this model lie outside of the image.
    variables = (
        jax.jit(lambda: model.init(jax.random.key(0), batch, method="predict"))()
        if kind == "own"
        else initialize(model, batch)
    )
    plain = run(model, TestTimeAugmentation(flip=False), image, variables)
    mirrored = run(model, TestTimeAugmentation(flip=True), image, variables)
    merged = run(model, request.getfixturevalue("twice"), image, variables)
    assert getattr(model, "describes_given", False) == (kind == "boxes")
    assert len(plain) > 3
    assert [(each["category_id"], each["score"]) for each in merged] == [
        (each["category_id"], each["score"]) for each in plain
    ]
    np.testing.assert_allclose([each["bbox"] for each in merged], [each["bbox"] for each in plain], atol=1e-3)
    assert (masks(merged) != masks(plain)).mean() < 1e-3
    assert [each["score"] for each in mirrored] != [each["score"] for each in plain]
    assert all(each["segmentation"]["size"] == [60, 56] for each in mirrored)


def test_parts_that_move_boxes_are_left_out_and_refining_is_not_asked() -> None:
    parts = make_model().parts
    assert make_model(parts=(*parts, BoundaryRefinement())).describes_given
    refining = make_model(parts=(make_refine(),))
    assert not refining.describes_given
    with pytest.raises(ValueError, match=r"expected parts that can be asked .*Part\.on_given"):
        jax.eval_shape(lambda: refining.init(jax.random.key(0), make_batch([make_targets(0)]), None, method="describe"))


def found(*rows: tuple[float, float, int]) -> Detections:
    """Boxes of 10 x 10 pixels at x, with a score and a label."""
    number = len(rows)
    x, scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], -1).astype(np.float32)
    return Detections(boxes, scores.astype(np.float32), labels.astype(np.int32), np.ones(number, bool), labels * 0)


def test_suppression_over_views() -> None:
    first, second = found((0, 0.5, 0), (50, 0.9, 1)), found((1, 0.8, 0), (2, 0.7, 0), (50, 0.6, 0))
    kept, members = merge([first, second], 0.5, 9)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert members == [[(0, 1)], [(1, 0), (0, 0)], [(1, 2)]]
    assert merge([first, second], 0.5, 2)[0].scores.tolist() == pytest.approx([0.9, 0.8])
    nothing = jax.tree.map(lambda leaf: leaf[:0], first)
    assert len(merge([nothing, nothing], 0.5, 9)[0].scores) == 0


def test_words_of_the_command() -> None:
    assert TestTimeAugmentation.from_text("flip,600,800") == TestTimeAugmentation(True, (600, 800))
    assert TestTimeAugmentation.from_text("600") == TestTimeAugmentation(False, (600,))
    assert TestTimeAugmentation.from_text("flip") == TestTimeAugmentation()
    for wrong in ("", "flop", "600x800", "-5", "0"):
        with pytest.raises(ValueError, match="--tta: expected flip, short sides"):
            TestTimeAugmentation.from_text(wrong)
    with pytest.raises(ValueError, match="each short side once"):
        TestTimeAugmentation.from_text("600,600")
    sizes = [(data.short_side, data.long_side, flip) for data, flip in TestTimeAugmentation(True, (16,)).views(DATA)]
    assert sizes == [(16, 32, False), (16, 32, True)]


def test_evaluation_sees_each_image_several_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every image once, in the data's own numbers; a mean of both halves is the rectangle that the truth is."""
    for name, left in ((7, 6), (9, 30)):
        image = np.zeros((100, 120, 3), np.uint8)
        image[10:30, left : left + 20] = 255
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    truth = truth_of((7, 3, 6, 10, 20), (9, 3, 30, 10, 20))
    truth |= {"categories": truth["categories"][1:]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    source = open_source(CocoFolder(str(tmp_path), str(tmp_path / "truth.json")))
    data = Data(short_side=100, long_side=120, workers=0)
    experiment: Any = SimpleNamespace(model=Bright(), data=data, run=Run(eval_batch=1))
    trained = Trained(experiment, {"none": np.zeros(1)}, source.categories, 1)
    monkeypatch.setattr("jaxdet.evaluation.evaluate.open_checkpoint", lambda *_, **__: (trained, source))
    scores = {}
    for tta in ([], ["--tta", "flip"]):
        numbers = tmp_path / "metrics.json"
        assert eval_script.main(["--checkpoint", "run", "--metrics", str(numbers), *tta]) == 0
        scores[len(tta)] = json.loads(numbers.read_text())
    assert scores[0]["bbox/AP50"] == scores[2]["bbox/AP50"] == pytest.approx(1)
    assert scores[0]["segm/AP75"] == pytest.approx(0)
    assert scores[2]["segm/AP75"] == pytest.approx(1)
    assert eval_script.main(["--checkpoint", "run", "--tta", "flop"]) == 1
    assert "--tta: expected flip" in capsys.readouterr().err
