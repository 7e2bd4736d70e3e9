"""Faster R-CNN with GRoIE as first published (Rossi et al. 2020), ResNet-50 and FPN, 1x schedule on COCO.

Boxes read all levels: 5x5 convolution, sum, attention.  Nobody has trained this one on COCO yet.  The published box AP
of 37.5, 1.0 more than without (Table V), is that of ``configs/tables/groie_table5.py:faster_groie``, with the settings
of its time.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import Step
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
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
        heads=(Head(box_extractor=GRoIE(size=7, pre=ConvReLU(5), post=Attention()), box_head=BoxHead(FC2())),),
        schedule=(Step(matcher=Matcher(positive_iou=0.5, negative_iou=0.5, low_quality=False)),),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
        masks=False,
    )
    return Experiment(model, data)
