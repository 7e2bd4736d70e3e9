"""Names of torchvision's dense detectors: the RPN, and the head of RetinaNet."""

from collections.abc import Mapping

import numpy as np

from jaxdet.checkpoints.names.layouts import CONV, GROUP_NORM
from jaxdet.checkpoints.names.table import Pair, Table, either
from jaxdet.checkpoints.names.torchvision.classes import ClassOutputs
from jaxdet.checkpoints.tree import Array

RPN: Table = (
    *either("rpn/head/conv", ("rpn.head.conv", "rpn.head.conv.0.0"), CONV),
    Pair("rpn/head/conv2", "rpn.head.conv.1.0", CONV),
    Pair("rpn/head/objectness", "rpn.head.cls_logits", CONV),
    Pair("rpn/head/deltas", "rpn.head.bbox_pred", CONV),
)

RETINA_LOGITS = "head.classification_head.cls_logits"
RETINA_NORM = "head.classification_head.conv.0.1.weight"  #: in the second generation alone
_DELTAS = "head.regression_head.bbox_reg"


def _retina() -> Table:
    """Pairs for RetinaNet's head, whose towers were flat sequences before 0.13: every second module is a ReLU.

    The second generation has a group norm behind each convolution.
    """
    pairs = [Pair("dense/head/logits", RETINA_LOGITS, CONV), Pair("dense/head/deltas", _DELTAS, CONV)]
    for ours, theirs in (("class_conv", "classification_head"), ("box_conv", "regression_head")):
        for i in range(4):
            names = (f"head.{theirs}.conv.{i}.0", f"head.{theirs}.conv.{2 * i}")
            pairs += either(f"dense/head/{ours}{i + 1}", names, CONV)
            norm = ours.replace("conv", "norm")
            pairs.append(Pair(f"dense/head/{norm}{i + 1}", f"head.{theirs}.conv.{i}.1", GROUP_NORM))
    return tuple(pairs)


RETINA: Table = _retina()


def retina_outputs(state: Mapping[str, Array]) -> tuple[ClassOutputs, ...]:
    """The layer with classes, all those of an anchor in a row; how many anchors it has follows from the boxes.

    ValueError: the layers are none that a head here has.
    """
    anchors, rest = divmod(np.atleast_1d(state.get(f"{_DELTAS}.weight", ())).shape[0], 4)
    if anchors == 0 or rest:
        raise ValueError(f"expected {_DELTAS}.weight with 4 rows for each anchor: not a torchvision RetinaNet")
    return (ClassOutputs(RETINA_LOGITS, groups=anchors),)
