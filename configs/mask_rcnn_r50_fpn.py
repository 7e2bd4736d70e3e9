"""Mask R-CNN (He et al. 2017) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 38.2 and mask AP 34.7 on val2017 for these settings (mmdetection's
model zoo, mask_rcnn_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
from jaxdet.models.proposals import RPN
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.single_level import OneLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN


def get_config() -> Experiment:
    head = Head(
        box_extractor=OneLevel(size=7),
        box_head=BoxHead(FC2()),
        mask_extractor=OneLevel(size=14),
        mask_head=FCN(),
    )
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=50),
        neck=FPN(),
        rpn=RPN(head=RPNHead()),
        heads=(head,),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
    )
    return Experiment(model, data)
