"""Names of dense detectors."""

from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.names.layouts import CONV, GROUP_NORM, scalar
from jaxdet.checkpoints.names.mmdet.backbone import convs, numbers
from jaxdet.checkpoints.names.table import Pair, Table


def rpn(model: Mapping[str, Any]) -> Table:
    """Pairs for the RPN; several convolutions are a list there."""
    ours, theirs = "rpn/head", "rpn_head.rpn_conv"
    more = numbers("conv", model["rpn"].get("head", {}))
    return (
        Pair(f"{ours}/conv", f"{theirs}.0.conv" if more else theirs, CONV),
        *(Pair(f"{ours}/conv{n}", f"{theirs}.{n - 1}.conv", CONV) for n in more),
        Pair(f"{ours}/objectness", "rpn_head.rpn_cls", CONV),
        Pair(f"{ours}/deltas", "rpn_head.rpn_reg", CONV),
    )


def dense_head(model: Mapping[str, Any]) -> Table:
    """Pairs for the head of a one-stage model: RetinaNet's and RDSNet's, FCOS's as CondInst has it, or YOLACT's."""
    head = model["dense"].get("head", {})
    if "centerness" in head:
        outputs = ("conv_cls", "conv_reg", "controller")
    elif "conv" in head:
        outputs = ("conv_cls", "conv_reg", "conv_coeff")
    else:
        outputs = ("retina_cls", "retina_reg", "retina_rep")
    ours = "dense/head"
    towers: list[Pair] = []
    for name, theirs in (("class", "cls"), ("box", "reg"), ("code", "rep")):
        towers += convs(ours, f"bbox_head.{theirs}_convs.{{}}.conv", head, f"{name}_conv")
        towers += convs(ours, f"bbox_head.{theirs}_convs.{{}}.gn", head, f"{name}_norm", GROUP_NORM)
    return (
        *towers,
        *(Pair(f"{ours}/{name}", f"bbox_head.{o}", CONV) for name, o in zip(_OUTPUTS, outputs, strict=True)),
        # Pairs without leaves do nothing.
        Pair(f"{ours}/conv", "bbox_head.head_convs.0.conv", CONV),
        Pair(f"{ours}/centerness", "bbox_head.conv_centerness", CONV),
        *(Pair(ours, f"bbox_head.scales.{n}", (scalar(f"factor{n}", "scale"),)) for n in numbers("factor", head)),
    )


_OUTPUTS = ("logits", "deltas", "codes")
