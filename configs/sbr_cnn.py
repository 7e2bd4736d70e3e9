"""SBR-CNN (Rossi et al. 2022) with ResNet-50 and FPN, 1x schedule on COCO.

R3-CNN's loop, convolutions in place of fully connected layers, a mask IoU branch, and GRoIE in front of box and mask
head.  Published: box AP 42.0, mask AP 39.2 (Table 11 row 4); nobody has trained this one on COCO yet.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
from jaxdet.models.finish import Finish
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FCC
from jaxdet.nn.necks import FPN


def get_config() -> Experiment:
    head = Head(
        box_extractor=GRoIE(size=7, pre=ConvReLU(7), post=NonLocal(7)),
        # The authors' code lowers the channels in the first of each pair, other than the paper's Table 1.
        box_head=BoxHead(FCC(kernel="7x3", reduce="first", before=NonLocal(7)), class_agnostic=True),
        mask_extractor=GRoIE(size=14, pre=ConvReLU(7), post=NonLocal(7)),
        mask_head=FCN(linked=True),
        beta=1.0,
    )
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=50),
        neck=FPN(),
        rpn=RPN(head=RPNHead(), border=0.0, beta=1 / 9, post_nms_train=2000),
        heads=(head,),
        schedule=make_schedule((0, 0, 0)),
        mask_iou=MaskIoUHead(FCC(kernel="7x7")),
        finish=Finish(score_threshold=0.001),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
    )
    return Experiment(model, data)
