"""SBR-CNN with ResNet-18 on small images: fine-tuning on one's own data without an accelerator.

Started, fed and sized as ``configs/mask_rcnn_r18_fpn_small.py``: short side 256, half the channels in pyramid and
heads, anchors half as large.  The FCC trunks keep the paper's ratio to the pyramid's channels.  What costs most is left
out as in ``configs/demo.py``: the non-local blocks, the third step in training, GRoIE's 7x7 kernels.
"""

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.branches import Head
from jaxdet.models.finish import Finish
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FCC
from jaxdet.nn.necks import FPN
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler


def get_config() -> Experiment:
    head = Head(
        box_extractor=GRoIE(size=7, pre=ConvReLU(3)),
        box_head=BoxHead(FCC((64, 32), kernel="7x3", reduce="first"), class_agnostic=True),
        mask_extractor=GRoIE(size=14, pre=ConvReLU(1)),
        mask_head=FCN(channels=128, linked=True),
    )
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=18),
        neck=FPN(channels=128),
        rpn=RPN(
            head=RPNHead(channels=128),
            anchors=Anchors(scales=(4.0,)),
            pre_nms_train=1000,
            post_nms_train=500,
            pre_nms_test=500,
            post_nms_test=200,
        ),
        heads=(head,),
        schedule=make_schedule((0, 0), (0.5, 0.6), (1.0, 0.75), sampler=Sampler(number=64, positive_fraction=0.25)),
        test_heads=(0, 0, 0),
        mask_iou=MaskIoUHead(FCC((64, 32)), channels=128),
        finish=Finish(score_threshold=0.001),
    )
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
        short_side=256,
        long_side=352,
        batch_size=4,
        workers=1,
    )
    schedule = Schedule(length=1000, drops=(700, 900), unit="steps", warmup_steps=100, warmup_ratio=0.01)
    optimizer = Optimizer(rule="muon", lr=2e-3, base_batch=4, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    return Experiment(model, data, optimizer, Run(eval_every=0, eval_batch=2))
