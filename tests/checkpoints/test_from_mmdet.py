"""Names and layouts of mmdetection against hand-made arrays and, where it is at hand, the reference's name list."""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.mmdet import from_mmdet, mmdet_names, to_mmdet
from jaxdet.checkpoints.tree import flatten, unflatten
from jaxdet.structures import Batch
from tests.modules import module_at

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def holding(*leaves):
    """Variables with these leaves, of which only the names count."""
    return unflatten({("params", *leaf.split("/")): numbers(1) for leaf in leaves})


CONVS = [f"masks/heads_0/head/conv{n}/bias" for n in (1, 2, 3, 4)]
ONE_HEAD = holding("heads_0/head/trunk/fc1/bias", *CONVS)
LATERALS = [f"neck/lateral{n}/kernel" for n in (2, 3, 4, 5)]
BACKBONE, RPN = holding("backbone/conv1/kernel"), holding("rpn/head/conv/kernel")


def test_convolution_moves_the_channel_axes_last():
    weight = numbers(5, 3, 7, 2)
    kernel = from_mmdet({"backbone.conv1.weight": weight}, BACKBONE)["params"]["backbone"]["conv1"]["kernel"]
    assert kernel.shape == (7, 2, 3, 5)
    assert kernel[6, 1, 2, 4] == weight[4, 2, 6, 1]


def test_first_fully_connected_layer_sees_the_map_channels_last():
    weight, features = numbers(2, 3 * 49), numbers(3, 7, 7)
    tree = from_mmdet({"roi_head.bbox_head.shared_fcs.0.weight": weight}, ONE_HEAD)
    kernel = tree["params"]["heads_0"]["head"]["trunk"]["fc1"]["kernel"]
    torch_output = weight @ features.reshape(-1)
    np.testing.assert_allclose(features.transpose(1, 2, 0).reshape(-1) @ kernel, torch_output, rtol=1e-6)


def test_other_linear_layers_are_transposed():
    weight = numbers(4, 6)
    tree = from_mmdet({"roi_head.bbox_head.fc_cls.weight": weight}, ONE_HEAD)
    np.testing.assert_array_equal(tree["params"]["heads_0"]["head"]["logits"]["kernel"], weight.T)


def test_transposed_convolution_is_y_x_in_out():
    weight = numbers(3, 5, 2, 2)  # torch: (in, out, kh, kw)
    tree = from_mmdet({"roi_head.mask_head.upsample.weight": weight}, ONE_HEAD)
    kernel = tree["params"]["masks"]["heads_0"]["head"]["upsample"]["kernel"]
    assert kernel.shape == (2, 2, 3, 5)
    assert kernel[1, 0, 2, 4] == weight[2, 4, 1, 0]


def test_batch_norm_splits_into_parameters_and_statistics():
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    state = {f"backbone.layer3.11.bn2.{name}": np.full(4, i) for i, name in enumerate(names)}
    tree = from_mmdet(state, BACKBONE)
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
    tree = from_mmdet(wrap(state), RPN)
    np.testing.assert_array_equal(tree["params"]["rpn"]["head"]["objectness"]["bias"], numbers(3))


def test_unknown_names_are_kept_where_a_merge_must_see_them():
    state = {"rpn_head.rpn_cls.bias": numbers(3), "roi_head.semantic_head.conv.weight": numbers(2, 2, 1, 1)}
    tree = from_mmdet(state, RPN)
    assert list(tree["unmapped"]) == ["roi_head.semantic_head.conv.weight"]
    assert set(to_mmdet(tree)) == set(state)


def test_a_name_that_only_begins_like_a_known_one_is_unknown():
    for name in ("xbackbone.conv1.weight", "backbone.conv1.weight_v", "backbone.layer1.x.conv1.weight", "conv1.weight"):
        assert list(from_mmdet({name: numbers(1, 1, 1, 1)}, BACKBONE)) == ["unmapped"]


def test_what_another_composition_has_is_unknown():
    """Heads of a list, a link and a mask IoU branch are nothing to a Mask R-CNN, nor is an RPN to boxes alone."""
    heads = ("bbox_head.0.fc_cls", "mask_head.0.convs.0.conv", "bbox_roi_extractor.pre_module.conv")
    for module in (*heads, "mask_iou_head.fcs.0", "mask_iou_head.fc_mask_iou", "bbox_head.1.fc_cls"):
        state = {f"roi_head.{module}.bias": numbers(2)}
        assert list(from_mmdet(state, ONE_HEAD)) == ["unmapped"]
        assert to_mmdet(from_mmdet(state, ONE_HEAD)).keys() == state.keys()
    assert list(from_mmdet({"rpn_head.rpn_cls.bias": numbers(2)}, ONE_HEAD)) == ["unmapped"]


def test_errors_name_the_entry():
    with pytest.raises(ValueError, match=r"rpn_head\.rpn_conv\.weight has shape \(3,\), expected 4 axes"):
        from_mmdet({"rpn_head.rpn_conv.weight": numbers(3)}, RPN)
    with pytest.raises(ValueError, match=r"shared_fcs\.0\.weight: 50 input features are no multiple of a 7x7 map"):
        from_mmdet({"roi_head.bbox_head.shared_fcs.0.weight": numbers(2, 50)}, ONE_HEAD)
    with pytest.raises(ValueError, match=r"not arrays: 'epoch'\. .*state_dict"):
        from_mmdet({"epoch": 12}, {})
    with pytest.raises(ValueError, match="no torch name for rpn/head/surprise/kernel"):
        mmdet_names(holding("rpn/head/surprise/kernel"))
    for part in ("heads_0/surprise", "masks/heads_0/head/conv1a", "semantic/lateral_up"):
        with pytest.raises(ValueError, match=f"no torch name for {part}/kernel: add a pair to the table"):
            mmdet_names(holding(f"{part}/kernel"))
        like = holding(f"{part}/kernel", *LATERALS)
        assert list(from_mmdet({"neck.lateral_convs.3.conv.bias": numbers(2)}, like)) == ["params"]
    with pytest.raises(ValueError, match="no torch name for batch_stats/backbone/conv1/kernel"):
        to_mmdet({"batch_stats": {"backbone": {"conv1": {"kernel": numbers(1, 1, 1, 1)}}}})


def names_of(*leaves):
    return set(mmdet_names(holding(*leaves)).values())


def test_names_of_features():
    assert names_of(*LATERALS) == {f"neck.lateral_convs.{i}.conv.weight" for i in range(4)}
    assert mmdet_names(holding(*LATERALS))["neck", "lateral5", "kernel"] == "neck.lateral_convs.3.conv.weight"
    assert names_of("backbone/layer1_0/downsample_bn/var") == {"backbone.layer1.0.downsample.1.running_var"}


def test_names_of_norms_in_pyramid_and_heads():
    """As of mmdetection's ConvModule, which calls a norm by its kind; what has statistics is a batch norm."""
    modules = {
        "neck/lateral3_norm": "neck.lateral_convs.1",
        "neck/output2_norm": "neck.fpn_convs.0",
        "masks/heads_0/head/norm4": "roi_head.mask_head.convs.3",
        "heads_0/head/trunk/norm1": "roi_head.bbox_head.shared_convs.0",
    }
    others = (*(f"neck/lateral{n}/bias" for n in (2, 3, 4, 5)), "heads_0/head/trunk/fc1/bias")
    scales = [f"{ours}/scale" for ours in modules]
    assert {f"{theirs}.gn.weight" for theirs in modules.values()} <= names_of(*scales, *others)
    tree = holding(*scales, *others)
    tree["batch_stats"] = holding(*(f"{ours}/mean" for ours in modules))["params"]
    state = to_mmdet(tree)
    wanted = {f"{theirs}.bn.{leaf}" for theirs in modules.values() for leaf in ("weight", "running_mean")}
    assert wanted < set(state)
    back = from_mmdet(state, tree)
    assert set(flatten(back)) == set(flatten(tree))
    assert set(to_mmdet(back)) == set(state)


def test_names_of_several_convolutions():
    """Of an RPN, and before the fully connected layer of a box head."""
    assert names_of("rpn/head/conv/kernel") == {"rpn_head.rpn_conv.weight"}
    two = names_of("rpn/head/conv/kernel", "rpn/head/conv2/kernel")
    assert two == {"rpn_head.rpn_conv.0.conv.weight", "rpn_head.rpn_conv.1.conv.weight"}
    trunk = names_of("heads_0/head/trunk/conv2/bias", "heads_0/head/trunk/fc1/bias")
    assert trunk == {"roi_head.bbox_head.shared_convs.1.conv.bias", "roi_head.bbox_head.shared_fcs.0.bias"}


def test_names_of_a_grid():
    """Points, and edges that lead to one, are numbered as there; what a third fusion would be called nobody knows."""
    grid = {
        "extractor/pre/conv/bias": "grid_roi_extractor.pre_module.conv.bias",
        "head/conv8/kernel": "grid_head.convs.7.conv.weight",
        "head/norm1/scale": "grid_head.convs.0.gn.weight",
        "head/fusion1/depthwise4_3/kernel": "grid_head.forder_trans.4.3.0.weight",
        "head/fusion2/pointwise8_1/bias": "grid_head.sorder_trans.8.1.1.bias",
        "head/upsample1/kernel": "grid_head.deconv1.weight",
        "head/upsample_norm/bias": "grid_head.norm1.bias",
    }
    found = mmdet_names(holding(*(f"grid/{ours}" for ours in grid)))
    assert {"/".join(path[1:]): name for path, name in found.items()} == {k: f"roi_head.{v}" for k, v in grid.items()}
    with pytest.raises(ValueError, match="no torch name for grid/head/fusion3/pointwise0_0/bias"):
        mmdet_names(holding("grid/head/fusion3/pointwise0_0/bias"))


def test_names_of_blocks_with_context_and_offsets():
    """As in the checkpoints of mmdetection's GC-Net and DCN; a layer norm is (C, 1, 1) there."""
    block, theirs = "backbone/layer3_22", "backbone.layer3.22"
    assert names_of(f"{block}/conv2/kernel", f"{block}/conv2/offset/kernel", f"{block}/conv2/offset/bias") == {
        f"{theirs}.conv2.weight",
        f"{theirs}.conv2.conv_offset.weight",
        f"{theirs}.conv2.conv_offset.bias",
    }
    context = {"mask": "conv_mask", "reduce": "channel_add_conv.0", "expand": "channel_add_conv.3"}
    assert names_of(*(f"{block}/context/{name}/kernel" for name in context)) == {
        f"{theirs}.context_block.{name}.weight" for name in context.values()
    }
    norm = holding(f"{block}/context/norm/scale", f"{block}/context/norm/bias")
    state = {f"{theirs}.context_block.channel_add_conv.1.{name}": numbers(5, 1, 1) for name in ("weight", "bias")}
    tree = from_mmdet(state, norm)
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(tree["params"]["backbone"]["layer3_22"]["context"]["norm"][name], range(5))
    np.testing.assert_equal(to_mmdet(tree), state)


def test_offsets_of_mmdetections_first_versions():
    """They lay beside their convolution; what is written has the new name."""
    tree = from_mmdet({"backbone.layer2.0.conv2_offset.bias": numbers(18)}, BACKBONE)
    np.testing.assert_array_equal(tree["params"]["backbone"]["layer2_0"]["conv2"]["offset"]["bias"], range(18))
    assert list(to_mmdet(tree)) == ["backbone.layer2.0.conv2.conv_offset.bias"]


def test_heads_are_numbered_where_the_reference_lists_them():
    """In cascades, and in R3-CNN, whose link is in no other model of one head."""
    one = ("heads_0/head/logits/bias", "masks/heads_0/head/conv1/bias", "heads_0/extractor/pre/conv/bias")
    names = ("bbox_head{}.fc_cls.bias", "mask_head{}.convs.0.conv.bias", "bbox_roi_extractor{}.pre_module.conv.bias")
    plain = {f"roi_head.{name.format('')}" for name in names}
    listed = {f"roi_head.{name.format('.0')}" for name in names}
    assert names_of(*one) == plain
    assert names_of(*one, "masks/heads_0/head/link/bias") == listed | {"roi_head.mask_head.0.conv_res.conv.bias"}
    assert names_of(*one, "heads_1/head/logits/bias") == listed | {"roi_head.bbox_head.1.fc_cls.bias"}


@pytest.mark.parametrize("elements", [
    {"fc1": "0", "fc2": "1"},
    {"conv1": "0.conv", "conv2": "1.conv"},
    {"conv1a": "0.conv", "conv1b": "1.conv", "conv2a": "2.conv", "conv2b": "3.conv"},
    {"before/theta": "0.theta.conv", "before/out": "0.conv_out.conv", "conv1a": "1.conv", "conv1b": "2.conv"},
    {"before/g": "0.g.conv", "before/theta": "0.theta.conv", "conv1": "1.conv", "conv2": "2.conv",
     "after/phi": "3.phi.conv", "after/theta": "3.theta.conv"},
])  # fmt: skip
def test_elements_of_a_trunk_are_numbered_as_they_come(elements):
    for ours, theirs in (("heads_0/head", "bbox_head.shared_fcs"), ("mask_scores/head", "mask_iou_head.fcs")):
        wanted = {
            f"{ours}/trunk/{here}/kernel": f"roi_head.{theirs}.{there}.weight" for here, there in elements.items()
        }
        found = mmdet_names(holding(*reversed(wanted)))
        assert {"/".join(path): name for path, name in found.items()} == wanted


def test_names_around_the_heads():
    """As in HTC's checkpoints of the model zoo; an extractor inside another keeps its name."""
    semantic = [f"semantic/{name}/bias" for name in ("lateral2", "lateral6", "conv1", "embedding", "logits")]
    theirs = ("lateral_convs.0.conv", "lateral_convs.4.conv", "convs.0.conv", "conv_embedding.conv", "conv_logits")
    assert names_of(*semantic) == {f"roi_head.semantic_head.{name}.bias" for name in theirs}
    inside = "masks/heads_0/extractor/extractor/post"
    attention = {
        f"{inside}/query/kernel": "query_conv.weight",
        f"{inside}/geometry_x/kernel": "appr_geom_fc_x.weight",
        f"{inside}/out/bias": "proj_conv.bias",
        f"{inside}/gamma": "gamma",
    }
    assert names_of(*attention) == {f"roi_head.mask_roi_extractor.post_module.{name}" for name in attention.values()}


def test_heads_that_nothing_reads_are_unmapped():
    """The reference's Cascade Mask R-CNN carries three mask heads beyond those of its steps."""
    heads = [f"masks/heads_{h}/head/logits/bias" for h in range(3)]
    state = {f"roi_head.mask_head.{h}.conv_logits.bias": numbers(2) + h for h in range(6)}
    tree = from_mmdet(state, holding(*heads, *(f"heads_{h}/head/logits/bias" for h in range(3))))
    assert list(tree["unmapped"]) == [f"roi_head.mask_head.{h}.conv_logits.bias" for h in (3, 4, 5)]
    merged, report = merge({"params": tree["params"]}, tree, skip=("^unmapped/",))
    assert len(report.loaded) == len(report.dropped) == 3
    assert [merged["params"]["masks"][f"heads_{h}"]["head"]["logits"]["bias"][0] for h in range(3)] == [0, 1, 2]


def test_outputs_after_convolutions_read_a_flattened_map():
    tree = holding(*(f"{head}/trunk/conv1/kernel" for head in ("heads_0/head", "mask_scores/head")))
    weight = numbers(2, 3 * 49)
    state = {f"roi_head.{name}.weight": weight for name in ("bbox_head.fc_cls", "mask_iou_head.fc_mask_iou")}
    filled = from_mmdet(state, tree)["params"]
    for kernel in (filled["heads_0"]["head"]["logits"]["kernel"], filled["mask_scores"]["head"]["iou"]["kernel"]):
        np.testing.assert_array_equal(kernel.reshape(7, 7, 3, 2)[4, 2, 1], weight[:, 49 + 4 * 7 + 2])
    conv, head = "mask_scores/head/conv1/bias", "roi_head.mask_iou_head.convs.0"
    assert f"{head}.conv.bias" in names_of("mask_scores/head/trunk/conv1/kernel", conv)
    assert f"{head}.bias" in names_of("mask_scores/head/trunk/fc1/kernel", conv)


def test_names_of_a_retinanet():
    """Its pyramid begins at level 3, and what is above the backbone goes on in the list of the pyramid's outputs."""
    pyramid = {f"neck/lateral{n}": f"neck.lateral_convs.{n - 3}.conv" for n in (3, 4, 5)}
    pyramid |= {f"neck/output{n}": f"neck.fpn_convs.{n - 3}.conv" for n in (3, 4, 5)}
    pyramid |= {f"neck/top/conv{n}": f"neck.fpn_convs.{n - 3}.conv" for n in (6, 7)}
    head = {f"dense/head/class_conv{n}": f"bbox_head.cls_convs.{n - 1}.conv" for n in (1, 2, 3, 4)}
    head |= {f"dense/head/box_conv{n}": f"bbox_head.reg_convs.{n - 1}.conv" for n in (1, 2, 3, 4)}
    head |= {"dense/head/logits": "bbox_head.retina_cls", "dense/head/deltas": "bbox_head.retina_reg"}
    modules = pyramid | head
    shapes = {theirs: (6, 2, 3, 5) if "retina" in theirs else (4, 3, 3, 5) for theirs in modules.values()}
    state = {f"{theirs}.weight": numbers(*shape) + i for i, (theirs, shape) in enumerate(shapes.items())}
    state |= {f"{theirs}.bias": numbers(shape[0]) - i for i, (theirs, shape) in enumerate(shapes.items())}

    tree = from_mmdet(state, holding(*(f"{ours}/{leaf}" for ours in modules for leaf in ("kernel", "bias"))))

    flat = {"/".join(path): leaf for path, leaf in flatten(tree).items()}
    assert flat.keys() == {f"params/{ours}/{leaf}" for ours in modules for leaf in ("kernel", "bias")}
    for ours, theirs in modules.items():
        np.testing.assert_array_equal(flat[f"params/{ours}/kernel"], state[f"{theirs}.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(flat[f"params/{ours}/bias"], state[f"{theirs}.bias"])
    np.testing.assert_equal(to_mmdet(tree), state)


def reference_state(model):
    if not REFERENCE.is_dir():
        pytest.skip(f"{REFERENCE} is not here")
    recipe = module_at(REFERENCE / "recipe.py")
    shapes = {}
    for name in ("shapes", "shapes_extra"):
        shapes |= json.loads((REFERENCE / "golden" / f"{name}.json").read_text())
    return recipe.state_dict(shapes[model])


# Configs of the project, and parameter counts of the reference.
MODELS = {
    "faster_rcnn_r50": ("faster_rcnn_r50_fpn", 41_753_056),
    "mask_rcnn_r50": ("mask_rcnn_r50_fpn", 44_396_336),
    "ms_rcnn_r50": ("ms_rcnn_r50_fpn", 60_736_640),
    "htc_r50": ("htc_r50_fpn", 77_456_190),
    "groie1_mask": ("groie_mask_rcnn_r50_fpn", 48_190_258),
    "sbr_cnn": ("sbr_cnn", 62_026_052),
    "retinanet_r50": ("retinanet_r50_fpn", 37_968_692),
    "rdsnet_r50": ("rdsnet_r50_fpn", 44_619_668),
    "yolact_r50": ("yolact_r50_fpn", 35_293_711),
    "condinst_r50": ("condinst_r50_fpn", 34_164_299),
    "gcnet_r4": ("gcnet_mask_rcnn_r50_fpn", 54_397_245),
    "mdcn_c3c5": ("dcnv2_mask_rcnn_r50_fpn", 45_267_599),
    "grid_rcnn_r50": ("grid_rcnn_r50_fpn", 64_548_201),
    "mask_rcnn_x101_32x4d": ("mask_rcnn_x101_32x4d_fpn", 63_017_008),
}


@pytest.mark.parametrize("model", MODELS)
def test_every_reference_name_fills_the_model_and_returns_unchanged(model):
    state, (config, parameters) = reference_state(model), MODELS[model]
    net = importlib.import_module(f"jaxdet.configs.{config}").get_config().model
    batch = Batch(
        image=np.zeros((1, 64, 64, 3), np.uint8),
        true_hw=np.full((1, 2), 64, np.float32),
        scale=np.ones((1, 2), np.float32),
        original_hw=np.full((1, 2), 64, np.int32),
        index=np.zeros(1, np.int32),
        valid=np.ones(1, bool),
    )
    here = jax.eval_shape(lambda key: net.init(key, batch, method="predict"), jax.random.key(0))
    tree = from_mmdet(state, here)
    _, report = merge(here, tree)
    assert len(report.loaded) == len(state)
    assert sum(leaf.size for leaf in flatten(tree["params"]).values()) == parameters
    back = to_mmdet(tree)
    assert set(back) == set(mmdet_names(here).values()) == set(state)
    assert all(np.array_equal(back[name], state[name]) for name in state)
