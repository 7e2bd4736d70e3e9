"""torchvision's weights: ResNet classifiers, and Faster R-CNN, Mask R-CNN and RetinaNet with ResNet and FPN.

torchvision's detectors differ from the reference in more than names
([models/detection](https://github.com/pytorch/vision/tree/main/torchvision/models/detection)).  Taken care of here:

- background is class 0 there and the last one here; boxes and masks have a background output that is dropped.
  RetinaNet has no background, but its label 0 has outputs all the same, which nothing trains: they are dropped;
- the labels of its COCO weights are category ids, with gaps that were never trained;
- its COCO weights of the first generation are meant for a batch norm without epsilon.

Taken care of by settings, which `from_torchvision` returns: see `SETTINGS`, `MASK_SETTINGS`, `RETINANET_SETTINGS` and
`RETINANET_V2_SETTINGS`.  The second generation (``_v2``) has other layers: `configs/mask_rcnn_r50_fpn_v2.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdet.checkpoints.names.table import Imported, Table, from_state, plain_state
from jaxdet.checkpoints.names.torchvision.backbone import BATCH_NORM_EPS, fpn, shift_eps
from jaxdet.checkpoints.names.torchvision.classes import ClassOutputs, count_classes, select_classes
from jaxdet.checkpoints.names.torchvision.dense import RETINA, RETINA_LOGITS, RETINA_NORM, RPN, retina_outputs
from jaxdet.checkpoints.names.torchvision.roi import BOXES, CLASS_LOGITS, MASK_LOGITS, MASKS, OUTPUTS
from jaxdet.checkpoints.tree import Array

SETTINGS = (
    "*.aligned=false",
    "*.sampling_ratio=2",
    "*.clip_shrink=false",
    "*.box_loss.beta=0.1111111111111111",
    "*rpn.places.rounded=true",
    "*suppression.least_side=0.01",
    "*rpn.*.suppression.least_side=0.001",
)
"""Overrides that give a Faster or Mask R-CNN config torchvision's way of computing.

RoIAlign without the half-pixel shift, with 2 samples a bin; box deltas bounded above only (at log(1000 / 16)); smooth
L1 with beta 1/9 as box loss, in the RPN and in the head; anchors of whole pixels; small boxes are left out.  What no
setting covers is in docs/DIFFERENCES.md.
"""

MASK_SETTINGS = (*SETTINGS, "*.snapped=true")
"""Those of Mask R-CNN, whose masks are painted into frames of whole pixels."""

_RETINANET = (
    "*neck.top.relu=true",
    "*.clip_shrink=false",
    "*dense.places.rounded=true",
    "*dense.test.pairs_above=0.05",
    "*dense.test.suppression.max_detections=300",
)
RETINANET_SETTINGS = ("*neck.top.source=pyramid", *_RETINANET)
"""Overrides that give a RetinaNet config torchvision's way of computing.

P6 is made from P5, with a ReLU between P6 and P7; box deltas are bounded above only; anchors of whole pixels; the best
pairs of a place and a class go on; 300 detections.  What no setting covers is in docs/DIFFERENCES.md.
"""

RETINANET_V2_SETTINGS = ("*neck.top.source=backbone", "*dense.head.groups=32", *_RETINANET)
"""Those of its second generation: P6 is made from C5, and the towers have group norms."""

_TWO_STAGE: Table = (*fpn(range(2, 6)), *RPN, *BOXES, *MASKS)
_ONE_STAGE: Table = (*fpn(range(3, 6), top=(6, 7)), *RETINA)

#: A name that only the second generation has.
_NORM_OF_PYRAMID = "backbone.fpn.inner_blocks.0.1.weight"

# 1 to 90 without the ten ids that the data set has no category for.
COCO_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
"""The ids of COCO's 80 categories, ascending: what ``keep`` is for its COCO weights in a model of 80 classes."""


def from_torchvision(
    state: Mapping[str, Any], *, keep: Sequence[int] | None = None, batch_norm_eps: float | None = None
) -> Imported:
    """A torchvision ``fasterrcnn_``, ``maskrcnn_`` or ``retinanet_resnet*_fpn``, also ``_v2``, as a jaxdet model.

    The result's ``category_ids`` are torchvision's labels of our labels 0, 1, ..: for COCO weights the category ids 1
    to 90, gaps included, so the model has 90 classes.  ``keep`` chooses among them, as ``COCO_IDS``: the scores of a
    softmax then no longer share the probability mass with the gaps, which is next to none.  ``batch_norm_eps`` is what
    their batch norm adds to the variance: 0 for COCO weights of the first generation, 1e-5 for those of the second and
    for models of one's own; None: by the generation.  ValueError if class counts disagree or ``keep`` names a label
    that is not there.
    """
    state = plain_state(state)
    if batch_norm_eps is None:
        batch_norm_eps = BATCH_NORM_EPS if _NORM_OF_PYRAMID in state or RETINA_NORM in state else 0.0
    state = shift_eps(state, batch_norm_eps)
    outputs, table, settings = _family(state)
    classes = count_classes(state, outputs)
    # Label 0 is the background, or in RetinaNet's case nothing: ours begin with 1.
    labels = tuple(range(1, classes)) if keep is None else tuple(int(label) for label in keep)
    unknown = sorted(set(labels) - set(range(1, classes)))
    if unknown or len(set(labels)) != len(labels):
        raise ValueError(f"keep must name different labels of 1..{classes - 1}, got {list(keep or ())}")
    state = select_classes(state, outputs, classes, labels)
    return Imported(from_state(table, state), category_ids=labels, settings=settings)


def class_count(state: Mapping[str, Array]) -> int:
    """The classes that a detector's last layers tell apart, label 0 included; errors as `from_torchvision`."""
    return count_classes(state, _family(state)[0])


def _family(state: Mapping[str, Array]) -> tuple[tuple[ClassOutputs, ...], Table, tuple[str, ...]]:
    """Layers with classes, names and settings of the family that the weights belong to."""
    if f"{CLASS_LOGITS}.weight" in state:
        return OUTPUTS, _TWO_STAGE, MASK_SETTINGS if f"{MASK_LOGITS}.weight" in state else SETTINGS
    if f"{RETINA_LOGITS}.weight" in state:
        settings = RETINANET_V2_SETTINGS if RETINA_NORM in state else RETINANET_SETTINGS
        return retina_outputs(state), _ONE_STAGE, settings
    raise ValueError(f"neither {CLASS_LOGITS}.weight nor {RETINA_LOGITS}.weight: not a torchvision detector")
