"""Mask R-CNN with GRoIE as first published (Rossi et al. 2020), ResNet-50 and FPN, 1x schedule on COCO.

Boxes read all levels, for the box head and for the mask head: 5x5 convolution, sum, attention.  Published: box AP 38.6
and mask AP 35.8 (R3-CNN Table 4, row 4); nobody has trained this one on COCO yet.  GRoIE's own Table V (38.4 and 35.8)
has other settings: ``configs/tables/groie_table5.py:mask_groie``.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
from jaxdet.models.proposals import RPN
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN


def get_config() -> Experiment:
    head = Head(
        box_extractor=GRoIE(size=7, pre=ConvReLU(5), post=Attention()),
        box_head=BoxHead(FC2()),
        mask_extractor=GRoIE(size=14, pre=ConvReLU(5), post=Attention()),
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
