"""Names of the box and mask heads of torchvision's Faster and Mask R-CNN."""

from jaxdet.checkpoints.names.layouts import BATCH_NORM, CONV, LINEAR, LINEAR_OVER_7X7, TRANSPOSED_CONV
from jaxdet.checkpoints.names.table import Pair, Table, either
from jaxdet.checkpoints.names.torchvision.classes import ClassOutputs

CLASS_LOGITS = "roi_heads.box_predictor.cls_score"
_DELTAS = "roi_heads.box_predictor.bbox_pred"
MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits"

OUTPUTS = (ClassOutputs(CLASS_LOGITS, background=True), ClassOutputs(_DELTAS, size=4), ClassOutputs(MASK_LOGITS))
"""Background is label 0 there and the last one here; its boxes and masks have no counterpart."""


def _boxes() -> Table:
    """Pairs for the box head: two fully connected layers, or a sequence of four convolutions with norms and one."""
    trunk = "heads_0/head/trunk"
    pairs = [
        # Behind the convolutions the sequence has a flattening, without weights.
        *either(f"{trunk}/fc1", ("roi_heads.box_head.fc6", "roi_heads.box_head.5"), LINEAR_OVER_7X7),
        Pair(f"{trunk}/fc2", "roi_heads.box_head.fc7", LINEAR),
        Pair("heads_0/head/logits", CLASS_LOGITS, LINEAR),
        Pair("heads_0/head/deltas", _DELTAS, LINEAR),
    ]
    for i in range(4):
        pairs.append(Pair(f"{trunk}/conv{i + 1}", f"roi_heads.box_head.{i}.0", CONV))
        pairs.append(Pair(f"{trunk}/norm{i + 1}", f"roi_heads.box_head.{i}.1", BATCH_NORM))
    return tuple(pairs)


def _masks() -> Table:
    pairs = [
        Pair("masks/heads_0/head/upsample", "roi_heads.mask_predictor.conv5_mask", TRANSPOSED_CONV),
        Pair("masks/heads_0/head/logits", MASK_LOGITS, CONV),
    ]
    for i in range(4):
        names = (f"roi_heads.mask_head.mask_fcn{i + 1}", f"roi_heads.mask_head.{i}.0")
        pairs += either(f"masks/heads_0/head/conv{i + 1}", names, CONV)
        pairs.append(Pair(f"masks/heads_0/head/norm{i + 1}", f"roi_heads.mask_head.{i}.1", BATCH_NORM))
    return tuple(pairs)


BOXES: Table = _boxes()
MASKS: Table = _masks()
