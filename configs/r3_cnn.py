"""R3-CNN, naive (Rossi et al. 2021): one head in a loop of three steps, ResNet-50 and FPN, 1x schedule on COCO.

Published: box AP 40.9, mask AP 37.2 (SBR-CNN, Table 2 row 4); nobody has trained this one on COCO yet.  The deeper
model has a second head for the last step; that and every other row of the papers' tables is in ``configs/tables/``.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
from jaxdet.models.finish import Finish
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.box_head import BoxHead
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.fpn import FPN
from jaxdet.nn.mask_head import FCN
from jaxdet.nn.resnet import ResNet
from jaxdet.nn.rpn_head import RPNHead
from jaxdet.nn.trunk import FC2


def get_config() -> Experiment:
    head = Head(
        box_extractor=OneLevel(size=7),
        box_head=BoxHead(FC2(), class_agnostic=True),
        mask_extractor=OneLevel(size=14),
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
        finish=Finish(score_threshold=0.001),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
    )
    return Experiment(model, data)
