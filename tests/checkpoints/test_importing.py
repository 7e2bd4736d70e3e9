"""Whose weights a file holds is read off its names."""

import itertools

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdet.checkpoints.files.weights import read_weights, write_safetensors
from jaxdet.checkpoints.importing import import_weights, recognise
from jaxdet.checkpoints.names.mmdet import from_mmdet, to_mmdet
from jaxdet.checkpoints.store import CheckpointStore


def array(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_each_kind_is_recognised():
    kernel = array(2, 3, 7, 7)
    resnet = {"conv1.weight": kernel, "layer1.0.conv1.weight": array(2, 2, 3, 3)}
    detector = {
        "backbone.body.conv1.weight": kernel,
        "roi_heads.box_predictor.cls_score.weight": array(3, 2),
        "roi_heads.box_predictor.bbox_pred.weight": array(12, 2),
    }
    retinanet = {
        "backbone.body.conv1.weight": kernel,
        "head.classification_head.cls_logits.weight": array(6, 2, 3, 3),
        "head.regression_head.bbox_reg.weight": array(8, 2, 3, 3),
    }
    mmdet = {"backbone.conv1.weight": kernel, "backbone.layer1.0.conv1.weight": array(2, 2, 3, 3)}
    cases = {
        "resnet": (resnet, "backbone", ()),
        "folded": (resnet | {"conv1.bias": array(2)}, "backbone", ()),
        "detector": (detector, "", (1, 2)),
        "retinanet": (retinanet, "", (1, 2)),
        "mmdet": (mmdet, "", ()),
    }
    like = {"params": {"backbone": {"conv1": {"kernel": array(7, 7, 3, 2)}}}}
    for name, (state, within, ids) in cases.items():
        imported = recognise(state, like)
        assert (imported.within, imported.category_ids) == (within, ids), name
        found = imported.variables["params"]["backbone"]["conv1"]["kernel"]
        np.testing.assert_array_equal(found, kernel.transpose(2, 3, 1, 0))
        assert "unmapped" not in imported.variables
    assert "bn1" in recognise(cases["folded"][0], like).variables["params"]["backbone"]


COCO = (range(1, 12), range(13, 26), (27, 28), range(31, 45), range(46, 66), (67, 70), range(72, 83), range(84, 91))
"""The ids in COCO's instances_val2017.json."""


@pytest.mark.parametrize(("outputs", "classes", "ids"), [
    (91, 80, tuple(itertools.chain(*COCO))),
    (91, 90, tuple(range(1, 91))),
    (81, 80, tuple(range(1, 81))),
])  # fmt: skip
def test_labels_of_torchvisions_coco_weights_in_a_model_of_80_classes(outputs, classes, ids):
    state = {
        "roi_heads.box_predictor.cls_score.weight": array(outputs, 2),
        "roi_heads.box_predictor.cls_score.bias": array(outputs),
    }
    like = {"params": {"heads_0": {"head": {"logits": {"bias": array(classes + 1)}}}}}
    imported = recognise(state, like)
    assert imported.category_ids == ids
    bias = imported.variables["params"]["heads_0"]["head"]["logits"]["bias"]
    assert bias.tolist() == [*ids, 0]


@pytest.mark.parametrize(("outputs", "classes", "ids"), [
    (91, 80, tuple(itertools.chain(*COCO))),
    (91, 90, tuple(range(1, 91))),
    (91, 91, tuple(range(1, 91))),
    (81, 80, tuple(range(1, 81))),
])  # fmt: skip
@pytest.mark.parametrize("anchors", [1, 9])
def test_labels_of_torchvisions_retinanet(anchors, outputs, classes, ids):
    """Logits are anchor-major, and of label 0 too, which is none of COCO's."""
    state = {
        "head.classification_head.cls_logits.weight": array(anchors * outputs, 2, 3, 3),
        "head.classification_head.cls_logits.bias": array(anchors * outputs),
        "head.regression_head.bbox_reg.weight": array(4 * anchors, 2, 3, 3),
    }
    head = {"logits": {"bias": array(anchors * classes)}, "deltas": {"bias": array(anchors * 4)}}
    imported = recognise(state, {"params": {"dense": {"head": head}}})
    assert imported.category_ids == ids
    logits = imported.variables["params"]["dense"]["head"]["logits"]
    expected = [outputs * anchor + label for anchor in range(anchors) for label in ids]
    assert logits["bias"].tolist() == expected
    weights = state["head.classification_head.cls_logits.weight"]
    np.testing.assert_array_equal(logits["kernel"], weights[expected].transpose(2, 3, 1, 0))


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"names of no known kind, such as module_a\.w"):
        recognise({"module_a.w": array(2)}, {})


@pytest.mark.parametrize(
    "name",
    ["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight", "head.cls_subnet.0.weight"],
)
def test_detectron2s_names_are_not_taken_for_torchvisions(name):
    """Both call a layer roi_heads.box_predictor.cls_score; of torchvision's the background is the first row."""
    state = {name: array(4, 3, 7, 7), "roi_heads.box_predictor.cls_score.weight": array(81, 8)}
    imported = recognise(state, {})
    np.testing.assert_array_equal(imported.variables["params"]["heads_0"]["head"]["logits"]["kernel"], array(81, 8).T)
    assert "*normalization.channels=bgr" in imported.settings


def test_a_checkpoint_folder_brings_its_categories(tmp_path):
    variables = {"params": {"w": array(3)}}
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"variables": variables}, {"categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]})
    imported = import_weights(tmp_path, {})
    assert imported.category_ids == (7, 9)
    assert imported.category_names == ("cat", "dog")
    np.testing.assert_array_equal(imported.variables["params"]["w"], variables["params"]["w"])


def test_export_and_import_through_a_file(tmp_path):
    state = {"backbone.conv1.weight": array(2, 3, 7, 7), "roi_head.bbox_head.shared_fcs.0.weight": array(2, 98)}
    like = {
        "params": {
            "backbone": {"conv1": {"kernel": array(7, 7, 3, 2)}},
            "heads_0": {"head": {"trunk": {"fc1": {"kernel": array(98, 2)}}}},
        }
    }
    variables = from_mmdet(state, like)
    assert "unmapped" not in variables
    write_safetensors(tmp_path / "exported.safetensors", to_mmdet(variables))
    for loaded in (load_file(tmp_path / "exported.safetensors"), read_weights(tmp_path / "exported.safetensors")):
        np.testing.assert_equal(loaded, state)
    np.testing.assert_equal(import_weights(tmp_path / "exported.safetensors", like).variables, variables)
