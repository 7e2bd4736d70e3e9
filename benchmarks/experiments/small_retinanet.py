"""A small RetinaNet that learns the demo's generated scenes from scratch; box AP in docs/RESULTS.md.

    python train.py --config benchmarks/experiments/small_retinanet.py --workdir runs/retinanet

Backbone, pyramid, data and optimizer are those of ``configs/demo.py``; the head has two convolutions in place of four.
"""

import dataclasses
from typing import Any

from configs import demo
from jaxdet.experiment import Experiment
from jaxdet.models.dense import DenseDetector, Selection
from jaxdet.models.one_stage import OneStage
from jaxdet.nn.heads.dense import RetinaHead
from jaxdet.nn.necks import FPN, StridedConvs
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.losses import Focal
from jaxdet.ops.matching import Matcher
from jaxdet.ops.suppression import NMS


def get_config() -> Experiment:
    whole = demo.get_config()
    sbr: Any = whole.model
    dense = DenseDetector(
        head=RetinaHead(channels=demo.CHANNELS, convs=2),
        # Of 16 to 203 pixels; half the objects are smaller than 35.
        places=Anchors(levels=(2, 3, 4, 5), scales=(4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))),
        matcher=Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0),
        class_loss=Focal(),
        test=Selection(per_level=300, suppression=NMS(score_threshold=0.01, max_detections=50)),
    )
    neck = FPN(channels=demo.CHANNELS, top=StridedConvs(number=1))
    model = OneStage(num_classes=sbr.num_classes, backbone=sbr.backbone, neck=neck, dense=dense)
    return dataclasses.replace(whole, model=model, data=dataclasses.replace(whole.data, masks=False))
