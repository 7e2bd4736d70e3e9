"""torchvision's names, classes and batch norms; no torchvision needed, the names are its documented ones."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.names.torchvision import SETTINGS, from_torchvision
from jaxdet.checkpoints.names.torchvision.backbone import from_folded_resnet, from_torchvision_resnet
from jaxdet.checkpoints.tree import flatten

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
EPS = np.float32(1e-5)


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1


def norm(name, channels):
    return {f"{name}.{part}": numbers(channels) for part in ("weight", "bias", "running_mean", "running_var")}


def classifier():
    return {
        "conv1.weight": numbers(4, 3, 7, 7),
        **norm("bn1", 4),
        "layer2.0.conv2.weight": numbers(4, 4, 3, 3),
        **norm("layer2.0.bn2", 4),
        "layer2.0.downsample.0.weight": numbers(8, 4, 1, 1),
        **norm("layer2.0.downsample.1", 8),
        "bn1.num_batches_tracked": np.array(7),
        "fc.weight": numbers(10, 8),
        "fc.bias": numbers(10),
    }


def detector(classes=3, old=True, masks=True):
    """Tiny weights under the names of torchvision before 0.13 (old) or since; ``classes`` counts background."""
    level = "" if old else ".0"
    state = {f"backbone.body.{k}": v for k, v in classifier().items() if not k.startswith("fc.")}
    for i in range(4):
        for part in ("inner_blocks", "layer_blocks"):
            state[f"backbone.fpn.{part}.{i}{level}.weight"] = numbers(2, 2, 1, 1) + i
            state[f"backbone.fpn.{part}.{i}{level}.bias"] = numbers(2) + i
    heads = {
        "rpn.head.conv" if old else "rpn.head.conv.0.0": (2, 2, 3, 3),
        "rpn.head.cls_logits": (3, 2, 1, 1),
        "rpn.head.bbox_pred": (12, 2, 1, 1),
        "roi_heads.box_head.fc6": (5, 2 * 49),
        "roi_heads.box_head.fc7": (5, 5),
        "roi_heads.box_predictor.cls_score": (classes, 5),
        "roi_heads.box_predictor.bbox_pred": (4 * classes, 5),
    }
    if masks:
        heads |= {f"roi_heads.mask_head.{f'mask_fcn{i + 1}' if old else f'{i}.0'}": (2, 2, 3, 3) for i in range(4)}
        heads["roi_heads.mask_predictor.mask_fcn_logits"] = (classes, 2, 1, 1)
        state["roi_heads.mask_predictor.conv5_mask.weight"] = numbers(2, 3, 2, 2)
        state["roi_heads.mask_predictor.conv5_mask.bias"] = numbers(3)
    for name, shape in heads.items():
        state |= {f"{name}.weight": numbers(*shape), f"{name}.bias": numbers(shape[0])}
    return state


def test_classifier_gives_a_backbone_and_says_what_was_dropped():
    imported = from_torchvision_resnet(classifier())
    assert imported.dropped == ("fc.weight", "fc.bias")
    assert imported.within == "backbone"
    assert set(imported.variables) == {"params", "batch_stats"}
    assert set(imported.variables["params"]) == {"backbone"}
    block = imported.variables["params"]["backbone"]["layer2_0"]
    assert block["downsample_conv"]["kernel"].shape == (1, 1, 4, 8)
    assert set(block) == {"conv2", "bn2", "downsample_conv", "downsample_bn"}


def test_classifier_of_another_kind_stays_visible():
    imported = from_torchvision_resnet({**classifier(), "classifier.weight": numbers(2, 2)})
    assert list(imported.variables["unmapped"]) == ["classifier.weight"]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_detector_names_of_both_generations(old, masks):
    state = detector(old=old, masks=masks)
    imported = from_torchvision(state)
    assert set(imported.variables) == {"params", "batch_stats"}
    assert len(flatten(imported.variables)) == len(state) - 1  # num_batches_tracked
    np.testing.assert_equal(imported.variables, from_torchvision(detector(old=not old, masks=masks)).variables)
    assert imported.variables["params"]["neck"]["output4"]["bias"].tolist() == [3, 4]


def heads(imported):
    params = imported.variables["params"]
    return params["heads_0"]["head"], params["masks"]["heads_0"]["head"]


def test_background_moves_from_first_to_last():
    imported = from_torchvision(detector(classes=3))
    boxes, masks = heads(imported)
    assert imported.category_ids == (1, 2)
    assert boxes["logits"]["bias"].tolist() == [2, 3, 1]  # torchvision: background is output 1 of 3
    assert boxes["deltas"]["bias"].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert boxes["deltas"]["kernel"][0, 0] == numbers(12, 5)[4, 0]
    assert masks["logits"]["bias"].tolist() == [2, 3]
    assert masks["logits"]["kernel"].shape == (1, 1, 2, 2)


def test_coco_weights_have_ids_with_gaps_which_keep_closes():
    assert from_torchvision(detector(classes=91)).category_ids == tuple(range(1, 91))
    imported = from_torchvision(detector(classes=91), keep=(1, 3, 90))
    boxes, masks = heads(imported)
    assert imported.category_ids == (1, 3, 90)
    assert boxes["logits"]["bias"].tolist() == [2, 4, 91, 1]
    assert boxes["deltas"]["bias"].tolist() == [5, 6, 7, 8, 13, 14, 15, 16, 361, 362, 363, 364]
    assert masks["logits"]["bias"].tolist() == [2, 4, 91]


@pytest.mark.parametrize("keep", [(0, 1), (1, 3), (1, 1)])
def test_keep_names_labels_that_exist(keep):
    with pytest.raises(ValueError, match=r"keep must name different labels of 1\.\.2"):
        from_torchvision(detector(classes=3), keep=keep)


def test_outputs_that_disagree():
    state = detector()
    state["roi_heads.mask_predictor.mask_fcn_logits.weight"] = numbers(4, 2, 1, 1)
    with pytest.raises(ValueError, match=r"disagree on the number of classes: .*logits\.weight': 4"):
        from_torchvision(state)
    with pytest.raises(ValueError, match="not a torchvision detector"):
        from_torchvision(classifier())


@pytest.mark.parametrize("rows", [(), (0, 5)])
def test_outputs_that_are_none(rows):
    state = {"roi_heads.box_predictor.cls_score.weight": np.zeros(rows, np.float32)}
    with pytest.raises(ValueError, match=r"number of classes|expected 2 axes"):
        from_torchvision(state)


def test_variances_account_for_the_other_epsilon():
    state = detector()
    state["backbone.body.bn1.running_var"] = np.array([1e-6, 1e-3, 1, 7], np.float32)
    for eps in (0.0, 1e-5):
        imported = from_torchvision(state, batch_norm_eps=eps).variables
        var = imported["batch_stats"]["backbone"]["bn1"]["var"]
        np.testing.assert_allclose(var + EPS, state["backbone.body.bn1.running_var"] + np.float32(eps), rtol=1e-5)


def test_folded_norms_change_nothing_but_add_the_bias():
    state = {
        "conv1.weight": numbers(4, 3, 7, 7),
        "conv1.bias": numbers(4),
        "layer1.0.conv2.weight": numbers(4, 4, 3, 3),
        "layer1.0.conv2.bias": numbers(4),
        "layer2.0.downsample.0.weight": numbers(8, 4, 1, 1),
        "layer2.0.downsample.0.bias": numbers(8),
        "fc.weight": numbers(10, 8),
        "fc.bias": numbers(10),
    }
    imported = from_folded_resnet(state)
    assert imported.dropped == ("fc.weight", "fc.bias")
    params, stats = (imported.variables[c]["backbone"] for c in ("params", "batch_stats"))
    assert set(params) == {"conv1", "bn1", "layer1_0", "layer2_0"}
    for group, name in ((params, "bn1"), (params["layer1_0"], "bn2"), (params["layer2_0"], "downsample_bn")):
        assert set(group[name]) == {"scale", "bias"}
    x = np.array([3.3, -1e3, 1e-4, 0], np.float32)
    y = (x - stats["bn1"]["mean"]) / np.sqrt(stats["bn1"]["var"] + EPS) * params["bn1"]["scale"] + params["bn1"]["bias"]
    np.testing.assert_array_equal(y, x + state["conv1.bias"])


def test_settings_are_those_of_the_model():
    from jaxdet.config import override
    from jaxdet.configs.mask_rcnn_r50_fpn import get_config

    model = override(get_config().model, SETTINGS)
    assert model == override(get_config(), SETTINGS).model  # as one gives them on the command line
    boxes, (masks,) = model.heads[0], model.parts[0].heads
    for extractor in (boxes.extractor, masks.extractor):
        assert (extractor.aligned, extractor.sampling_ratio) == (False, 2)
    assert not boxes.coder.clip_shrink
    assert not model.rpn.coder.clip_shrink
    assert boxes.box_loss.beta == model.rpn.box_loss.beta == pytest.approx(1 / 9)


def test_folded_resnet18_fills_a_resnet18_up_to_the_stage_it_lacks():
    from jaxdet.checkpoints.merge import merge
    from jaxdet.nn.backbones.resnet import ResNet

    path = DATA / "resnet18_imagenet_c4" / "resnet18_imagenet_c1_c4_bnfolded.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with np.load(path) as arrays:
        imported = from_folded_resnet(dict(arrays))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(ResNet(depth=18).init, jax.random.key(0), image)
    here = {collection: {"backbone": tree} for collection, tree in variables.items()}
    with pytest.raises(ValueError, match="only here") as caught:
        merge(here, imported.variables, within=imported.within)
    assert all("backbone/layer4_" in line for line in str(caught.value).splitlines() if line.startswith("    "))
    _, report = merge(here, imported.variables, skip=("/layer4_",), within=imported.within)
    assert len(report.loaded) == 15 * (1 + 4)  # a kernel and a norm for each convolution of the file
