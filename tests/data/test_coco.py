import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxdet.data import CocoFolder, open_source


def test_sparse_unordered_ids_map_to_labels_by_ascending_id(coco, one_box):
    source = open_source(coco.write(one_box))
    assert [(c.id, c.name) for c in source.categories] == [(3, "a"), (90, "b")]
    record = source[0]
    assert (record.index, record.image_id, record.name) == (0, 7, "a.png")
    (annotation,) = record.annotations
    assert annotation.label == 1
    assert annotation.bbox == (2.0, 3.0, 10.0, 8.0)
    assert annotation.segmentation == [[2, 3, 12, 3, 12, 11, 2, 11]]
    assert record.image.shape == (20, 30, 3)


def test_annotations_come_with_their_image_in_the_order_of_the_json(coco, one_box):
    one_box["images"] += [{**coco.image("b.png"), "id": 2}, {**coco.image("c.png"), "id": 5}]
    first = one_box["annotations"][0]
    one_box["annotations"] = [
        {**first, "id": number, "image_id": image} for number, image in ((9, 5), (4, 7), (8, 5), (1, 7), (6, 5))
    ]
    source = open_source(coco.write(one_box))
    assert [[a.id for a in source[i].annotations] for i in range(3)] == [[4, 1], [], [9, 8, 6]]
    assert source.usable.tolist() == [2, 0, 3]
    assert source.image_ids.tolist() == [7, 2, 5]


def test_usable_counts_by_the_reference_rule(coco, one_box):
    first = one_box["annotations"][0]
    spoilt = (
        {"iscrowd": 1},
        {"ignore": 1},
        {"area": 0},
        {"bbox": [2, 3, 0.9, 8]},
        {"bbox": [2, 3, 8, 0.5]},
        {"bbox": [30, 3, 8, 8]},
        {"bbox": [-9, 3, 9, 8]},
        {"bbox": [2, 20, 8, 8]},
    )
    one_box["annotations"] += [{**first, "id": 2 + i, **change} for i, change in enumerate(spoilt)]
    assert open_source(coco.write(one_box)).usable.tolist() == [1]


def test_size_is_read_from_the_file_where_the_json_has_none(coco, one_box):
    del one_box["images"][0]["height"]
    assert open_source(coco.write(one_box)).sizes.tolist() == [[20, 30]]


def test_area_defaults_to_that_of_the_box(coco, one_box):
    del one_box["annotations"][0]["area"]
    assert open_source(coco.write(one_box))[0].annotations[0].area == 80


def test_ground_truth_is_the_whole_json(coco, one_box):
    source = open_source(coco.write(one_box))
    assert source.ground_truth() == json.loads(json.dumps(one_box))


def test_a_pickled_source_is_light_and_reads_the_same(scenes):
    text = pickle.dumps(scenes)
    assert len(text) < 2000
    copy = pickle.loads(text)
    np.testing.assert_array_equal(copy[4].image, scenes[4].image)
    assert copy[4].annotations == scenes[4].annotations


def test_temporary_files_go_with_the_source(coco, one_box):
    source = open_source(coco.write(one_box))
    folder = Path(source.table._folder)
    assert folder.is_dir()
    del source
    assert not folder.exists()


def _change(**changes):
    return lambda data: data["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_change(image_id=8), "image_id"),
        (_change(category_id=1), "category_id"),
        (_change(bbox=[1, 2, 3]), "bbox"),
        (_change(bbox=[1, 2, 3, float("nan")]), "bbox"),
        (_change(bbox=["a", 2, 3, 4]), "bbox: expected 4 numbers"),
        (lambda data: data["annotations"][0].pop("bbox"), "bbox"),
        (lambda data: data["images"].append(data["images"][0]), "id twice"),
        (lambda data: data["images"][0].pop("file_name"), "file_name"),
        (
            lambda data: data["categories"].append({"id": 3, "name": "c"}),
            "category ids that differ, got an id twice: 3",
        ),
        (lambda data: data["annotations"].append(data["annotations"][0]), "annotation ids that differ.*twice: 1"),
        (lambda data: data.pop("categories"), "categories"),
        (lambda data: data.update(images={}), "images"),
    ],
)
def test_a_broken_json_is_refused_with_a_reason(coco, one_box, spoil, message):
    spoil(one_box)
    with pytest.raises(ValueError, match=message):
        open_source(coco.write(one_box))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00"])
def test_what_is_no_coco_json_is_refused(coco, text):
    with pytest.raises(ValueError, match=r"annotations .*instances\.json"):
        open_source(coco.write(text))


def test_a_json_without_annotations_has_none(coco, one_box):
    del one_box["annotations"]
    source = open_source(coco.write(one_box))
    assert source[0].annotations == ()
    assert source.ground_truth()["annotations"] == []


def test_a_json_without_images_is_refused(coco):
    with pytest.raises(ValueError, match=r"expected images, got none in CocoFolder\(.*instances\.json"):
        open_source(coco.write({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}))


def test_missing_things_are_named(coco, one_box, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json: expected .* no such file; .*data\.train\.annotations"):
        open_source(CocoFolder(str(tmp_path), str(tmp_path / "absent.json")))
    with pytest.raises(ValueError, match="CocoFolder"):
        open_source(None)
    source = open_source(coco.write(one_box))
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png"):
        source[0]


def test_an_image_of_another_size_than_annotated_is_named(coco, one_box):
    one_box["images"][0]["height"] = 21
    with pytest.raises(ValueError, match=r"a\.png: expected height, width \(21, 30\).*got \(20, 30\)"):
        open_source(coco.write(one_box))[0]


def test_the_ground_truth_has_sizes_where_the_json_has_none(coco, one_box):
    del one_box["images"][0]["height"], one_box["images"][0]["width"]
    (image,) = open_source(coco.write(one_box)).ground_truth()["images"]
    assert (image["height"], image["width"]) == (20, 30)
