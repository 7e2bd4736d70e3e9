"""Mask R-CNN, small, on the built-in scenes: what ``make demo`` trains in some minutes on two cores.

Images of 128 pixels, a ResNet-18 of half the width, heads of a quarter.  Everything is trained from scratch.
"""

from jaxdet.data.settings import Data, Scenes
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.branches import Head
from jaxdet.models.loop import Step
from jaxdet.models.proposals import RPN
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.box_head import FC2
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.fpn import FPN
from jaxdet.nn.mask_head import FCN
from jaxdet.nn.resnet import ResNet
from jaxdet.nn.rpn_head import RPNHead
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler


def get_config() -> Experiment:
    head = Head(
        box_extractor=OneLevel(size=7, sampling_ratio=2, finest=28.0),
        box_head=FC2(channels=256, class_agnostic=True),
        mask_extractor=OneLevel(size=14, sampling_ratio=1, finest=28.0),
        mask_head=FCN(channels=64, convs=2),
    )
    rpn = RPN(
        head=RPNHead(channels=64),
        anchors=Anchors(scales=(4.0,)),
        pre_nms_train=300,
        post_nms_train=150,
        pre_nms_test=300,
        post_nms_test=150,
    )
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=32, frozen_stages=-1, norm="group"),
        neck=FPN(channels=64),
        rpn=rpn,
        heads=(head,),
        schedule=(Step(sampler=Sampler(number=64, positive_fraction=0.25)),),
    )
    data = Data(
        train=Scenes(split="train", count=3000, size=128),
        val=Scenes(split="val", count=200, size=128),
        short_side=128,
        long_side=128,
        batch_size=8,
        max_boxes=30,
        mask_size=56,
        workers=1,
    )
    schedule = Schedule(length=2000, drops=(1500, 1850), unit="steps", warmup_steps=100, warmup_ratio=0.01)
    optimizer = Optimizer(rule="adamw", lr=1e-3, base_batch=8, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    return Experiment(model, data, optimizer, Run(checkpoint_every=500, eval_every=1000))
