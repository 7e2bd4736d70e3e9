"""The folder of an export: what is in it, how it is written and refused, and how its loader uses the programs."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.commands import export as export_script
from jaxdet.data import Category, Data
from jaxdet.exporting import folder as folder_module
from tests.exporting.halves import grey, halves
from tests.modules import module_at

pytest.importorskip("flatbuffers", reason="jax.export writes its files by it: the extra `export`")


def loader_of(folder: Path) -> Any:
    return module_at(folder / "load.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both canvases, batches of one and of three, for here and for elsewhere."""
    target = tmp_path_factory.mktemp("exported") / "halves"
    seen: list[tuple[int, int]] = []
    settings = {"platforms": ["cpu", "tpu"], "batch_sizes": [3, 1], "score_threshold": 0.3}
    assert jaxdet.export(halves(), target, **settings, progress=lambda *now: seen.append(now)) == target
    assert seen == [(done, 8) for done in range(1, 9)]
    return target


def test_what_is_in_it(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"programs", "weights.npz", "export.json", "load.py"}
    said = json.loads((exported / "export.json").read_text())
    files = {entry["file"] for entry in said["programs"]}
    assert files == {f"programs/{path.name}" for path in (exported / "programs").iterdir()}
    assert len(files) == 8
    assert said["categories"] == [{"id": 3, "name": "dog"}, {"id": 90, "name": "cat"}]
    assert said["outputs"]["masks"]["shape"] == ["batch", 5, 28, 28]
    assert said["preprocessing"]["canvas_longs"] == [64]
    assert said["jaxdet"] == jaxdet.__version__
    assert all(entry["calling_convention_version"] > 0 for entry in said["programs"])


def test_batches_and_canvases(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of any sizes come back in their order, by as few programs as there are for them."""
    model = loader_of(exported).Model()
    assert model.canvases == {(32, 64), (64, 32)}
    used: list[tuple[list[int], int, int]] = []
    real = type(model)._run

    def counted(self: Any, entry: dict[str, Any], images: list[np.ndarray], limit: float) -> Any:
        used.append((entry["canvas"], entry["batch"], len(images)))
        return real(self, entry, images, limit)

    monkeypatch.setattr(type(model), "_run", counted)
    reds = [250, 100, 200, 10, 150, 240]
    sizes = [(32, 64), (30, 64), (64, 32), (16, 60), (20, 21), (10, 30)]
    found = model.predict([grey(red, hw) for red, hw in zip(reds, sizes, strict=True)], score_threshold=0)
    assert used == [([32, 64], 3, 3), ([32, 64], 3, 2), ([64, 32], 1, 1)]
    for one, red, (height, width) in zip(found, reds, sizes, strict=True):
        np.testing.assert_allclose(one.scores, [red / 255, 0.4], rtol=1e-6)
        np.testing.assert_allclose(one.boxes, [[0, 0, width / 2, height], [width / 2, 0, width, height]], atol=1e-3)
        assert one.masks.shape == (2, height, width)
        assert (one.names, one.category_ids, one.labels.tolist()) == (["cat", "dog"], [90, 3], [1, 0])
        assert one.to_coco(7)[1]["mask_score"] == pytest.approx(0.2)
    assert [len(model(grey(100)))] == [2]  # 100 / 255 and 0.4 are above 0.3
    assert len(model(grey(100), score_threshold=0.395)) == 1
    nothing = model(grey(0), score_threshold=1)
    assert (len(nothing), nothing.masks.shape, nothing.to_coco()) == (0, (0, 32, 64), [])
    with pytest.raises(ValueError, match="0 to 1, got 2"):
        model(grey(0), score_threshold=2)


def test_warm_up(exported: Path) -> None:
    model = loader_of(exported).Model(exported)
    model.warm_up()
    assert len(model._compiled) == 4


def test_the_loader_as_a_program(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, wide, none = loader_of(exported), str(tmp_path / "wide.png"), str(tmp_path / "none.png")
    Image.fromarray(grey(100, (30, 64))).save(wide)
    assert module.main([wide, wide]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [[result["image_id"] for result in results] for results in found] == [[0, 0], [1, 1]]
    assert module.main([wide, "--score-threshold", "0.395", "--folder", str(exported)]) == 0
    assert [result["category_id"] for result in json.loads(capsys.readouterr().out)[0]] == [3]
    for words, message in (
        ([wide, none], "none.png: expected a whole image file"),
        ([wide, "--score-threshold", "2"], "0 to 1, got 2"),
        ([wide, "--folder", str(tmp_path)], "no export.json"),
    ):
        assert module.main(words) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        module.main([])
    assert "required: IMAGE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("export.json", b'{"format": 2, "prog', r"export\.json: expected the description of an export, it is damaged"),
        ("export.json", b"[]", r"export\.json: expected the description of an export"),
        ("weights.npz", None, r"weights\.npz: expected a file of the export, got No such file"),
        ("weights.npz", b"PK", r"weights\.npz: expected the file that was exported, it is damaged"),
        ("programs/cpu-64x32-3.stablehlo", None, r"cpu-64x32-3\.stablehlo: expected a file .*copy the folder again"),
        ("programs/cpu-64x32-3.stablehlo", b"", r"cpu-64x32-3\.stablehlo: .*damaged or another one"),
        ("programs/tpu-64x32-3.stablehlo", None, None),
    ],
)
def test_an_incomplete_folder(
    exported: Path, tmp_path: Path, name: str, content: bytes | None, message: str | None
) -> None:
    """What is missing or damaged is said when the model is made, of this device's files alone."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    module = loader_of(folder)
    if message is None:
        module.Model()
        return
    with pytest.raises(ValueError, match=message):
        module.Model()


def test_another_version(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loader_of(exported)
    monkeypatch.setattr(module, "FORMAT", 3)
    with pytest.raises(ValueError, match="expected format 3, got 2"):
        module.Model()
    monkeypatch.setattr(module, "FORMAT", 2)

    def too_new(_: bytearray) -> None:
        raise ValueError("unsupported calling convention version 99")

    monkeypatch.setattr(module.jax.export, "deserialize", too_new)
    with pytest.raises(ValueError, match=r"cpu-.*expected jax .*, by which it was exported, .*, got .* version 99"):
        module.Model()(grey(9))


def test_another_device(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loader_of(exported)
    monkeypatch.setattr(module, "platform_of", lambda _: "cuda")
    with pytest.raises(ValueError, match=r"a program for this device \(cpu\), it has cpu, tpu; .*--platforms"):
        module.Model(exported)


def test_one_size(tmp_path: Path) -> None:
    jaxdet.export(halves(), tmp_path / "out", image=(480, 640))
    model = loader_of(tmp_path / "out").Model()
    assert model.canvases == {(32, 64)}
    model(grey(9, (3, 4)))
    with pytest.raises(ValueError, match=r"4 x 3 pixels .* needs a program for 64 x 32, .* 32 x 64; .*--image"):
        model(grey(9, (4, 3)))


def test_a_square_has_one_canvas(tmp_path: Path) -> None:
    jaxdet.export(halves(Data(short_side=64, long_side=64)), tmp_path / "out")
    assert len(list((tmp_path / "out" / "programs").iterdir())) == 1


def test_an_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    jaxdet.export(halves(), target, image=(3, 4))
    jaxdet.export(halves(), target, image=(4, 3))
    assert [path.name for path in (target / "programs").iterdir()] == ["cpu-64x32-1.stablehlo"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out exists: .*with notes\.txt in it"):
        jaxdet.export(halves(), target)
    assert (target / "notes.txt").read_text() == "mine"
    for other in (tmp_path / "file", tmp_path / "folder"):
        (other.mkdir if other.name == "folder" else other.touch)()
        with pytest.raises(ValueError, match="that is no export"):
            jaxdet.export(halves(), other)


def test_an_error_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    jaxdet.export(halves(), target, image=(3, 4))
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module.np, "savez", full)
    with pytest.raises(OSError, match="No space") as caught:
        jaxdet.export(halves(), target)
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"platforms": ["cpu", "npu"]}, "expected some of cpu, cuda, rocm, tpu, got npu"),
        ({"platforms": "cpu"}, "expected some of"),
        ({"batch_sizes": [0]}, r"whole numbers from 1, got \[0\]"),
        ({"batch_sizes": []}, "whole numbers from 1"),
        ({"image": (0, 5)}, "image: expected sides of 1 to 65535"),
        ({"score_threshold": 1.5}, "0 to 1, got 1.5"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        jaxdet.export(halves(), tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_categories(tmp_path: Path) -> None:
    jaxdet.export(halves(categories=()), tmp_path / "out", image=(3, 4))
    assert loader_of(tmp_path / "out").Model()(grey(250)).names == ["class 2"]
    with pytest.raises(ValueError, match="num_classes=2"):
        jaxdet.export(halves(categories=(Category(1, "x"),)), tmp_path / "other")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr("jaxdet.trained.load", lambda *_, **__: halves())
    monkeypatch.setattr(folder_module, "load", lambda *_, **__: halves())
    assert export_script.main(["runs/mine", out, "--platforms", "cpu", "cuda", "--batch", "1", "2"]) == 0
    assert "out: 8 programs of" in capsys.readouterr().out
    assert export_script.main(["runs/mine", out, "--platforms", "gpu"]) == 1
    assert "got gpu; an NVIDIA GPU is cuda" in capsys.readouterr().err


def test_the_command_without_a_folder_asks_for_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export_script.main(["runs/mine"])
    assert capsys.readouterr().err.endswith("required: OUT\n")


def test_the_command_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_script.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_flatbuffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else real(name))
    assert export_script.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "pip install 'jaxdet[export]'" in capsys.readouterr().err
