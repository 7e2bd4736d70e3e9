"""Small one-stage models that learn the demo's generated scenes from scratch; their AP is in docs/RESULTS.md.

    jaxdet train --config benchmarks/experiments/small_one_stage.py:retinanet --workdir runs/retinanet

Names are ``retinanet``, ``rdsnet``, ``mbrm`` (rdsnet with refined boxes), ``direct`` (boxes around masks), ``linear``
(linear combinations of prototypes in place of correlation) and ``condinst``.  Backbone, data and optimizer are those
of ``configs/demo.py``; heads have two convolutions in place of four.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxdet.configs import demo
from jaxdet.configs.base import THIRDS
from jaxdet.experiment import Experiment
from jaxdet.models.dense import DenseDetector, Selection
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.boundaries import BoundaryRefinement, BoxesFrom
from jaxdet.models.parts.instances import InstanceMasks
from jaxdet.models.parts.part import Part
from jaxdet.nn.heads.dense import DenseHead, FCOSHead, RetinaHead
from jaxdet.nn.heads.pixels import PixelBranch, PixelStream, Protonet
from jaxdet.nn.necks import FPN, StridedConvs
from jaxdet.ops.anchors import Anchors, Points
from jaxdet.ops.boxes import DistanceCoder
from jaxdet.ops.instances import Correlation, CroppedEntropy, CutEntropy, Dice, DynamicConvs, Prototypes
from jaxdet.ops.losses import Focal, GIoU
from jaxdet.ops.matching import CentreSampling, Matcher
from jaxdet.ops.suppression import NMS

CHANNELS, GROUPS, CODE = demo.CHANNELS, 16, 16
Pieces: TypeAlias = tuple[DenseDetector, tuple[Part, ...]]
LEVELS = (2, 3, 4, 5)
"""Half the objects are smaller than 35 pixels."""
PIXELS = LEVELS[:3]


def retina(head: DenseHead) -> DenseDetector:
    """Anchors of 16 to 203 pixels."""
    return DenseDetector(
        head,
        places=Anchors(levels=LEVELS, scales=THIRDS),
        matcher=Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0),
        class_loss=Focal(),
        test=Selection(per_level=300, suppression=NMS(score_threshold=0.01, max_detections=50)),
    )


def fcos(code: int) -> DenseDetector:
    return DenseDetector(
        FCOSHead(channels=CHANNELS, convs=2, groups=GROUPS, code=code),
        places=Points(LEVELS),
        coder=DistanceCoder(),
        matcher=CentreSampling(),
        class_loss=Focal(),
        box_loss=GIoU(),
        least_positives=0,
        test=Selection(300, NMS(score_threshold=None, iou_threshold=0.6, max_detections=50), pairs_above=0.01),
    )


def correlation(boxes_from: BoxesFrom | None = None) -> Pieces:
    """RDSNet; its map of pixels is at half the stride of the finest level."""
    maker = Correlation(CODE)
    stream = PixelStream(channels=CHANNELS, code=CODE, groups=GROUPS, levels=PIXELS)
    masks = InstanceMasks(stream, maker, CroppedEntropy(), limit=32)
    parts = (masks,) if boxes_from is None else (masks, BoundaryRefinement(boxes_from))
    return retina(RetinaHead(channels=CHANNELS, convs=2, groups=GROUPS, code=maker.code)), parts


def linear() -> Pieces:
    """YOLACT's masks on the same detector."""
    maker = Prototypes(CODE)
    masks = InstanceMasks(Protonet(CHANNELS, CODE, convs=2, level=2), maker, CutEntropy(), limit=32)
    return retina(RetinaHead(channels=CHANNELS, convs=2, groups=GROUPS, code=maker.code)), (masks,)


def condinst() -> Pieces:
    maker = DynamicConvs()
    branch = PixelBranch(channels=CHANNELS, convs=2, levels=PIXELS)
    return fcos(maker.code), (InstanceMasks(branch, maker, Dice(), limit=64),)


def get_config(name: str = "retinanet") -> Experiment:
    models: dict[str, Callable[[], Pieces]] = {
        "retinanet": lambda: (retina(RetinaHead(channels=CHANNELS, convs=2)), ()),
        "rdsnet": correlation,
        "mbrm": lambda: correlation("mbrm"),
        "direct": lambda: correlation("mask"),
        "linear": linear,
        "condinst": condinst,
    }
    if name not in models:
        raise ValueError(f"expected the name of a model behind the file, got {name!r}: {', '.join(models)}")
    dense, parts = models[name]()
    whole = demo.get_config()
    sbr: Any = whole.model
    neck = FPN(channels=CHANNELS, top=StridedConvs(number=1))
    model = OneStage(num_classes=sbr.num_classes, backbone=sbr.backbone, neck=neck, dense=dense, parts=parts)
    # The demo's schedule, shorter.
    schedule = dataclasses.replace(whole.optimizer.schedule, length=1000, drops=(293, 646, 821, 911, 957))
    return dataclasses.replace(
        whole,
        model=model,
        data=dataclasses.replace(whole.data, masks=bool(parts)),
        optimizer=dataclasses.replace(whole.optimizer, schedule=schedule),
    )
