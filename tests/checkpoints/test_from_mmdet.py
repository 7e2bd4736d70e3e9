"""Names and layouts of mmdetection against hand-made arrays and, where it is at hand, the reference's name list."""

import functools
import importlib
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.from_mmdet import from_mmdet, mmdet_name, to_mmdet
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.tree import flatten
from jaxdet.structures import Batch

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_convolution_moves_the_channel_axes_last():
    weight = numbers(5, 3, 7, 2)
    kernel = from_mmdet({"backbone.conv1.weight": weight})["params"]["backbone"]["conv1"]["kernel"]
    assert kernel.shape == (7, 2, 3, 5)
    assert kernel[6, 1, 2, 4] == weight[4, 2, 6, 1]


def test_first_fully_connected_layer_sees_the_map_channels_last():
    weight, features = numbers(2, 3 * 49), numbers(3, 7, 7)
    tree = from_mmdet({"roi_head.bbox_head.shared_fcs.0.weight": weight})
    kernel = tree["params"]["heads_0"]["box_head"]["trunk"]["fc1"]["kernel"]
    torch_output = weight @ features.reshape(-1)
    np.testing.assert_allclose(features.transpose(1, 2, 0).reshape(-1) @ kernel, torch_output, rtol=1e-6)


def test_other_linear_layers_are_transposed():
    weight = numbers(4, 6)
    tree = from_mmdet({"roi_head.bbox_head.fc_cls.weight": weight})
    np.testing.assert_array_equal(tree["params"]["heads_0"]["box_head"]["logits"]["kernel"], weight.T)


def test_transposed_convolution_is_y_x_in_out():
    weight = numbers(3, 5, 2, 2)  # torch: (in, out, kh, kw)
    kernel = from_mmdet({"roi_head.mask_head.upsample.weight": weight})["params"]["heads_0"]["mask_head"]["upsample"]
    assert kernel["kernel"].shape == (2, 2, 3, 5)
    assert kernel["kernel"][1, 0, 2, 4] == weight[2, 4, 1, 0]


def test_batch_norm_splits_into_parameters_and_statistics():
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    state = {f"backbone.layer3.11.bn2.{name}": np.full(4, i) for i, name in enumerate(names)}
    tree = from_mmdet(state)
    assert set(tree) == {"params", "batch_stats"}
    assert {k: v[0] for k, v in tree["params"]["backbone"]["layer3_11"]["bn2"].items()} == {"scale": 0, "bias": 1}
    assert {k: v[0] for k, v in tree["batch_stats"]["backbone"]["layer3_11"]["bn2"].items()} == {"mean": 2, "var": 3}
    assert all(leaf.dtype == np.float32 for leaf in flatten(tree).values())


@pytest.mark.parametrize("wrap", [
    lambda s: {"meta": {"epoch": 12}, "state_dict": s},
    lambda s: {"model": s, "optimizer": {}},
    lambda s: {"module." + k: v for k, v in s.items()},
    lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}},
    lambda s: functools.reduce(lambda inner, _: {"model": inner}, range(5000), s),
])  # fmt: skip
def test_spellings_of_a_checkpoint(wrap):
    state = {"rpn_head.rpn_cls.bias": numbers(3)}
    np.testing.assert_array_equal(from_mmdet(wrap(state))["params"]["rpn"]["head"]["objectness"]["bias"], numbers(3))


def test_unknown_names_are_kept_where_a_merge_must_see_them():
    state = {"rpn_head.rpn_cls.bias": numbers(3), "roi_head.semantic_head.conv.weight": numbers(2, 2, 1, 1)}
    tree = from_mmdet(state)
    assert list(tree["unmapped"]) == ["roi_head.semantic_head.conv.weight"]
    assert set(to_mmdet(tree)) == set(state)


def test_a_name_that_only_begins_like_a_known_one_is_unknown():
    for name in ("xbackbone.conv1.weight", "backbone.conv1.weight_v", "backbone.layer1.x.conv1.weight", "conv1.weight"):
        assert list(from_mmdet({name: numbers(1, 1, 1, 1)})) == ["unmapped"]


def test_errors_name_the_entry():
    with pytest.raises(ValueError, match=r"rpn_head\.rpn_conv\.weight has shape \(3,\), expected 4 axes"):
        from_mmdet({"rpn_head.rpn_conv.weight": numbers(3)})
    with pytest.raises(ValueError, match=r"shared_fcs\.0\.weight: 50 input features are no multiple of a 7x7 map"):
        from_mmdet({"roi_head.bbox_head.shared_fcs.0.weight": numbers(2, 50)})
    with pytest.raises(ValueError, match=r"not arrays: epoch\. .*state_dict"):
        from_mmdet({"epoch": 12})
    with pytest.raises(ValueError, match="no torch name for rpn/head/surprise/kernel"):
        mmdet_name(("rpn", "head", "surprise", "kernel"))
    with pytest.raises(ValueError, match="no torch name for batch_stats/backbone/conv1/kernel"):
        to_mmdet({"batch_stats": {"backbone": {"conv1": {"kernel": numbers(1, 1, 1, 1)}}}})


def test_names_both_ways():
    assert mmdet_name(("neck", "lateral5", "kernel")) == "neck.lateral_convs.3.conv.weight"
    assert mmdet_name(("backbone", "layer1_0", "downsample_bn", "var")) == "backbone.layer1.0.downsample.1.running_var"
    assert mmdet_name(("heads_0", "mask_head", "conv4", "bias")) == "roi_head.mask_head.convs.3.conv.bias"


def reference_state(model):
    if not REFERENCE.is_dir():
        pytest.skip(f"{REFERENCE} is not here")
    spec = importlib.util.spec_from_file_location("recipe", REFERENCE / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.state_dict(json.loads((REFERENCE / "golden" / "shapes.json").read_text())[model])


# Parameter counts of the reference's Faster R-CNN and Mask R-CNN with ResNet-50 and FPN.
@pytest.mark.parametrize(("model", "parameters"), [("mask_rcnn_r50", 44_396_336), ("faster_rcnn_r50", 41_753_056)])
def test_every_reference_name_maps_and_returns_unchanged(model, parameters):
    state = reference_state(model)
    tree = from_mmdet(state)
    assert set(tree) == {"params", "batch_stats"}
    assert sum(leaf.size for leaf in flatten(tree["params"]).values()) == parameters
    back = to_mmdet(tree)
    assert set(back) == set(state)
    assert all(np.array_equal(back[name], state[name]) for name in state)
    assert {mmdet_name(path[1:]) for path in flatten(tree)} == set(state)


@pytest.mark.parametrize("model", ["mask_rcnn_r50", "faster_rcnn_r50"])
def test_the_models_are_filled_to_the_last_leaf(model):
    state = reference_state(model)
    config = importlib.import_module(f"configs.{model}_fpn").get_config()
    batch = Batch(
        image=np.zeros((1, 64, 64, 3), np.uint8),
        true_hw=np.full((1, 2), 64, np.float32),
        scale=np.ones((1, 2), np.float32),
        original_hw=np.full((1, 2), 64, np.int32),
        index=np.zeros(1, np.int32),
        valid=np.ones(1, bool),
    )
    here = jax.eval_shape(lambda key: config.model.init(key, batch, method="predict"), jax.random.key(0))
    _, report = merge(here, from_mmdet(state))
    assert len(report.loaded) == len(state)
