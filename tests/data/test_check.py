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
    one_box["images"] = [coco.image(hw=(40, 50))]
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
    "ignored annotation (not trained on, but scored; iscrowd=1 leaves out of both)": {"ignore": 1},
    "no segmentation (needs data.masks=false)": {"segmentation": []},
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


def test_an_id_repeated_as_a_float_is_the_same_id(coco, one_box):
    one_box["annotations"].append({**one_box["annotations"][0], "id": 1.0})
    assert _kinds(coco.write(one_box), "error") == {"annotation id repeated": 1}


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
        ("image without width or height in the json (its file is asked)", "bare.png"),
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
        "image with more than 100 annotations (data.max_boxes)": 1,
        "image with more than 100 instances of a class (evaluation counts as many; run.eval_detections)": 1,
        "image with a side under 32 pixels (not trained on; data.min_side)": 2,
        "category without annotations": 1,
    }


def test_a_hundred_instances_of_a_class_count_and_crowd_is_none(coco, one_box):
    first = one_box["annotations"][0]
    one_box["annotations"] += [{**first, "id": 2 + number, "iscrowd": int(number >= 99)} for number in range(120)]
    found = _kinds(coco.write(one_box), "note")
    assert found["image with more than 100 annotations (data.max_boxes)"] == 1
    assert not any("instances of a class" in kind for kind in found)


@pytest.mark.parametrize("absent", [("width",), ("height",), ("width", "height")])
def test_a_json_without_sizes_has_the_findings_of_one_with_sizes(coco, one_box, absent):
    first = one_box["annotations"][0]
    changes = ({}, {"segmentation": [[10, 10, 20]]}, {"bbox": [500, 500, 9, 9]}, {"segmentation": []})
    changes += ({"bbox": [0, 0, -5, 3]}, {"area": "x"}, {"iscrowd": 2})
    one_box["annotations"] = [{**first, "id": number, **change} for number, change in enumerate(changes)]
    expected = _kinds(coco.write(one_box))
    assert sum(_kinds(coco.write(one_box), "error").values()) == 6
    for key in absent:
        del one_box["images"][0][key]
    found = _kinds(coco.write(one_box))
    assert found.pop("image without width or height in the json (its file is asked)") == 1
    assert found == expected


def test_a_map_of_another_size_is_found_without_sizes_in_the_json(coco, one_box):
    (coco.folder / "stuff").mkdir()
    Image.new("L", (20, 30)).save(coco.folder / "stuff" / "a.png")
    del one_box["images"][0]["width"]
    found = _kinds(coco.write(one_box), "error", stuff=str(coco.folder / "stuff"))
    assert found == {"semantic map of another size": 1}


@pytest.mark.parametrize("nothing", [None, [], {}, [[]], [[], []]])
@pytest.mark.parametrize("area", [80, None])
def test_a_set_of_boxes_is_named_as_such_and_has_no_errors(coco, one_box, nothing, area, capsys):
    first = one_box["annotations"][0] | {"segmentation": nothing, "area": area}
    one_box["annotations"] = [{**first, "id": number} for number in range(3)]
    settings = coco.write(one_box)
    found = _kinds(settings)
    assert [kind for kind in found if "without masks (train with data.masks=false" in kind]
    assert found["no area (that of the box is used)"] == (3 if area is None else 0)
    assert main([settings.annotations, "--images", settings.images]) == 0
    assert "data.masks=false" in " ".join(capsys.readouterr().out.split())


def test_a_set_in_which_some_masks_are_absent_is_no_set_of_boxes(coco, one_box):
    first = one_box["annotations"][0]
    one_box["annotations"] += [{**first, "id": 2, "segmentation": [[]]}]
    assert _kinds(coco.write(one_box), "error") == {"no segmentation (needs data.masks=false)": 1}


def test_masks_of_crowd_regions_alone_make_no_set_with_masks(coco, one_box):
    first = one_box["annotations"][0]
    one_box["annotations"] = [first | {"iscrowd": 1}, {**first, "id": 2, "segmentation": [[]]}]
    assert _kinds(coco.write(one_box), "error") == {}


def test_a_category_of_crowd_regions_only_is_found(coco, one_box):
    runs = {"size": [20, 30], "counts": [50, 10, 540]}
    brush = one_box["annotations"][0] | {"category_id": 3, "iscrowd": 1, "segmentation": runs}
    one_box["annotations"] += [{**brush, "id": number} for number in (2, 3)]
    findings = check(*_paths(coco.write(one_box))).findings
    (where,) = [finding.where for finding in findings if finding.kind.startswith("category of crowd regions only")]
    assert where == "a: 2 annotations with iscrowd=1"
    one_box["annotations"][2]["iscrowd"] = 0
    assert not any("crowd regions only" in kind for kind in _kinds(coco.write(one_box)))


def test_a_name_that_is_spelt_otherwise_is_told(coco, one_box):
    (coco.folder / "images" / "sub").mkdir()
    names = {"sub/b 1.png": "sub\\b 1.png", "d\u00e9j\u00e0.png": "d%C3%A9j%C3%A0.png", "U\u0308.png": "\u00dc.png"}
    one_box["images"] = [
        {**coco.image(there), "id": 7 + number, "file_name": said} for number, (there, said) in enumerate(names.items())
    ]
    coco.write(one_box)
    ((annotations, images),) = find_sets(coco.folder)  # the folder is found by the right names
    findings = check(str(annotations), str(images)).findings
    where = {finding.where for finding in findings if finding.kind == "image file missing"}
    assert where == {f"{said!a}, but there is {there!a}: write that in the json" for there, said in names.items()}


def test_names_that_were_looked_for_are_shown(coco, one_box, capsys):
    one_box["images"][0]["file_name"] = "b.png"
    coco.write(one_box)
    assert main([coco.annotations]) == 1
    assert "looked for ['b.png']; give --images" in " ".join(capsys.readouterr().out.split())


def test_a_json_without_annotations_is_one_to_predict(coco, one_box, capsys):
    del one_box["annotations"]
    settings = coco.write(one_box)
    assert main([settings.annotations, "--images", settings.images]) == 0
    kinds = _kinds(settings)
    assert [kind for kind in kinds if kind.startswith("json without annotations (to be predicted: jaxdet eval --out")]
    assert "image without annotations" not in kinds


@pytest.mark.parametrize(("brightest", "dark"), [(255, True), (4095, True), (16383, True), (16384, False)])
def test_deep_images_that_are_read_dark_are_found(coco, one_box, brightest, dark):
    pixels = np.zeros((20, 30), np.uint16)
    pixels[3, 4] = brightest
    Image.fromarray(pixels).save(coco.folder / "images" / "a.png")
    kinds = _kinds(coco.write(one_box), "warning")
    assert any("is read dark" in kind for kind in kinds) == dark
    assert not any("is read dark" in kind for kind in _kinds(coco.write(one_box), quick=True))


def test_dark_images_of_8_bits_are_no_finding(coco, one_box):
    Image.new("L", (30, 20)).save(coco.folder / "images" / "a.png")
    assert not any("is read dark" in kind for kind in _kinds(coco.write(one_box)))


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
    assert "1 error" in text


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
