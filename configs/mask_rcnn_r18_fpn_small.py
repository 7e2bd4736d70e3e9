"""Mask R-CNN with ResNet-18 on small images: fine-tuning on one's own data without an accelerator.

Start it from ImageNet weights (``run.init_from=FILE``) and name the data by overrides, as in
``data.train.images=DIR data.train.annotations=FILE model.num_classes=1``.  Short side 256; FPN and heads have half the
channels; anchors are half as large, because the objects are.
"""

from jaxdet.configs.base import coco
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.dense import rpn
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import Stage
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import RPNHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler


def get_config() -> Experiment:
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=18),
        neck=FPN(channels=128),
        rpn=rpn(RPNHead(channels=128), anchors=Anchors(scales=(4.0,)), train=(1000, 500)),
        heads=(BoxBranch(SingleLevel(size=7, finest=28.0), BoxHead(FC2(channels=512))),),
        stages=(Stage(sampler=Sampler(number=128, positive_fraction=0.25)),),
        parts=(MaskPrediction((MaskBranch(SingleLevel(size=14, finest=28.0), FCN(channels=128)),)),),
    )
    schedule = Schedule(length=1000, drops=(700, 900), unit="steps", warmup_steps=100, warmup_ratio=0.01)
    optimizer = Optimizer(rule="adamw", lr=5e-4, base_batch=4, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    return coco(model, optimizer, Run(eval_every=0), short_side=256, long_side=352, batch_size=4, workers=1)
