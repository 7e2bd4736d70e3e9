"""Names of mmdetection 2.x for a model's parts: rows built from what the model's parameter tree holds.

A head's modules stand at names that depend on the composition: ``roi_head.bbox_head`` of a Mask R-CNN is
``roi_head.bbox_head.0`` in a cascade, and ``shared_fcs.1`` is a fully connected layer, a convolution or a non-local
block.  Our tree names each of them for what it is, so it says which rows apply.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.names.layouts import (
    BATCH_NORM,
    CONV,
    LINEAR,
    LINEAR_OVER_7X7,
    TRANSPOSED_CONV,
    VECTOR,
    Leaf,
)
from jaxdet.checkpoints.names.table import Row, Table

Tree = Mapping[str, Any]


def table_for(variables: Tree) -> Table:
    """Rows for the composition in a model's variables: arrays or shapes, the whole tree or some parts of it."""
    tree = variables.get("params", {})
    rows = [*resnet("backbone", "backbone."), *_fpn(), *_RPN]
    for name in tree:
        if name.startswith("heads_"):
            rows += _head(name, _suffix(name, tree), tree[name])
    if "mask_iou" in tree:
        rows += _mask_iou("mask_iou", "roi_head.mask_iou_head", tree["mask_iou"])
    if "semantic" in tree:
        rows += _semantic("semantic", "roi_head.semantic_head", tree["semantic"])
    return tuple(rows)


def resnet(ours: str, theirs: str) -> Table:
    """Rows of a ResNet; torchvision and mmdetection name its modules alike."""
    block, their_block = f"{ours}/layer{{stage}}_{{block}}", f"{theirs}layer{{stage}}.{{block}}"
    return (
        Row(f"{ours}/conv1", f"{theirs}conv1", CONV),
        Row(f"{ours}/bn1", f"{theirs}bn1", BATCH_NORM),
        Row(f"{block}/conv{{n}}", f"{their_block}.conv{{n}}", CONV),
        Row(f"{block}/bn{{n}}", f"{their_block}.bn{{n}}", BATCH_NORM),
        Row(f"{block}/downsample_conv", f"{their_block}.downsample.0", CONV),
        Row(f"{block}/downsample_bn", f"{their_block}.downsample.1", BATCH_NORM),
    )


def _fpn() -> Table:
    lateral = (Row(f"neck/lateral{i + 2}", f"neck.lateral_convs.{i}.conv", CONV) for i in range(4))
    output = (Row(f"neck/output{i + 2}", f"neck.fpn_convs.{i}.conv", CONV) for i in range(4))
    return (*lateral, *output)


_RPN: Table = (
    Row("rpn/head/conv", "rpn_head.rpn_conv", CONV),
    Row("rpn/head/objectness", "rpn_head.rpn_cls", CONV),
    Row("rpn/head/deltas", "rpn_head.rpn_reg", CONV),
)


def _suffix(head: str, tree: Tree) -> str:
    """``.h`` where the reference keeps its heads in a list: in cascades, and in R3-CNN even for a single head."""
    listed = "heads_1" in tree or "link" in tree[head].get("mask_head", {})
    return f".{head.removeprefix('heads_')}" if listed else ""


def _head(ours: str, suffix: str, tree: Tree) -> Table:
    """Rows of a head pair: two extractors, box head, mask head, each where there is one; other parts have none."""
    builders = {
        "box_extractor": (_extractor, "bbox_roi_extractor"),
        "box_head": (_box_head, "bbox_head"),
        "mask_extractor": (_extractor, "mask_roi_extractor"),
        "mask_head": (_mask_head, "mask_head"),
    }
    rows: list[Row] = []
    for part in builders.keys() & tree.keys():
        build, name = builders[part]
        rows += build(f"{ours}/{part}", f"roi_head.{name}{suffix}", tree[part])
    return tuple(rows)


def _extractor(ours: str, theirs: str, tree: Tree) -> Table:
    """Rows of an extractor over all levels, also where it is part of another one.

    No released checkpoint of 2.x has ``reduce``, so its name is ours.
    """
    if "extractor" in tree:
        return _extractor(f"{ours}/extractor", theirs, tree["extractor"])
    names = {"pre": "pre_module", "post": "post_module"}
    parts = (_module(f"{ours}/{part}", f"{theirs}.{names[part]}", tree[part]) for part in names if part in tree)
    return (*itertools.chain(*parts), Row(f"{ours}/reduce", f"{theirs}.reduce.conv", CONV))


def _box_head(ours: str, theirs: str, tree: Tree) -> Table:
    trunk = tree.get("trunk", {})
    return (
        *_trunk(f"{ours}/trunk", f"{theirs}.shared_fcs", trunk),
        Row(f"{ours}/logits", f"{theirs}.fc_cls", _output(trunk)),
        Row(f"{ours}/deltas", f"{theirs}.fc_reg", _output(trunk)),
    )


def _mask_head(ours: str, theirs: str, tree: Tree) -> Table:
    return (
        *_convs(ours, f"{theirs}.convs.{{}}.conv", tree),
        Row(f"{ours}/upsample", f"{theirs}.upsample", TRANSPOSED_CONV),
        Row(f"{ours}/logits", f"{theirs}.conv_logits", CONV),
        Row(f"{ours}/link", f"{theirs}.conv_res.conv", CONV),
    )


def _semantic(ours: str, theirs: str, tree: Tree) -> Table:
    laterals = _numbers("lateral", tree)
    return (
        *(Row(f"{ours}/lateral{n}", f"{theirs}.lateral_convs.{n - 2}.conv", CONV) for n in laterals),
        *_convs(ours, f"{theirs}.convs.{{}}.conv", tree),
        Row(f"{ours}/embedding", f"{theirs}.conv_embedding.conv", CONV),
        Row(f"{ours}/logits", f"{theirs}.conv_logits", CONV),
    )


def _convs(ours: str, theirs: str, tree: Tree) -> Table:
    """Rows of ``conv1``, ``conv2``, .., which the reference counts from 0, at ``{}`` in ``theirs``."""
    return tuple(Row(f"{ours}/conv{n}", theirs.format(n - 1), CONV) for n in _numbers("conv", tree))


def _numbers(prefix: str, tree: Tree) -> list[int]:
    """The numbers of the names that are the prefix and a number."""
    numbers = (name.removeprefix(prefix) for name in tree if name.startswith(prefix))
    return [int(number) for number in numbers if number.isdecimal()]


def _mask_iou(ours: str, theirs: str, tree: Tree) -> Table:
    trunk = tree.get("trunk", {})
    conv = "" if "fc1" in trunk else ".conv"
    return (
        *_convs(ours, f"{theirs}.convs.{{}}{conv}", tree),
        *_trunk(f"{ours}/trunk", f"{theirs}.fcs", trunk),
        Row(f"{ours}/iou", f"{theirs}.fc_mask_iou", _output(trunk)),
    )


_FCC_ORDER = ("before", "conv1", "conv1a", "conv1b", "conv2", "conv2a", "conv2b", "after")


def _trunk(ours: str, theirs: str, tree: Tree) -> Table:
    """Rows of a trunk; the reference numbers its elements as they come."""
    if "fc1" in tree:
        return (Row(f"{ours}/fc1", f"{theirs}.0", LINEAR_OVER_7X7), Row(f"{ours}/fc2", f"{theirs}.1", LINEAR))
    present = [name for name in _FCC_ORDER if name in tree]
    elements = (_module(f"{ours}/{name}", f"{theirs}.{i}", tree[name]) for i, name in enumerate(present))
    return tuple(itertools.chain(*elements))


def _output(trunk: Tree) -> tuple[Leaf, ...]:
    """Layout of a last layer: after convolutions it reads a flattened 7x7 map, after fc2 a plain vector."""
    return LINEAR if "fc1" in trunk else LINEAR_OVER_7X7


_NON_LOCAL = {"g": "g.conv", "theta": "theta.conv", "phi": "phi.conv", "out": "conv_out.conv"}
_ATTENTION = {"query": "query_conv", "value": "value_conv", "out": "proj_conv"}
_GEOMETRY = {"geometry_x": "appr_geom_fc_x", "geometry_y": "appr_geom_fc_y"}
_GAMMA = (Leaf("params", "gamma", "gamma", VECTOR),)
# The fork's names of two convolutions in a row around an extractor are not known; a Sequential would number them.
_CONVOLUTIONS = {"conv": "conv", "tall": "0.conv", "wide": "1.conv"}


def _module(ours: str, theirs: str, tree: Tree) -> Table:
    """Rows of a part given by value: non-local block, attention or convolutions, told apart by what it holds."""
    if "kernel" in tree:
        return (Row(ours, f"{theirs}.conv", CONV),)
    if "query" in tree:
        linear = _pairs(ours, theirs, _GEOMETRY, LINEAR)
        return (*_pairs(ours, theirs, _ATTENTION, CONV), *linear, Row(ours, theirs, _GAMMA))
    return _pairs(ours, theirs, _NON_LOCAL if "theta" in tree else _CONVOLUTIONS, CONV)


def _pairs(ours: str, theirs: str, names: Mapping[str, str], leaves: tuple[Leaf, ...]) -> Table:
    return tuple(Row(f"{ours}/{name}", f"{theirs}.{their}", leaves) for name, their in names.items())
