"""A small SBR-CNN that learns generated scenes from scratch on two CPU cores in minutes (``make demo``).

The paper's network with fewer channels: GRoIE in place of both extractors, an FCC box head in a loop, linked mask
passes, mask IoU.  What costs most is left out: the non-local blocks, the third stage in training, GRoIE's 7x7 kernels,
the backbone's last stage.  Muon and no pretrained weights, because there is no time for SGD and nothing to fetch.
"""

from jaxdet.data.settings import Data, Scenes
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

SIZE = 128  # pixels
CHANNELS = 32  # each level of the pyramid has so many
LEVELS = (2, 3)  # objects are some tens of pixels large


def get_config() -> Experiment:
    boxes = BoxBranch(
        GRoIE(size=7, pre=ConvReLU(3), sampling_ratio=1, levels=LEVELS),
        BoxHead(FCC((32, 16), kernel="7x3", reduce="first"), class_agnostic=True),
    )
    masks = MaskBranch(
        GRoIE(size=14, pre=ConvReLU(1), sampling_ratio=1, levels=LEVELS),
        FCN(channels=32, convs=2, linked=True),
    )
    proposals = rpn(
        RPNHead(channels=CHANNELS),
        # Sides of 24 to 192 pixels; half the objects are smaller than 35.
        anchors=Anchors(levels=(2, 3, 4, 5), scales=(6.0,)),
        sampler=Sampler(number=128, positive_fraction=0.5),
        train=(300, 200),
        test=(300, 200),
    )
    model = TwoStage(
        num_classes=8,
        backbone=ResNet(depth=18, width=32, stages=3, frozen_stages=-1, norm="group"),
        neck=FPN(channels=CHANNELS),
        rpn=proposals,
        heads=(boxes,),
        stages=make_stages((0, 0), (0.5, 0.6), (1.0, 0.75), sampler=Sampler(number=32, positive_fraction=0.25)),
        test_heads=(0, 0, 0),  # a stage more than in training; worth a point of mask AP
        suppression=NMS(score_threshold=0.001, max_detections=50),
        parts=(MaskPrediction((masks,)), MaskScoring(MaskIoUHead(FCC((32, 16)), channels=32))),
    )
    data = Data(
        train=Scenes("train", count=2000, size=SIZE),
        val=Scenes("val", count=200, size=SIZE),
        short_side=SIZE,
        long_side=SIZE,
        batch_size=4,
        max_boxes=24,
        mask_size=56,
        workers=0,
    )
    schedule = Schedule(
        length=1400,
        drops=(410, 905, 1150, 1275, 1340),  # close to a straight line down to 0
        unit="steps",
        drop_factor=0.5,
        warmup_steps=100,
        warmup_ratio=0.01,
    )
    optimizer = Optimizer(
        rule="muon",
        lr=3e-3,
        base_batch=4,
        weight_decay=1e-2,
        muon_steps=3,
        muon_norm="schatten",
        clip_norm=10.0,
        schedule=schedule,
    )
    run = Run(log_every=50, checkpoint_every=500, eval_every=0, eval_batch=10, pictures=8)
    return Experiment(model, data, optimizer, run)
