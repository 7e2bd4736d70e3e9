"""RDSNet with ResNet-18 on small images: fine-tuning on one's own data without an accelerator.

Start it from ImageNet weights (``run.init_from=FILE``) and name the data by overrides, as in
``data.train.images=DIR data.train.annotations=FILE model.num_classes=1``.  Short side 256; FPN and heads have half the
channels; anchors are half as large, because the objects are, and the pixel stream begins a level finer.  Boxes follow
masks: the refinement is trained along with the rest, to which it sends no gradient.
"""

from typing import Any

from jaxdet.configs.base import THIRDS, coco
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.dense import DenseDetector, Selection
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.boundaries import BoundaryRefinement
from jaxdet.models.parts.instances import InstanceMasks
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads.dense import RetinaHead
from jaxdet.nn.heads.pixels import PixelStream
from jaxdet.nn.necks import FPN, StridedConvs
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.instances import Correlation, CroppedEntropy
from jaxdet.ops.losses import Focal
from jaxdet.ops.matching import Matcher
from jaxdet.ops.suppression import NMS


def get_config() -> Experiment:
    maker = Correlation()
    pixels = PixelStream(channels=128, levels=(2, 3, 4, 5))
    model = OneStage(
        num_classes=80,
        backbone=ResNet(depth=18),
        neck=FPN(channels=128, top=StridedConvs(number=1)),
        dense=DenseDetector(
            RetinaHead(channels=128, convs=2, groups=32, code=maker.code),
            places=Anchors(levels=(3, 4, 5, 6), scales=tuple(scale / 2 for scale in THIRDS)),
            matcher=Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0),
            class_loss=Focal(),
            test=Selection(per_level=1000, suppression=NMS(score_threshold=0.05)),
        ),
        parts=(InstanceMasks(pixels, maker, CroppedEntropy()), BoundaryRefinement()),
    )
    schedule = Schedule(length=1000, drops=(700, 900), unit="steps", warmup_steps=100, warmup_ratio=0.01)
    optimizer = Optimizer(rule="adamw", lr=5e-4, base_batch=4, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    data: dict[str, Any] = {"short_side": 256, "long_side": 352, "batch_size": 4, "workers": 1, "whole_masks": True}
    return coco(model, optimizer, Run(eval_every=0), **data)
