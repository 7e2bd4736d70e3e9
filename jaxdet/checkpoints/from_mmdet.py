"""Weights of mmdetection 2.x (and of the forks that kept its names) in both directions.

Labels agree (0..K-1, background last), channels come RGB as in mmdetection's pytorch-style configs, and the order
inside class-specific and anchor outputs is the same, so only names and layouts change.
mmdetection 1.x puts background first and names its heads otherwise: its names are not in the table.
"""

from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.layouts import BATCH_NORM, CONV, LINEAR, LINEAR_OVER_7X7, TRANSPOSED_CONV
from jaxdet.checkpoints.table import Row, Table, from_state, their_name, to_state
from jaxdet.checkpoints.tree import Array, Path, Variables


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


def _heads(ours: str, box: str, mask: str) -> Table:
    return (
        Row(f"{ours}/box_head/trunk/fc1", f"{box}.shared_fcs.0", LINEAR_OVER_7X7),
        Row(f"{ours}/box_head/trunk/fc2", f"{box}.shared_fcs.1", LINEAR),
        Row(f"{ours}/box_head/logits", f"{box}.fc_cls", LINEAR),
        Row(f"{ours}/box_head/deltas", f"{box}.fc_reg", LINEAR),
        *(Row(f"{ours}/mask_head/conv{i + 1}", f"{mask}.convs.{i}.conv", CONV) for i in range(4)),
        Row(f"{ours}/mask_head/upsample", f"{mask}.upsample", TRANSPOSED_CONV),
        Row(f"{ours}/mask_head/logits", f"{mask}.conv_logits", CONV),
    )


TABLE: Table = (
    *resnet("backbone", "backbone."),
    *_fpn(),
    *_RPN,
    *_heads("heads_0", "roi_head.bbox_head", "roi_head.mask_head"),
)


def from_mmdet(state: Mapping[str, Any]) -> Variables:
    """``{"params": ..., "batch_stats": ...}``, float32, of an mmdetection state dict in torch layout.

    Names that no row knows stay in the collection ``unmapped``, where ``merge`` lists them.  Errors as
    ``table.from_state``.
    """
    return from_state(TABLE, state)


def to_mmdet(variables: Mapping[str, Any]) -> dict[str, Array]:
    """The mmdetection state dict of variables: the inverse of ``from_mmdet``, errors as ``table.to_state``."""
    return to_state(TABLE, variables)


def mmdet_name(path: Path) -> str:
    """mmdetection's name of a leaf by its path below the collection.

    ``("rpn", "head", "conv", "kernel")`` is ``"rpn_head.rpn_conv.weight"``.
    """
    return their_name(TABLE, path)
