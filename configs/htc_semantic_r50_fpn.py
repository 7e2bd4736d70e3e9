"""Hybrid Task Cascade (Chen et al. 2019) with its semantic branch, ResNet-50 and FPN, 1x schedule on COCO.

The branch learns COCO-stuff's maps, which lie beside the images in ``stuffthingmaps``; box and mask branches add what
it sees to their crops.  The reference implementation publishes box AP 42.3 and mask AP 37.4 on val2017 for these
settings (mmdetection's model zoo, htc_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
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
from jaxdet.nn.heads.semantic import PlusSemantic, SemanticHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN
from jaxdet.ops.boxes import DeltaCoder


def make_head(coder: DeltaCoder, *, linked: bool) -> Head:
    return Head(
        box_extractor=PlusSemantic(OneLevel(size=7)),
        box_head=BoxHead(FC2(), class_agnostic=True),
        mask_extractor=PlusSemantic(OneLevel(size=14)),
        mask_head=FCN(linked=linked),
        coder=coder,
        beta=1.0,
    )


def get_config() -> Experiment:
    heads = (
        make_head(DeltaCoder((0.1, 0.1, 0.2, 0.2)), linked=False),  # nothing comes before it
        make_head(DeltaCoder((0.05, 0.05, 0.1, 0.1)), linked=True),
        make_head(DeltaCoder((0.033, 0.033, 0.067, 0.067)), linked=True),
    )
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=50),
        neck=FPN(),
        rpn=RPN(head=RPNHead(), border=0.0, beta=1 / 9, post_nms_train=2000),
        heads=heads,
        schedule=make_schedule((0, 1, 2), (0.5, 0.6, 0.7), (1.0, 0.5, 0.25)),
        semantic=SemanticHead(),
        finish=Finish(score_threshold=0.001),
    )
    annotations = "data/coco/annotations/instances_{}.json"
    data = Data(
        train=CocoFolder(
            "data/coco/train2017", annotations.format("train2017"), stuff="data/coco/stuffthingmaps/train2017"
        ),
        val=CocoFolder("data/coco/val2017", annotations.format("val2017")),
    )
    return Experiment(model, data)
