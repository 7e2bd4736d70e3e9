"""The smallest experiment that is a real one: a Mask R-CNN of some thousand parameters on images of 64 pixels."""

from jaxdet.data.settings import Data, Scenes
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.branches import Head
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import Step
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.single_level import OneLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler


def get_config() -> Experiment:
    head = Head(
        box_extractor=OneLevel(size=7, sampling_ratio=1),
        box_head=BoxHead(FC2(channels=16)),
        mask_extractor=OneLevel(size=14, sampling_ratio=1),
        mask_head=FCN(channels=8, convs=1),
    )
    rpn = RPN(
        head=RPNHead(channels=8),
        anchors=Anchors(),
        pre_nms_train=64,
        post_nms_train=32,
        pre_nms_test=64,
        post_nms_test=32,
    )
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=4, frozen_stages=1),
        neck=FPN(channels=8),
        rpn=rpn,
        heads=(head,),
        schedule=(Step(sampler=Sampler(number=16, positive_fraction=0.25)),),
    )
    data = Data(
        train=Scenes(split="train", count=12, size=64),
        val=Scenes(split="val", count=4, size=64),
        short_side=64,
        long_side=64,
        batch_size=4,
        max_boxes=20,
        mask_size=28,
        workers=0,
    )
    schedule = Schedule(length=6, drops=(4,), unit="steps", warmup_steps=2)
    run = Run(log_every=2, checkpoint_every=3, eval_every=0, eval_batch=4, pictures=2)
    return Experiment(model, data, Optimizer(lr=0.02, base_batch=4, schedule=schedule), run)
