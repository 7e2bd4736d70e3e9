"""Names of the box and mask heads of torchvision's Faster and Mask R-CNN."""

from jaxdet.checkpoints.names.layouts import CONV, LINEAR, LINEAR_OVER_7X7, TRANSPOSED_CONV
from jaxdet.checkpoints.names.table import Pair, Table, either
from jaxdet.checkpoints.names.torchvision.classes import ClassOutputs

CLASS_LOGITS = "roi_heads.box_predictor.cls_score"
_DELTAS = "roi_heads.box_predictor.bbox_pred"
_MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits"

OUTPUTS = (ClassOutputs(CLASS_LOGITS, background=True), ClassOutputs(_DELTAS, size=4), ClassOutputs(_MASK_LOGITS))
"""Background is label 0 there and the last one here; its boxes and masks have no counterpart."""

BOXES: Table = (
    Pair("heads_0/head/trunk/fc1", "roi_heads.box_head.fc6", LINEAR_OVER_7X7),
    Pair("heads_0/head/trunk/fc2", "roi_heads.box_head.fc7", LINEAR),
    Pair("heads_0/head/logits", CLASS_LOGITS, LINEAR),
    Pair("heads_0/head/deltas", _DELTAS, LINEAR),
)


def _masks() -> Table:
    pairs = [
        Pair("masks/heads_0/head/upsample", "roi_heads.mask_predictor.conv5_mask", TRANSPOSED_CONV),
        Pair("masks/heads_0/head/logits", _MASK_LOGITS, CONV),
    ]
    for i in range(4):
        names = (f"roi_heads.mask_head.mask_fcn{i + 1}", f"roi_heads.mask_head.{i}.0")
        pairs += either(f"masks/heads_0/head/conv{i + 1}", names, CONV)
    return tuple(pairs)


MASKS: Table = _masks()
