"""Cascade Mask R-CNN (Cai and Vasconcelos 2019) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 41.2 and mask AP 35.9 on val2017 for these settings (mmdetection's
model zoo, cascade_mask_rcnn_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment
from jaxdet.models.branches import Head
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
from jaxdet.ops.boxes import DeltaCoder

# Each head sees better boxes than the one before: smaller deltas, scaled up.
CODERS = (
    DeltaCoder((0.1, 0.1, 0.2, 0.2)),
    DeltaCoder((0.05, 0.05, 0.1, 0.1)),
    DeltaCoder((0.033, 0.033, 0.067, 0.067)),
)


def make_head(coder: DeltaCoder) -> Head:
    return Head(
        box_extractor=OneLevel(size=7),
        box_head=BoxHead(FC2(), class_agnostic=True),
        mask_extractor=OneLevel(size=14),
        mask_head=FCN(),
        coder=coder,
        beta=1.0,
    )


def get_config() -> Experiment:
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=50),
        neck=FPN(),
        rpn=RPN(head=RPNHead(), border=0.0, beta=1 / 9, post_nms_train=2000),
        heads=tuple(make_head(coder) for coder in CODERS),
        schedule=make_schedule(
            (0, 1, 2), (0.5, 0.6, 0.7), (1.0, 0.5, 0.25), interleaved=False, mask_passes="none", low_quality=False
        ),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
    )
    return Experiment(model, data)
