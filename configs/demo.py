"""Mask R-CNN that learns generated scenes from scratch on two CPU cores in less than ten minutes (``make demo``).

The network is the paper's with fewer channels.  Boxes are class-agnostic, because eight sets of box weights need eight
times the examples; AdamW and no pretrained weights, because there is no time for SGD and nothing to fetch.
"""

from jaxdet.data.settings import Data, Scenes
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.branches import Head
from jaxdet.models.finish import Finish
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import Step
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.box_head import BoxHead
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.fpn import FPN
from jaxdet.nn.mask_head import FCN
from jaxdet.nn.resnet import ResNet
from jaxdet.nn.rpn_head import RPNHead
from jaxdet.nn.trunk import FC2
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler

SIZE = 128  # pixels


def get_config() -> Experiment:
    head = Head(
        box_extractor=OneLevel(size=7, sampling_ratio=2, finest=28.0),
        box_head=BoxHead(FC2(channels=256), class_agnostic=True),
        mask_extractor=OneLevel(size=14, sampling_ratio=2, finest=28.0),
        mask_head=FCN(channels=32, convs=2),
    )
    rpn = RPN(
        head=RPNHead(channels=64),
        anchors=Anchors(scales=(6.0,)),  # the smallest has a side of 24 pixels; half the objects are below 35
        sampler=Sampler(number=128, positive_fraction=0.5),
        pre_nms_train=300,
        post_nms_train=200,
        pre_nms_test=300,
        post_nms_test=200,
    )
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=32, frozen_stages=-1, norm="group"),
        neck=FPN(channels=64),
        rpn=rpn,
        heads=(head,),
        schedule=(Step(sampler=Sampler(number=48, positive_fraction=0.5)),),
        finish=Finish(max_detections=50),
    )
    data = Data(
        train=Scenes("train", count=2000, size=SIZE),
        val=Scenes("val", count=200, size=SIZE),
        short_side=SIZE,
        long_side=SIZE,
        batch_size=4,
        max_boxes=24,
        mask_size=56,
        workers=0,
    )
    schedule = Schedule(
        length=3800, drops=(1200, 2200, 3100, 3550), unit="steps", drop_factor=0.4, warmup_steps=100, warmup_ratio=0.01
    )
    optimizer = Optimizer(rule="adamw", lr=1.5e-3, base_batch=4, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    run = Run(log_every=50, checkpoint_every=1400, eval_every=0, eval_batch=10, pictures=8)
    return Experiment(model, data, optimizer, run)
