"""torchvision's weights: ResNet classifiers (also with folded batch norm), Faster and Mask R-CNN with ResNet and FPN.

torchvision's detectors differ from the reference in more than names
([models/detection](https://github.com/pytorch/vision/tree/main/torchvision/models/detection)).  Taken care of here:

- background is class 0 there and the last one here; boxes and masks have a background output that is dropped;
- the labels of its COCO weights are category ids, with gaps that were never trained;
- its COCO weights are meant for a batch norm without epsilon.

Taken care of by ``SETTINGS``, overrides of a config: RoIAlign without the half-pixel shift, with 2 samples a bin; box
deltas bounded above only (at log(1000 / 16)); smooth L1 with beta 1/9 as box loss, in the RPN and in the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdet.checkpoints.names.layouts import CONV, LINEAR, LINEAR_OVER_7X7, TRANSPOSED_CONV
from jaxdet.checkpoints.names.mmdet.backbone import resnet
from jaxdet.checkpoints.names.table import Pair, Table, from_state, plain_state
from jaxdet.checkpoints.tree import Array, Variables

BATCH_NORM_EPS = 1e-5
"""Of the model's batch norm (torch's default too)."""

SETTINGS = ("*.aligned=false", "*.sampling_ratio=2", "*.clip_shrink=false", "*.beta=0.1111111111111111")
"""Overrides that give a Faster or Mask R-CNN config torchvision's way of computing.

What no setting covers: torchvision rounds the corners of its anchors to whole pixels, drops boxes with a side below
1e-3 (proposals) or 1e-2 (detections), and pastes masks after rounding boxes to whole pixels.
"""

COCO_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
"""The ids of COCO's 80 categories, ascending: what ``keep`` is for its COCO weights in a model of 80 classes."""


@dataclass(frozen=True)
class Imported:
    """Weights of another code base as variables of ours."""

    variables: Variables
    category_ids: tuple[int, ...] = ()  #: of labels 0, 1, ..; empty where the file does not say or has no classes
    dropped: tuple[str, ...] = ()  #: names there that have no use here, left out by rule
    within: str = ""  #: the part of a model that these weights fill, as ``merge`` takes it; empty: all of it
    settings: tuple[str, ...] = ()  #: overrides of a model that these weights were trained with


def _either(ours: str, theirs: Sequence[str], leaves: Any) -> Table:
    """Pairs for a module that has changed its name between torchvision's versions."""
    return tuple(Pair(ours, name, leaves) for name in theirs)


def _detector() -> Table:
    rows = [*resnet("backbone", "backbone.body.")]
    for i in range(4):
        for ours, theirs in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            name = f"backbone.fpn.{theirs}.{i}"
            rows += _either(f"neck/{ours}{i + 2}", (name, f"{name}.0"), CONV)
        names = (f"roi_heads.mask_head.mask_fcn{i + 1}", f"roi_heads.mask_head.{i}.0")
        rows += _either(f"masks/heads_0/head/conv{i + 1}", names, CONV)
    return (
        *rows,
        *_either("rpn/head/conv", ("rpn.head.conv", "rpn.head.conv.0.0"), CONV),
        Pair("rpn/head/objectness", "rpn.head.cls_logits", CONV),
        Pair("rpn/head/deltas", "rpn.head.bbox_pred", CONV),
        Pair("heads_0/head/trunk/fc1", "roi_heads.box_head.fc6", LINEAR_OVER_7X7),
        Pair("heads_0/head/trunk/fc2", "roi_heads.box_head.fc7", LINEAR),
        Pair("heads_0/head/logits", CLASS, LINEAR),
        Pair("heads_0/head/deltas", _BOX, LINEAR),
        Pair("masks/heads_0/head/upsample", "roi_heads.mask_predictor.conv5_mask", TRANSPOSED_CONV),
        Pair("masks/heads_0/head/logits", _MASK, CONV),
    )


CLASS = "roi_heads.box_predictor.cls_score"
_BOX = "roi_heads.box_predictor.bbox_pred"
_MASK = "roi_heads.mask_predictor.mask_fcn_logits"
RESNET: Table = resnet("backbone", "")
DETECTOR: Table = _detector()


def from_torchvision_resnet(state: Mapping[str, Any]) -> Imported:
    """The backbone in the weights of a torchvision ResNet classifier; its ``fc`` layer is dropped.

    The variables hold ``backbone`` alone.  Names that are no ResNet's stay in ``unmapped``, for the merge to list.
    """
    state = plain_state(state)
    dropped = tuple(name for name in state if name.startswith("fc."))
    kept = {name: value for name, value in state.items() if name not in dropped}
    return Imported(from_state(RESNET, kept), dropped=dropped, within="backbone")


def from_folded_resnet(state: Mapping[str, Any]) -> Imported:
    """The backbone in a ResNet whose batch norms were folded into its convolutions (torchvision's names).

    Each convolution's bias becomes the bias of a batch norm that does nothing else: scale 1, mean 0, variance
    1 - eps.  Blocks that the file lacks are missed by the merge unless a pattern skips them.
    """
    unfolded: dict[str, Array] = {}
    state = plain_state(state)
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if kind != "bias" or module == "fc":
            unfolded[name] = value
            continue
        norm = f"{module[:-1]}1" if module.endswith("downsample.0") else "bn".join(module.rsplit("conv", 1))
        ones = np.ones_like(value)
        parts = {"weight": ones, "bias": value, "running_mean": 0 * ones, "running_var": ones - BATCH_NORM_EPS}
        unfolded |= {f"{norm}.{part}": array for part, array in parts.items()}
    return from_torchvision_resnet(unfolded)


def from_torchvision(
    state: Mapping[str, Any], *, keep: Sequence[int] | None = None, batch_norm_eps: float = 0.0
) -> Imported:
    """A torchvision ``fasterrcnn_resnet*_fpn`` or ``maskrcnn_resnet*_fpn`` (not ``_v2``) as a jaxdet model.

    The result's ``category_ids`` are torchvision's labels of our labels 0, 1, ..: for COCO weights the category ids 1
    to 90, gaps included, so the model has 90 classes.  ``keep`` chooses among them, as ``COCO_IDS``: the scores then no
    longer share the probability mass with the gaps, which is next to none.  ``batch_norm_eps`` is what their batch
    norm adds to the variance: 0 for COCO_V1 weights, 1e-5 for models of one's own.  ValueError if class counts
    disagree or ``keep`` names a label that is not there.
    """
    state = _shift_eps(plain_state(state), batch_norm_eps)
    classes = _class_count(state)
    labels = tuple(range(1, classes)) if keep is None else tuple(int(label) for label in keep)
    unknown = sorted(set(labels) - set(range(1, classes)))
    if unknown or len(set(labels)) != len(labels):
        raise ValueError(f"keep must name different labels of 1..{classes - 1}, got {list(keep or ())}")
    rows = {
        CLASS: np.array([*labels, 0]),
        _BOX: (4 * np.array(labels, int)[:, None] + np.arange(4)).reshape(-1),
        _MASK: np.array(labels, int),
    }
    for module, order in rows.items():
        for name in (f"{module}.weight", f"{module}.bias"):
            if name in state:
                state[name] = state[name][order]
    return Imported(from_state(DETECTOR, state), category_ids=labels, settings=SETTINGS)


def _class_count(state: Mapping[str, Array]) -> int:
    """Classes with background; ValueError if the outputs disagree."""
    outputs = {CLASS: 1, _BOX: 4, _MASK: 1}
    counts = {
        name: len(state[name]) / group
        for module, group in outputs.items()
        for name in (f"{module}.weight", f"{module}.bias")
        if name in state
    }
    if f"{CLASS}.weight" not in counts:
        raise ValueError(f"no {CLASS}.weight: not a torchvision Faster or Mask R-CNN")
    if len(set(counts.values())) != 1:
        raise ValueError(f"the outputs disagree on the number of classes: {counts}")
    return int(counts[f"{CLASS}.weight"])


def _shift_eps(state: Mapping[str, Array], eps: float) -> dict[str, Array]:
    """Variances that give with our epsilon what they gave with ``eps``."""
    shift = np.float32(eps - BATCH_NORM_EPS)
    return {name: value + shift if name.endswith("running_var") else value for name, value in state.items()}
