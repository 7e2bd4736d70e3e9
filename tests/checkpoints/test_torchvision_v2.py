"""torchvision's second generation: its documented names and parameter counts fill the models of the configs."""

from typing import Any

import numpy as np
import pytest

from jaxdet.checkpoints.importing import recognise
from jaxdet.checkpoints.merge import Misfit, merge
from jaxdet.checkpoints.names.torchvision import (
    COCO_IDS,
    MASK_SETTINGS,
    RETINANET_V2_SETTINGS,
    SETTINGS,
    from_torchvision,
)
from jaxdet.checkpoints.public.table import public_weights
from jaxdet.trained import _config_of
from tests.checkpoints.test_torchvision_retinanet import LABELS, backbone_shapes, detector_shapes, variables_of

#: torchvision's num_params; of a batch norm two of its four arrays are parameters.
PARAMETERS = {
    "maskrcnn_resnet50_fpn_v2": 46_359_409,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "retinanet_resnet50_fpn_v2": 38_198_935,
}
WANTED = {
    "maskrcnn_resnet50_fpn_v2": MASK_SETTINGS,
    "fasterrcnn_resnet50_fpn_v2": SETTINGS,
    "retinanet_resnet50_fpn_v2": RETINANET_V2_SETTINGS,
}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def two_stage_shapes(masks: bool) -> dict[str, tuple[int, ...]]:
    shapes = backbone_shapes()
    for i, inputs in enumerate((256, 512, 1024, 2048)):
        for part, size, channels in (("inner_blocks", 1, inputs), ("layer_blocks", 3, 256)):
            shapes[f"backbone.fpn.{part}.{i}.0.weight"] = (256, channels, size, size)
            shapes |= norm(f"backbone.fpn.{part}.{i}.1", 256)
    for i in range(2):
        shapes |= layer(f"rpn.head.conv.{i}.0", 256, 256, 3, 3)
    shapes |= layer("rpn.head.cls_logits", 3, 256, 1, 1) | layer("rpn.head.bbox_pred", 12, 256, 1, 1)
    for head in ("box_head", "mask_head") if masks else ("box_head",):
        for i in range(4):
            shapes[f"roi_heads.{head}.{i}.0.weight"] = (256, 256, 3, 3)
            shapes |= norm(f"roi_heads.{head}.{i}.1", 256)
    shapes |= layer("roi_heads.box_head.5", 1024, 256 * 49)
    shapes |= layer("roi_heads.box_predictor.cls_score", LABELS, 1024)
    shapes |= layer("roi_heads.box_predictor.bbox_pred", 4 * LABELS, 1024)
    if masks:
        shapes |= layer("roi_heads.mask_predictor.conv5_mask", 256, 256, 2, 2)
        shapes |= layer("roi_heads.mask_predictor.mask_fcn_logits", LABELS, 256, 1, 1)
    return shapes


def one_stage_shapes() -> dict[str, tuple[int, ...]]:
    shapes = backbone_shapes() | detector_shapes(new=True)
    shapes["backbone.fpn.extra_blocks.p6.weight"] = (256, 2048, 3, 3)
    for tower in ("classification_head", "regression_head"):
        for i in range(4):
            # The convolution has no bias; the norm is one of groups, without statistics.
            del shapes[f"head.{tower}.conv.{i}.0.bias"]
            shapes |= layer(f"head.{tower}.conv.{i}.1", 256)
    return shapes


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return one_stage_shapes() if name.startswith("retinanet") else two_stage_shapes(name.startswith("mask"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_name_fills_the_model_that_goes_with_the_weights(name: str) -> None:
    shapes = shapes_of(name)
    assert sum(np.prod(shape) for key, shape in shapes.items() if "running_" not in key) == PARAMETERS[name]
    state: dict[str, Any] = {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}
    row = public_weights()[name]
    here = variables_of(_config_of(row).model)

    imported = recognise(state, here)

    assert imported.category_ids == COCO_IDS
    assert imported.settings == WANTED[name] == row.settings
    _, report = merge(here, imported.variables)
    assert len(report.loaded) == len(shapes)


def test_the_settings_of_the_first_generation_are_those_of_its_weights() -> None:
    from jaxdet.checkpoints.names.torchvision import RETINANET_SETTINGS

    rows = public_weights()
    assert rows["maskrcnn_resnet50_fpn"].settings == MASK_SETTINGS
    assert rows["fasterrcnn_resnet50_fpn"].settings == SETTINGS
    assert rows["retinanet_resnet50_fpn"].settings == RETINANET_SETTINGS


def test_only_the_first_generation_is_without_epsilon() -> None:
    small = {"roi_heads.box_predictor.cls_score.weight": np.ones((3, 2), np.float32)}
    variance = {"backbone.body.bn1.running_var": np.float32([0.5])}
    second = {"backbone.fpn.inner_blocks.0.1.weight": np.float32([1])}
    for state, expected in ((small | variance, 0.5 - 1e-5), (small | variance | second, 0.5)):
        found = from_torchvision(state).variables["batch_stats"]["backbone"]["bn1"]["var"]
        np.testing.assert_array_equal(found, np.float32([expected]))


def test_a_model_without_the_norms_is_told_the_settings_that_it_lacks() -> None:
    ones = np.ones(2, np.float32)
    there = {"params": {"neck": {"lateral3_norm": {"scale": ones}}, "dense": {"head": {"class_norm1": {"bias": ones}}}}}
    with pytest.raises(Misfit, match=r"set model\.neck\.norm=batch model\.dense\.head\.groups=32$"):
        merge({"params": {}}, there)
