"""detectron2's weights: Faster R-CNN, Mask R-CNN and RetinaNet with ResNet and FPN.

Boxes, labels and the background (last) are as here, so names and layouts change, and more in two places
([detectron2/modeling](https://github.com/facebookresearch/detectron2/tree/main/detectron2/modeling)):

- RetinaNet's anchors of a cell are ordered by size and then by ratio there, by ratio and then by size here;
- the networks come from Caffe: colours are BGR and are not divided by a standard deviation, a bottleneck has its stride
  in the first convolution.  These are settings, which `from_detectron2` returns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdet.checkpoints.names.layouts import BATCH_NORM, CONV, LINEAR, LINEAR_OVER_7X7, TRANSPOSED_CONV
from jaxdet.checkpoints.names.table import Imported, Pair, Table, from_state, plain_state
from jaxdet.checkpoints.tree import Array

PREFIXES = ("backbone.bottom_up.", "backbone.fpn_", "proposal_generator.", "head.cls_subnet.", "head.bbox_subnet.")
"""How names begin that only detectron2 has."""

REQUIRED = (
    "*backbone.style=caffe",
    "*normalization.channels=bgr",
    "*normalization.mean=103.53,116.28,123.675",
    "*normalization.std=1,1,1",
)
"""Overrides that make a model of a config the same network."""

SETTINGS = (*REQUIRED, "*.clip_shrink=false", "*rpn.*.suppression.least_side=1e-09")
"""Overrides that give a Faster or Mask R-CNN config detectron2's way of computing: deltas are bounded above only, and
proposals without width or height are left out before suppression."""

ONE_BOX, ONE_MASK = "*model.heads.*.class_agnostic=true", "*model.parts.*heads.*.class_agnostic=true"
"""Added to these by a file whose boxes (``CLS_AGNOSTIC_BBOX_REG``) or masks (``CLS_AGNOSTIC_MASK``) are the same for
all classes."""

RETINANET_SETTINGS = (
    *REQUIRED,
    "*.clip_shrink=false",
    "*neck.top.relu=true",
    "*dense.test.pairs_above=0.05",
    "*dense.test.clip=after",
)
"""Those of RetinaNet: a ReLU between P6 and P7; the best pairs of a place and a class go on; boxes are cut to the image
behind suppression."""

#: Constants of the model that are stored beside its weights.
_CONSTANTS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors.", "proposal_generator.anchor_generator.")
_SIZES, _RATIOS = 3, 3  #: of RetinaNet's anchors in a cell


def from_detectron2(state: Mapping[str, Any]) -> Imported:
    """The weights of a model of detectron2's zoo, from a state dict in torch layout.

    Raises:
        ValueError: pixels are normalised otherwise than in the models of the zoo, or as `table.from_state`.
    """
    state = plain_state(state)
    _check_constants(state)
    dropped = tuple(name for name in state if name.startswith(_CONSTANTS))
    kept = {name: value for name, value in state.items() if name not in dropped}
    if "head.cls_score.weight" in kept:
        for name in ("head.cls_score", "head.bbox_pred"):
            kept |= {key: _by_ratio(kept[key], key) for key in (f"{name}.weight", f"{name}.bias") if key in kept}
        return Imported(from_state(_TABLE, kept), dropped=dropped, settings=RETINANET_SETTINGS, required=REQUIRED)
    scores, boxes = (_rows(kept, f"roi_heads.box_predictor.{name}") for name in ("cls_score", "bbox_pred"))
    classes = scores - 1  # the last is background
    masks = _rows(kept, "roi_heads.mask_head.predictor")
    agnostic = ((ONE_BOX,) if boxes == 4 and classes > 1 else ()) + ((ONE_MASK,) if masks == 1 and classes > 1 else ())
    return Imported(
        from_state(_TABLE, kept),
        dropped=dropped,
        settings=(*SETTINGS, *agnostic),
        required=(*REQUIRED, *agnostic),
    )


def _rows(state: Mapping[str, Array], name: str) -> int:
    """How many outputs a layer has; 0 where there is none of that name."""
    bias = state.get(f"{name}.bias")
    return 0 if bias is None else int(np.size(bias))


def _check_constants(state: Mapping[str, Array]) -> None:
    for name, expected in (("pixel_mean", (103.53, 116.28, 123.675)), ("pixel_std", (1.0, 1.0, 1.0))):
        if name in state and not np.allclose(state[name].reshape(-1), expected, atol=1e-3):
            found = [round(float(x), 3) for x in state[name].reshape(-1)[:4]]
            raise ValueError(f"{name}: expected {expected}, of colours in the order BGR, got {found}")


def _by_ratio(value: Array, name: str) -> Array:
    """Output rows ``[sizes, ratios, n]``, flattened, as ``[ratios, sizes, n]``."""
    rows = np.atleast_1d(value)
    if len(rows) % (_SIZES * _RATIOS):
        raise ValueError(f"{name}: expected rows for {_SIZES * _RATIOS} anchors in a cell, got {len(rows)}")
    split = rows.reshape(_SIZES, _RATIOS, -1, *rows.shape[1:])
    return split.swapaxes(0, 1).reshape(rows.shape)


def _backbone() -> Table:
    theirs = "backbone.bottom_up"
    pairs = [Pair("backbone/conv1", f"{theirs}.stem.conv1", CONV)]
    pairs.append(Pair("backbone/bn1", f"{theirs}.stem.conv1.norm", BATCH_NORM))
    for stage in (1, 2, 3, 4):
        ours, block = f"backbone/layer{stage}_{{block}}", f"{theirs}.res{stage + 1}.{{block}}"
        pairs += [
            Pair(f"{ours}/conv{{n}}", f"{block}.conv{{n}}", CONV),
            Pair(f"{ours}/bn{{n}}", f"{block}.conv{{n}}.norm", BATCH_NORM),
            Pair(f"{ours}/downsample_conv", f"{block}.shortcut", CONV),
            Pair(f"{ours}/downsample_bn", f"{block}.shortcut.norm", BATCH_NORM),
        ]
    return tuple(pairs)


_NECK: Table = (
    Pair("neck/lateral{level}", "backbone.fpn_lateral{level}", CONV),
    Pair("neck/output{level}", "backbone.fpn_output{level}", CONV),
    Pair("neck/top/conv{level}", "backbone.top_block.p{level}", CONV),
)
_TWO_STAGE: Table = (
    Pair("rpn/head/conv", "proposal_generator.rpn_head.conv", CONV),
    Pair("rpn/head/objectness", "proposal_generator.rpn_head.objectness_logits", CONV),
    Pair("rpn/head/deltas", "proposal_generator.rpn_head.anchor_deltas", CONV),
    Pair("heads_0/head/trunk/fc1", "roi_heads.box_head.fc1", LINEAR_OVER_7X7),
    Pair("heads_0/head/trunk/fc2", "roi_heads.box_head.fc2", LINEAR),
    Pair("heads_0/head/logits", "roi_heads.box_predictor.cls_score", LINEAR),
    Pair("heads_0/head/deltas", "roi_heads.box_predictor.bbox_pred", LINEAR),
    Pair("masks/heads_0/head/conv{n}", "roi_heads.mask_head.mask_fcn{n}", CONV),
    Pair("masks/heads_0/head/upsample", "roi_heads.mask_head.deconv", TRANSPOSED_CONV),
    Pair("masks/heads_0/head/logits", "roi_heads.mask_head.predictor", CONV),
)
_RETINANET: Table = (
    # Every second module of a tower is a ReLU.
    *(Pair(f"dense/head/class_conv{i + 1}", f"head.cls_subnet.{2 * i}", CONV) for i in range(4)),
    *(Pair(f"dense/head/box_conv{i + 1}", f"head.bbox_subnet.{2 * i}", CONV) for i in range(4)),
    Pair("dense/head/logits", "head.cls_score", CONV),
    Pair("dense/head/deltas", "head.bbox_pred", CONV),
)
_TABLE: Table = (*_backbone(), *_NECK, *_TWO_STAGE, *_RETINANET)
