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
