"""The SBR-CNN that docs/RESULTS.md compares with smaller systems on generated scenes, from scratch.

It does not follow ``configs/demo.py``, which changes with what is quick: a table that took hours stays true.
"""

from jaxdet.data.settings import Data, Scenes
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.dense import rpn
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import RPNHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FCC
from jaxdet.nn.necks import FPN
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler
from jaxdet.ops.suppression import NMS

SIZE = 128  # pixels
CHANNELS = 48  # of the pyramid
LEVELS = (2, 3)  # objects are some tens of pixels large


def get_config() -> Experiment:
    boxes = BoxBranch(
        GRoIE(size=7, pre=ConvReLU(3), levels=LEVELS),
        BoxHead(FCC((32, 16), kernel="7x3", reduce="first"), class_agnostic=True),
    )
    masks = MaskBranch(GRoIE(size=14, pre=ConvReLU(1), levels=LEVELS), FCN(channels=32, convs=2, linked=True))
    proposals = rpn(
        RPNHead(channels=64),
        anchors=Anchors(scales=(6.0,)),  # the smallest has a side of 24 pixels; half the objects are below 35
        sampler=Sampler(number=128, positive_fraction=0.5),
        train=(300, 200),
        test=(300, 200),
    )
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=32, frozen_stages=-1, norm="group"),
        neck=FPN(channels=CHANNELS),
        rpn=proposals,
        heads=(boxes,),
        stages=make_stages((0, 0), (0.5, 0.6), (1.0, 0.75), sampler=Sampler(number=32, positive_fraction=0.5)),
        test_heads=(0, 0, 0),  # a stage more than in training; worth a point of mask AP
        suppression=NMS(score_threshold=0.001, max_detections=50),
        parts=(MaskPrediction((masks,)), MaskScoring(MaskIoUHead(FCC((32, 16)), channels=CHANNELS))),
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
        length=1500, drops=(480, 870, 1230, 1400), unit="steps", drop_factor=0.4, warmup_steps=100, warmup_ratio=0.01
    )
    optimizer = Optimizer(rule="muon", lr=4e-3, base_batch=4, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    run = Run(log_every=50, checkpoint_every=500, eval_every=0, eval_batch=10, pictures=8)
    return Experiment(model, data, optimizer, run)
