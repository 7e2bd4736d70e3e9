import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.checkpoints.names.mmdet import to_mmdet
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.commands import eval as eval_script
from jaxdet.commands import predict as predict_script
from jaxdet.config import to_data
from jaxdet.data import Category, CocoFolder, Data, load_image, single_batch, write_scenes
from jaxdet.data.scenes.write import cached_scenes
from jaxdet.data.settings import Scenes
from jaxdet.evaluation.evaluate import open_checkpoint
from jaxdet.experiment import Experiment, Run
from jaxdet.models.dense import rpn
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN
from jaxdet.prediction import find_images, predict_files, predictor
from jaxdet.structures import Batch, Detections, Masks
from jaxdet.trained import Trained, load

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class Half:
    """Sees label 1 in the left half of every image, surely, and label 0 in the right half, less so."""

    num_classes = 2

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        height, width = batch.true_hw[0]
        boxes = jnp.asarray([[[0, 0, width / 2, height], [width / 2, 0, width, height]]])
        scores = jnp.asarray([[0.9, 0.4]]) * variables["confidence"]
        valid = jnp.ones((1, 2), bool)
        labels, index = jnp.asarray([[1, 0]]), jnp.asarray([[0, 1]])
        return Detections(boxes, scores, labels, valid, index, Masks(jnp.ones((1, 2, 28, 28)), boxes))


def trained(
    confidence: float = 1.0, categories: tuple[Category, ...] = (Category(3, "dog"), Category(90, "cat"))
) -> Trained:
    data = Data(short_side=32, long_side=64, workers=0)
    experiment: Any = SimpleNamespace(model=Half(), data=data)
    return Trained(experiment, {"confidence": np.array(confidence, np.float32)}, categories, 1)


def write(path: Path, hw: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*hw, 3), 120, np.uint8)).save(path)
    return path


class TestFiles:
    def test_pictures_and_results(self, tmp_path: Path) -> None:
        write(tmp_path / "in" / "b.jpg")
        write(tmp_path / "in" / "a.PNG", (60, 40))
        (tmp_path / "in" / "notes.txt").write_text("")
        report = predict_files(trained(), [tmp_path / "in"], tmp_path / "out", score_threshold=0.3)
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results == report.results
        assert [(each["image_id"], each["category_id"]) for each in results] == [(0, 90), (0, 3), (1, 90), (1, 3)]
        assert [Path(each["file_name"]).name for each in results] == ["a.PNG"] * 2 + ["b.jpg"] * 2
        np.testing.assert_allclose(results[0]["bbox"], [0, 0, 20, 60], atol=0.5)
        assert results[2]["segmentation"]["size"] == [40, 60]
        picture = load_image(tmp_path / "out" / "b.png")
        assert picture.shape == (320, 480, 3)
        assert (picture[:, :220] != 120).any(axis=-1).mean() > 0.9

    def test_threshold(self, tmp_path: Path) -> None:
        report = predict_files(trained(), [write(tmp_path / "a.png")], tmp_path / "out")
        assert [each["category_id"] for each in report.results] == [90]

    def test_nothing_found_leaves_the_picture(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.png")
        predict_files(trained(0.1), [source], tmp_path / "out")
        np.testing.assert_array_equal(load_image(tmp_path / "out" / "a.png"), load_image(source))
        assert json.loads((tmp_path / "out" / "results.json").read_text()) == []

    def test_broken_image_is_named_and_the_others_go_on(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
        (tmp_path / "b.png").write_bytes(b"")
        write(tmp_path / "c.png")
        report = predict_files(trained(), [tmp_path], tmp_path / "out")
        assert [path.name for path in report.failed] == ["a.jpg", "b.png"]
        assert "a.jpg" in report.failed[tmp_path / "a.jpg"]
        assert [path.name for path in report.pictures] == ["c.png"]
        assert {each["image_id"] for each in report.results} == {2}

    def test_equal_names_and_own_folder(self, tmp_path: Path) -> None:
        files = [write(tmp_path / "x" / "a.png"), write(tmp_path / "y" / "a.jpg"), write(tmp_path / "a.png")]
        before = files[2].read_bytes()
        report = predict_files(trained(), files, tmp_path)
        assert len(set(report.pictures.values())) == 3
        assert files[2].read_bytes() == before

    def test_classes_without_names(self, tmp_path: Path) -> None:
        report = predict_files(trained(categories=()), [write(tmp_path / "a.png")], tmp_path / "out")
        assert [each["category_id"] for each in report.results] == [2]

    def test_wrong_number_of_names(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="num_classes=2"):
            predict_files(trained(categories=(Category(1, "x"),)), [write(tmp_path / "a.png")], tmp_path / "out")

    @pytest.mark.parametrize("threshold", [-0.1, 50.0, float("nan")])
    def test_threshold_out_of_range(self, threshold: float, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="0 to 1"):
            predict_files(trained(), [write(tmp_path / "a.png")], tmp_path / "out", score_threshold=threshold)

    def test_missing_and_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"nothing.png is not there"):
            find_images([tmp_path / "nothing.png"])
        with pytest.raises(ValueError, match="has none"):
            find_images([tmp_path])

    def test_a_single_path_is_no_list_of_letters(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.png")
        assert find_images(file) == find_images(str(file)) == find_images(str(tmp_path)) == [file]

    @pytest.mark.parametrize(("upright", "hw"), [(True, (60, 40)), (False, (40, 60))])
    def test_a_turned_picture_is_predicted_and_drawn_as_it_is_seen(
        self, upright: bool, hw: tuple[int, int], tmp_path: Path
    ) -> None:
        """Half sees the left half of what it is given: turned, that is another half of the stored pixels."""
        exif = Image.Exif()
        exif[0x112] = 6
        Image.fromarray(np.full((40, 60, 3), 120, np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
        file = tmp_path / "phone.jpg"
        report = predict_files(trained(), [file], tmp_path / "out", upright=upright)
        (result,) = report.results
        assert result["segmentation"]["size"] == list(hw)
        np.testing.assert_allclose(result["bbox"], [0, 0, hw[1] / 2, hw[0]], atol=0.5)
        picture = load_image(tmp_path / "out" / "phone.png")
        assert picture.shape[0] / picture.shape[1] == pytest.approx(hw[0] / hw[1])
        (found,) = jaxdet.predict(trained(), file.read_bytes(), upright=upright)
        assert found.to_coco()[0]["bbox"] == result["bbox"]

    def test_named_twice_is_one(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.png")
        assert find_images([file, tmp_path]) == [file]

    def test_a_folder_gives_all_kinds_of_images_that_are_read(self, tmp_path: Path) -> None:
        for name in ("a.JPG", "b.pgm", "c.jp2", "d.eps", "e.json", "f"):
            (tmp_path / name).touch()
        assert [path.name for path in find_images([tmp_path])] == ["a.JPG", "b.pgm", "c.jp2"]


class TestWeights:
    """What `jaxdet.load` returned keeps what lies on the device."""

    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The variables of each prediction."""
        seen: list[Any] = []

        def predict_batch(model: Any, mesh: Any, variables: Any, batch: Batch, limits: None) -> Detections:
            seen.append(variables)
            return real(model, mesh, variables, batch, limits)

        real = predictor.predict_batch
        monkeypatch.setattr(predictor, "predict_batch", predict_batch)
        return seen

    def test_they_go_to_the_device_once(self, seen: list[Any]) -> None:
        model, image = trained(), np.zeros((40, 60, 3), np.uint8)
        for threshold in (0.5, 0.3):
            jaxdet.predict(model, image, score_threshold=threshold)
        other = dataclasses.replace(model, step=2)
        jaxdet.predict(other, image)
        assert isinstance(seen[0]["confidence"], jax.Array)
        assert seen[0]["confidence"] is seen[1]["confidence"] is seen[2]["confidence"]

    def test_other_weights_in_their_place_are_taken(self) -> None:
        model, image = trained(), np.zeros((40, 60, 3), np.uint8)
        assert len(jaxdet.predict(model, image)[0]) == 1
        weaker = dataclasses.replace(model, variables={"confidence": np.float32(0.1)})
        assert [len(found) for found in jaxdet.predict(weaker, image)] == [0]
        assert len(jaxdet.predict(model, image)[0]) == 1

    def test_a_copy_of_a_model_carries_no_device_arrays(self) -> None:
        model = trained()
        jaxdet.predict(model, np.zeros((40, 60, 3), np.uint8))
        assert model.copies._made
        assert not pickle.loads(pickle.dumps(model.copies))._made


def test_images_are_looked_at_before_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images: expected .*, got int 3"):
        jaxdet.predict(tmp_path / "none", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call", [lambda: jaxdet.load(3), lambda: jaxdet.predict(3, "a.png"), lambda: jaxdet.evaluate(3)]
)
def test_a_number_is_no_checkpoint(call: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: expected the path of a run folder.*, got int"):
        call()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, of a small model that knows nothing, and ``data`` beside it."""
    folder = tmp_path_factory.mktemp("run")
    write_scenes(folder / "data", train=0, val=3, size=64)
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18),
        neck=FPN(channels=8),
        rpn=rpn(test=(50, 20)),
        heads=(BoxBranch(SingleLevel(size=7), BoxHead(FC2(channels=16))),),
        parts=(MaskPrediction((MaskBranch(SingleLevel(size=14), FCN(channels=8, convs=1)),)),),
    )
    val = CocoFolder(str(folder / "data" / "images"), str(folder / "data" / "instances_val.json"))
    data = Data(val=val, short_side=64, long_side=64, workers=0)
    batch = single_batch(np.zeros((64, 64, 3), np.uint8), data)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, method="predict"))
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        """Boxes stay where the anchors are: any deltas of such weights would take them out of the image."""
        spread = 0 if "deltas" in jax.tree_util.keystr(path) else 0.05
        return np.abs(rng.normal(0, spread, leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    truth = json.loads((folder / "data" / "instances_val.json").read_text())
    metadata = {
        "config": to_data(Experiment(model, data, run=Run(eval_batch=1))),
        "categories": [{"id": each["id"], "name": each["name"]} for each in truth["categories"]],
        "version": jaxdet.__version__,
    }
    with CheckpointStore(folder) as store:
        store.save(1, {"variables": variables}, metadata)
    return folder


class TestCheckpoint:
    def test_three_ways_of_evaluation_agree(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, numbers = tmp_path / "results.json", tmp_path / "metrics.json"
        main = eval_script.main
        assert main(["--checkpoint", str(run), "--out", str(out), "--metrics", str(numbers), "--per-class"]) == 0
        assert "cross" in capsys.readouterr().out
        metrics = json.loads(numbers.read_text())
        assert len(metrics) == 24
        assert all(value == -1 or 0 <= value <= 1 for value in metrics.values())
        truth = str(run / "data" / "instances_val.json")
        assert main(["--results", str(out), "--annotations", truth, "--metrics", str(numbers), "--fast"]) == 0
        assert json.loads(numbers.read_text()) == pytest.approx(metrics)
        found = jaxdet.evaluate(run, images=str(run / "data" / "images"), annotations=truth)
        assert found == pytest.approx(metrics)

    def test_predict_equals_eval(self, run: Path, tmp_path: Path) -> None:
        images = sorted((run / "data" / "images").iterdir())
        arguments = ["--checkpoint", str(run), "--out", str(tmp_path), "--score-threshold", "0"]
        assert predict_script.main([*arguments, str(images[0].parent)]) == 0
        results = json.loads((tmp_path / "results.json").read_text())
        model = load(run)
        per_image = jaxdet.predict(model, [images[0], load_image(images[1])], score_threshold=0)
        assert len(per_image) == 2
        assert len(per_image[0])
        flat = [
            result | {"file_name": str(images[i])} for i, each in enumerate(per_image) for result in each.to_coco(i)
        ]
        assert flat == [result for result in results if result["image_id"] < 2]
        (again,) = jaxdet.predict(model, images[0], score_threshold=0)
        assert again.to_coco() == per_image[0].to_coco()
        assert len(repr(model)) < 200
        assert "TwoStage of" in repr(model)
        assert "8 categories (disc, ring, square, ...), step 1" in repr(model)
        assert repr(jaxdet.Predictor(model)) == f"<Predictor: {model.summary}; score_threshold=0.5>"
        assert repr(jaxdet.Predictor(model, max_detections=3)).endswith("; score_threshold=0.5, max_detections=3>")
        assert ", 8 classes, " in repr(dataclasses.replace(model, categories=()))

    def test_settings_stand_anywhere_in_the_line(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        image = sorted((run / "data" / "images").iterdir())[0]
        (tmp_path / "model=a.jpg").write_bytes(image.read_bytes())  # a file, whatever its name looks like
        few = "model.suppression.max_detections=2"
        arguments = [few, str(run), "model=a.jpg", "--score-threshold", "0", str(image)]
        assert predict_script.main([*arguments, "model.suppression.iou_threshold=0.4"]) == 0
        assert "4 detections in 2 images" in capsys.readouterr().out
        numbers = tmp_path / "metrics.json"
        assert eval_script.main([few, str(run), "--metrics", str(numbers), "run.eval_batch=2"]) == 0
        for script in (predict_script, eval_script):
            wrong = ["model.suppression.iou=0.4", "--checkpoint", str(run)] + [str(image)] * (script is predict_script)
            assert script.main(wrong) == 1
            assert "nearest valid key is 'model.suppression.iou_threshold'" in capsys.readouterr().err
        for script, words in (
            (predict_script, ["--checkpoint", str(run), few]),
            (predict_script, [str(run), few]),
            (predict_script, []),
            (eval_script, [few]),
        ):
            with pytest.raises(SystemExit):
                script.main(words)
            assert "expected RUN" in capsys.readouterr().err
        assert eval_script.main([str(run), "another"]) == 1
        assert "expected KEY=VALUE, got 'another'" in capsys.readouterr().err

    def test_hosts_join_before_anything_is_loaded(
        self, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def joined(**_: int) -> None:
            raise ValueError("joined")

        monkeypatch.setattr(jax.distributed, "initialize", joined)
        assert eval_script.main(["--checkpoint", str(run / "none"), "--distributed"]) == 1
        assert "joined" in capsys.readouterr().err

    def test_scenes_that_a_stranger_would_have_made_are_refused(self, run: Path, tmp_path: Path) -> None:
        own, elsewhere = load(run), Scenes("val", 2, 64, directory=str(tmp_path / "elsewhere"))

        def validated_on(scenes: Scenes) -> Trained:
            data = dataclasses.replace(own.experiment.data, val=scenes)
            return dataclasses.replace(own, experiment=dataclasses.replace(own.experiment, data=data))

        for scenes in (elsewhere, Scenes("val", 10**7, 64)):
            with pytest.raises(ValueError, match="is not there and is not made for a checkpoint: give images"):
                open_checkpoint(validated_on(scenes))
        assert not (tmp_path / "elsewhere").exists()
        cached_scenes(elsewhere)
        assert len(open_checkpoint(validated_on(elsewhere))[1]) == 2

    def test_broken_input_ends_with_1(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.png").write_bytes(b"x")
        arguments = ["--checkpoint", str(run), "--out", str(tmp_path / "out")]
        assert predict_script.main([*arguments, str(tmp_path)]) == 1
        assert "a.png" in capsys.readouterr().err
        assert predict_script.main([*arguments, str(tmp_path / "b.png")]) == 1
        assert "is not there" in capsys.readouterr().err

    def test_what_was_loaded_is_taken_as_it_is(self, run: Path) -> None:
        model = load(run)
        assert load(model) is model
        assert load(model, overrides=["model.suppression.max_detections=5"]) is not model

    def test_a_changed_setting_takes_no_weights_to_the_device_again(self, run: Path) -> None:
        model, image = load(run), np.zeros((64, 64, 3), np.uint8)
        jaxdet.predict(model, image)
        before = {path: copy for path, (_, copy) in model.copies._made.items()}
        jaxdet.predict(model, image, overrides=["model.suppression.max_detections=5"])
        assert all(before[path] is copy for path, (_, copy) in model.copies._made.items())

    def test_a_text_is_no_list_of_settings(self, run: Path) -> None:
        with pytest.raises(ValueError, match=r"overrides: expected a list of KEY=VALUE, got a text; write \['run"):
            load(run, overrides="run.seed=1")

    def test_weights_must_fit_a_changed_model(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert eval_script.main(["--checkpoint", str(run), "model.num_classes=3"]) == 1
        assert "head/logits" in capsys.readouterr().err
        assert eval_script.main(["--checkpoint", str(run), "model.num_clases=3"]) == 1
        assert "num_classes" in capsys.readouterr().err
        assert (
            load(run, overrides=["model.suppression.max_detections=5"]).experiment.model.suppression.max_detections == 5
        )

    def test_weight_file_with_a_config(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = load(run)
        np.savez(tmp_path / "weights.npz", **to_mmdet(model.variables))
        config = tmp_path / "config.py"
        config.write_text(f"import jaxdet\n\ndef get_config():\n    return jaxdet.load({str(run)!r}).experiment\n")
        arguments = ["--checkpoint", str(tmp_path / "weights.npz"), "--config", str(config)]
        assert eval_script.main([*arguments, "--out", str(tmp_path / "file.json")]) == 0
        assert eval_script.main(["--checkpoint", str(run), "--out", str(tmp_path / "run.json")]) == 0
        assert json.loads((tmp_path / "file.json").read_text()) == json.loads((tmp_path / "run.json").read_text())
        capsys.readouterr()
        assert eval_script.main(arguments[:2]) == 1
        assert "expected a run folder" in capsys.readouterr().err

    def test_images_without_annotations(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert eval_script.main(["--checkpoint", str(run), "--images", "x"]) == 1
        assert "annotations" in capsys.readouterr().err

    def test_no_checkpoint(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert eval_script.main(["--checkpoint", str(tmp_path)]) == 1
        assert eval_script.main(["--checkpoint", str(tmp_path / "none")]) == 1
        assert "none" in capsys.readouterr().err


class TestResultsAlone:
    def test_needs_annotations_and_no_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert eval_script.main(["--results", str(tmp_path / "r.json")]) == 1
        assert "--annotations" in capsys.readouterr().err
        for extra, name in ((["data.workers=0"], "overrides"), (["--process-id", "0"], "process_id")):
            assert eval_script.main(["--results", "r.json", "--annotations", "a.json", *extra]) == 1
            assert name in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["[]", "{", '{"images": []}'])
    def test_other_files(self, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.json").write_text(text)
        assert eval_script.main(["--results", "r.json", "--annotations", str(tmp_path / "a.json")]) == 1
        assert "a.json" in capsys.readouterr().err

    def test_empty_results_score_0_and_jax_is_not_imported(self, tmp_path: Path) -> None:
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        truth = {
            "images": [{"id": 1, "height": 9, "width": 9}],
            "categories": [{"id": 1, "name": "x"}],
            "annotations": [annotation | {"segmentation": [[0, 0, 5, 0, 5, 5]]}],
        }
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        (tmp_path / "results.json").write_text("[]")
        arguments = ["--results", "results.json", "--annotations", "truth.json", "--metrics", "metrics.json"]
        script = f"import sys, eval; code = eval.main({arguments}); sys.exit(3 if 'jax' in sys.modules else code)"
        python(script, tmp_path)
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["bbox/AP"] == 0
        assert metrics["segm/AP"] == 0


def python(script: str, folder: Path) -> None:
    root = Path(__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "PATH": "", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
