"""Names of dense detectors."""

from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.names.layouts import CONV
from jaxdet.checkpoints.names.mmdet.backbone import convs
from jaxdet.checkpoints.names.table import Pair, Table

RPN: Table = (
    Pair("rpn/head/conv", "rpn_head.rpn_conv", CONV),
    Pair("rpn/head/objectness", "rpn_head.rpn_cls", CONV),
    Pair("rpn/head/deltas", "rpn_head.rpn_reg", CONV),
)


def retina(tree: Mapping[str, Any]) -> Table:
    """Pairs for the head of RetinaNet."""
    head = tree.get("head", {})
    return (
        *convs("dense/head", "bbox_head.cls_convs.{}.conv", head, "class_conv"),
        *convs("dense/head", "bbox_head.reg_convs.{}.conv", head, "box_conv"),
        Pair("dense/head/logits", "bbox_head.retina_cls", CONV),
        Pair("dense/head/deltas", "bbox_head.retina_reg", CONV),
    )
