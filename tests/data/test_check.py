import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.check import check, find_sets, main


def _kinds(settings, severity: str | None = None, **options) -> Counter:
    findings = check(settings.annotations, settings.images, **options).findings
    return Counter(finding.kind for finding in findings if severity in (None, finding.severity))


def test_a_good_set_has_no_findings(coco, one_box):
    one_box["categories"] = one_box["categories"][:1]
    report = check(*_paths(coco.write(one_box)))
    assert report.findings == []
    assert report.counts["images"] == report.counts["annotations"] == report.counts["small instances"] == 1


def _paths(settings) -> tuple[str, str]:
    return settings.annotations, settings.images


def test_scenes_have_no_errors(scenes_folder, capsys):
    assert main([str(scenes_folder)]) == 0
    text = capsys.readouterr().out
    assert "no errors" in text
    assert "warning" not in text
    assert "that no json names" not in text


SPOILT = {
    "unknown category": {"category_id": 4},
    "annotation of an unknown image": {"image_id": 8},
    "box malformed": {"bbox": [1, 2, 3]},
    "box empty": {"bbox": [2, 3, 0, 8]},
    "box outside the image": {"bbox": [40, 3, 10, 8]},
    "box partly outside the image": {"bbox": [25, 3, 10, 8], "segmentation": [[25, 3, 30, 3, 30, 11, 25, 11]]},
    "box under one pixel (not trained on)": {"bbox": [2, 3, 0.5, 0.5]},
    "area not above 0 (not trained on)": {"area": 0},
    "no area (that of the box is used)": {"area": None},
    "no segmentation (needs data.masks=False)": {"segmentation": []},
    "segmentation unreadable": {"segmentation": {"size": [3, 3], "counts": [9]}},
    "polygon of fewer than 3 points (left out)": {"segmentation": [[2, 3, 12, 3, 12, 11, 2, 11], [1, 2, 3, 4]]},
    "polygon reaches outside the image": {"segmentation": [[2, 3, 90, 3, 90, 11, 2, 11]]},
    "mask empty": {"segmentation": {"size": [20, 30], "counts": [600]}},
    "box and mask disagree": {"segmentation": [[20, 13, 28, 13, 28, 18, 20, 18]]},
    "crowd region as polygons": {"iscrowd": 1},
    "malformed entry of annotations": {"id": "x"},
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_annotation_is_found(coco, one_box, kind):
    one_box["annotations"].append({**one_box["annotations"][0], "id": 2, **SPOILT[kind]})
    assert _kinds(coco.write(one_box))[kind] == 1


def test_hostile_entries_never_stop_the_check(coco, one_box):
    good = one_box["annotations"][0]
    hostile = [None, 3, "x", [], {}, True, 1e400, {"a": 1}, [None], [[None]], [["x"] * 6], -1, "\ud800"]
    for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"):
        one_box["annotations"] += [{**copy.deepcopy(good), key: value} for value in hostile]
    one_box["annotations"] += hostile
    for key in ("id", "file_name", "height", "width"):
        one_box["images"] += [{**one_box["images"][0], key: value} for value in hostile]
    one_box["images"] += hostile
    one_box["categories"] += hostile
    found = _kinds(coco.write(one_box), "error")
    assert found["malformed entry of annotations"] >= len(hostile)
    assert found["segmentation unreadable"] > 0


def test_ids_and_names_that_repeat(coco, one_box):
    for key in ("images", "annotations", "categories"):
        one_box[key].append(one_box[key][0])
    found = _kinds(coco.write(one_box))
    for kind in ("image id repeated", "annotation id repeated", "category id repeated", "image file named twice"):
        assert found[kind] == 1


def test_images_missing_broken_of_another_size_or_turned(coco, one_box):
    folder = coco.folder / "images"
    for number, name in enumerate(("gone.png", "broken.png", "other.png", "turned.jpg", "bare.png")):
        one_box["images"].append({**coco.image(name), "id": 100 + number})
    (folder / "gone.png").unlink()
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    one_box["images"][3]["width"] = 31
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    del one_box["images"][5]["width"], one_box["images"][5]["height"]
    report = check(*_paths(coco.write(one_box)))
    where = {finding.kind: finding.where for finding in report.findings}
    for kind, name in (
        ("image file missing", "gone.png"),
        ("image broken", "broken.png"),
        ("image size differs from the json", "other.png"),
        ("image with EXIF rotation (not applied)", "turned.jpg"),
        ("image without width and height in the json", "bare.png"),
    ):
        assert name in where[kind]


def test_quick_reads_headers_only(coco, one_box):
    one_box["images"] = [coco.image("a.bmp")]
    path = coco.folder / "images" / "a.bmp"
    path.write_bytes(path.read_bytes()[:200])
    settings = coco.write(one_box)
    assert _kinds(settings)["image broken"] == 1
    assert _kinds(settings, quick=True)["image broken"] == 0


def test_notes(coco, one_box):
    one_box["images"].append({**coco.image("b.png"), "id": 8})
    first = one_box["annotations"][0]
    one_box["annotations"] += [{**first, "id": 2 + number} for number in range(100)]
    found = _kinds(coco.write(one_box), "note")
    assert found == {
        "image without annotations": 1,
        "image with more than 100 annotations": 1,
        "category without annotations": 1,
    }


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": []}'])
def test_a_json_that_is_none_is_an_error(coco, text, capsys):
    settings = coco.write(text)
    assert main([settings.annotations, "--images", settings.images]) == 1
    assert "json unreadable" in capsys.readouterr().out


def test_exit_status_and_names(coco, one_box, capsys):
    one_box["annotations"][0]["category_id"] = 5
    coco.image("unnamed.png")
    coco.write(one_box)
    assert main([str(coco.folder)]) == 1
    text = capsys.readouterr().out
    assert "unknown category" in text
    assert "unnamed.png" in text
    assert "1 errors" in text


@pytest.mark.parametrize("layout", ["images", "train", "images/train", "."])
def test_the_image_folder_is_guessed(tmp_path: Path, layout, coco, one_box):
    target = tmp_path / "set" / layout
    target.mkdir(parents=True)
    (tmp_path / "images" / "a.png").rename(target / "a.png")
    (tmp_path / "set" / "annotations").mkdir()
    (tmp_path / "set" / "annotations" / "instances_train.json").write_text(json.dumps(one_box))
    ((_, images),) = find_sets(tmp_path / "set")
    assert images.resolve() == target.resolve()


def test_nothing_to_check_is_said(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "absent")]) == 1
    assert "got nothing of that name" in " ".join(capsys.readouterr().out.split())
