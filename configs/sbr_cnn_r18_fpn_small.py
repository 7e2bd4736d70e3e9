"""SBR-CNN with ResNet-18 on small images: fine-tuning on one's own data without an accelerator.

Started, fed and sized as ``configs/mask_rcnn_r18_fpn_small.py``: short side 256, half the channels in pyramid and
heads, anchors half as large.  The FCC trunks keep the paper's ratio to the pyramid's channels.  What costs most is left
out as in ``configs/demo.py``: the non-local blocks, the third stage in training, GRoIE's 7x7 kernels.
"""

from jaxdet.configs.base import coco
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.dense import rpn
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import RPNHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FCC
from jaxdet.nn.necks import FPN
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.sampling import Sampler
from jaxdet.ops.suppression import NMS


def get_config() -> Experiment:
    box_head = BoxHead(FCC((64, 32), kernel="7x3", reduce="first"), class_agnostic=True)
    mask_branch = MaskBranch(GRoIE(size=14, pre=ConvReLU(1)), FCN(channels=128, linked=True))
    model = TwoStage(
        num_classes=80,
        backbone=ResNet(depth=18),
        neck=FPN(channels=128),
        rpn=rpn(RPNHead(channels=128), anchors=Anchors(scales=(4.0,)), train=(1000, 500), test=(500, 200)),
        heads=(BoxBranch(GRoIE(size=7, pre=ConvReLU(3)), box_head),),
        stages=make_stages((0, 0), (0.5, 0.6), (1.0, 0.75), sampler=Sampler(number=64, positive_fraction=0.25)),
        test_heads=(0, 0, 0),
        suppression=NMS(score_threshold=0.001),
        parts=(MaskPrediction((mask_branch,)), MaskScoring(MaskIoUHead(FCC((64, 32)), channels=128))),
    )
    schedule = Schedule(length=1000, drops=(700, 900), unit="steps", warmup_steps=100, warmup_ratio=0.01)
    optimizer = Optimizer(rule="muon", lr=2e-3, base_batch=4, weight_decay=1e-2, clip_norm=10.0, schedule=schedule)
    run = Run(eval_every=0, eval_batch=2)
    return coco(model, optimizer, run, short_side=256, long_side=352, batch_size=4, workers=1)
