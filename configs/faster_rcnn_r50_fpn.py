"""Faster R-CNN (Ren et al. 2015) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 37.4 on val2017 for these settings (mmdetection's model zoo,
faster_rcnn_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import Step
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.single_level import OneLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN
from jaxdet.ops.matching import Matcher


def get_config() -> Experiment:
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=50),
        neck=FPN(),
        rpn=RPN(head=RPNHead()),
        heads=(Head(box_extractor=OneLevel(size=7), box_head=BoxHead(FC2())),),
        # The reference lets low-quality matches into the heads of Mask R-CNN but not of Faster R-CNN.
        schedule=(Step(matcher=Matcher(positive_iou=0.5, negative_iou=0.5, low_quality=False)),),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
        masks=False,
    )
    return Experiment(model, data)
