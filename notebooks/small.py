"""A Mask R-CNN that is small enough for the notebooks: it learns generated scenes of 96 pixels on a processor.

ResNet-18 with a quarter of the channels and without its last stage, a pyramid of 32 channels, and the demo's optimizer,
Muon, because there are neither pretrained weights nor time for SGD.
"""

import dataclasses

from jaxdet.configs import demo
from jaxdet.data.settings import Data, Scenes
from jaxdet.experiment import Experiment, Run, Schedule
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

LEVELS = (2, 3)


def get_config() -> Experiment:
    boxes = SingleLevel(size=7, sampling_ratio=1, levels=LEVELS, finest=28.0)
    masks = SingleLevel(size=14, sampling_ratio=1, levels=LEVELS, finest=28.0)
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=16, stages=3, frozen_stages=-1, norm="group"),
        neck=FPN(channels=32),
        rpn=rpn(
            RPNHead(channels=32),
            anchors=Anchors(levels=(2, 3, 4, 5), scales=(6.0,)),
            sampler=Sampler(number=128, positive_fraction=0.5),
            train=(300, 200),
            test=(300, 200),
        ),
        heads=(BoxBranch(boxes, BoxHead(FC2(channels=128))),),
        stages=(Stage(sampler=Sampler(number=32, positive_fraction=0.25)),),
        parts=(MaskPrediction((MaskBranch(masks, FCN(channels=32, convs=2)),)),),
    )
    data = Data(
        train=Scenes("train", count=600, size=96),
        val=None,
        short_side=96,
        long_side=96,
        batch_size=4,
        max_boxes=24,
        mask_size=56,
        workers=0,
    )
    schedule = Schedule(length=400, unit="steps", decay="cosine", drops=(), warmup_steps=40)
    optimizer = dataclasses.replace(demo.get_config().optimizer, schedule=schedule)
    return Experiment(model, data, optimizer, Run(log_every=25, checkpoint_every=200, eval_every=0, eval_batch=4))
