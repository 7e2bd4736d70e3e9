import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.data import CocoFolder, Data, Tfds, eval_batches, open_source, train_batches
from jaxdet.data.pipeline.plans import left_out
from jaxdet.data.pipeline.ready import check_trainable
from jaxdet.data.sources.tfds_builder import FILES, find_splits, main, prepare


@pytest.fixture(scope="module")
def prepared(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    prepare(str(folder), str(scenes_folder))
    return folder


def test_records_are_those_of_the_folder(prepared, scenes_folder):
    for split, name in (("train", "train"), ("validation", "val")):
        stored = open_source(Tfds(str(prepared), split))
        plain = open_source(CocoFolder(str(scenes_folder / "images"), str(scenes_folder / f"instances_{name}.json")))
        assert stored.categories == plain.categories
        for field in ("sizes", "image_ids", "usable"):
            np.testing.assert_array_equal(getattr(stored, field), getattr(plain, field))
        for name in ("left_out", "maskless", "learned"):
            np.testing.assert_array_equal(stored.table[name], plain.table[name])
        assert len(stored) == len(plain)
        for index in range(len(plain)):
            np.testing.assert_array_equal(stored[index].image, plain[index].image)
            assert stored[index].annotations == plain[index].annotations
        assert stored.ground_truth() == plain.ground_truth()


def test_a_damaged_file_is_an_error_that_names_the_record(prepared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tfds"
    shutil.copytree(prepared, copy)
    (path,) = copy.rglob("*-train.array_record*")
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 3, len(content) // 2):  # some whole records in the middle
        content[position] ^= 255
    path.write_bytes(content)
    source = open_source(Tfds(str(copy), "train"))
    problems = []
    for index in range(len(source)):
        try:
            source[index]
        except ValueError as error:
            problems.append(str(error))
    assert 0 < len(problems) < len(source)
    assert all("expected a whole" in problem for problem in problems)


@pytest.mark.parametrize("workers", [0, 2])
def test_both_sources_give_identical_batches(prepared, scenes, small, workers):
    import dataclasses

    data = dataclasses.replace(small, workers=workers)
    stored = open_source(Tfds(str(prepared), "train"))
    with (
        train_batches(stored, data, seed=1, start_step=3, steps=4) as ours,
        train_batches(scenes, small, seed=1, start_step=3, steps=4) as theirs,
    ):
        for a, b in zip(ours, theirs, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
    with eval_batches(stored, data, batch_size=4) as ours, eval_batches(scenes, small, batch_size=4) as theirs:
        for a, b in zip(ours, theirs, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)


def test_reading_imports_no_tensorflow_and_no_model(prepared):
    code = (
        "import sys; from jaxdet.data import Tfds, open_source\n"
        f"record = open_source(Tfds({str(prepared)!r}, 'train'))[0]\n"
        "print(sorted({'tensorflow', 'flax', 'jaxdet.structures'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], capture_output=True)
    assert done.stdout.decode().strip() == "[]"


def test_the_version_folder_may_be_named(prepared):
    (version,) = (prepared / "jaxdet_coco").iterdir()
    assert len(open_source(Tfds(str(version), "validation"))) == 5


def test_a_wrong_folder_or_split_is_named(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"jaxdet_coco.*tfds_builder"):
        open_source(Tfds(str(tmp_path), "train"))
    with pytest.raises(ValueError, match=r"\['train', 'validation'\], got 'val'"):
        open_source(Tfds(str(prepared), "val"))


def test_annotations_of_any_form_survive(coco, one_box, tmp_path):
    first = one_box["annotations"][0]
    one_box["images"].append({**coco.image("b.png"), "id": 1})
    one_box["annotations"] += [
        {**first, "id": 2, "segmentation": {"size": [20, 30], "counts": [600]}, "iscrowd": 1, "extra": "ä"},
        {**first, "id": 3, "segmentation": {"size": [20, 30], "counts": "h`0"}, "area": 0.1 + 0.2, "ignore": 1},
    ]
    settings = coco.write(one_box)
    (coco.folder / "instances_train.json").write_text(Path(settings.annotations).read_text())
    prepare(str(tmp_path / "out"), str(coco.folder))
    stored = open_source(Tfds(str(tmp_path / "out"), "train"))
    assert stored.ground_truth() == one_box
    assert stored[0].annotations == open_source(settings)[0].annotations
    assert stored[1].annotations == ()


def test_layouts_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="manual_dir"):
        find_splits(tmp_path)
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text("{}")
    assert {split: images.name for split, (images, _) in find_splits(tmp_path).items()} == {
        "train": "train2017",
        "val": "val2017",
    }


def test_downloads_are_the_official_files_with_checksums():
    assert {url.rsplit("/", 1)[1] for url in FILES} == {
        "train2017.zip",
        "val2017.zip",
        "annotations_trainval2017.zip",
    }
    assert all(size > 0 and len(digest) == 64 and int(digest, 16) for size, digest in FILES.values())


def test_command_line_asks_for_an_origin(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data_dir", str(tmp_path)])
    assert "--manual_dir" in capsys.readouterr().err


def test_features_that_would_import_a_strangers_module(prepared, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    (tmp_path / "sideeffect.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (features,) = folder.rglob("features.json")
    text = features.read_text()
    features.write_text(text.replace("tensorflow_datasets.core.features.text_feature.Text", "sideeffect.Text", 1))
    assert features.read_text() != text
    with pytest.raises(ValueError, match=r"expected features of TFDS, one is of class 'sideeffect\.Text'"):
        open_source(Tfds(str(folder), "train"))


def test_what_earlier_builders_did_not_count_is_not_known(prepared, tmp_path):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    (file,) = folder.rglob("metadata.json")
    metadata = json.loads(file.read_text())
    for name in ("left_out", "maskless", "learned"):
        del metadata["train"][name]
    file.write_text(json.dumps(metadata))
    source, data = open_source(Tfds(str(folder), "train")), Data(workers=0)
    check_trainable(source, data)
    assert all("images" in line for line in left_out(source, data))


@pytest.mark.parametrize("spoil", [
    lambda about: about.pop("sizes"),
    lambda about: about.update(image_ids=[1]),
    lambda about: about.update(image_ids=["x"] * 5),
    lambda about: about["sizes"].__setitem__(0, [10**6, 10**6]),
    lambda about: about["json"].update(categories=[3]),
    lambda about: about.update(maskless=[1]),
    lambda about: about.update(learned=[1, 2]),
])  # fmt: skip
def test_what_lies_beside_the_records_may_be_anything(prepared, tmp_path, spoil):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    (file,) = folder.rglob("metadata.json")
    metadata = json.loads(file.read_text())
    spoil(metadata["validation"])
    file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"TFDS .*copy.*: expected a whole data set, got"):
        open_source(Tfds(str(folder), "validation"))
