"""The smallest experiment that is a real one: a Mask R-CNN of some thousand parameters on images of 64 pixels."""

from jaxdet.data.settings import Data, Scenes
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
from jaxdet.ops.sampling import Sampler


def get_config() -> Experiment:
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=4, frozen_stages=1),
        neck=FPN(channels=8),
        rpn=rpn(RPNHead(channels=8), train=(64, 32), test=(64, 32)),
        heads=(BoxBranch(SingleLevel(size=7, sampling_ratio=1), BoxHead(FC2(channels=16))),),
        stages=(Stage(sampler=Sampler(number=16, positive_fraction=0.25)),),
        parts=(MaskPrediction((MaskBranch(SingleLevel(size=14, sampling_ratio=1), FCN(channels=8, convs=1)),)),),
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
