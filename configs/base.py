"""The models of the papers and their data, once: a config is a call of these with its differences.

Every function returns a whole experiment on COCO with ResNet-50, 1x schedule if no other.  Settings are the reference's
(mmdetection 2.x and the authors' forks of it) unless a docstring says otherwise.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import flax.linen as nn

from jaxdet.data.settings import CocoFolder, Data, Expand, MinIoUCrop, PhotometricDistortion, ShortSide
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.dense import DenseDetector, Selection, rpn
from jaxdet.models.detector import Detector
from jaxdet.models.features import Normalization
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.boundaries import BoundaryRefinement, BoxesFrom
from jaxdet.models.parts.instances import InstanceMasks, PixelClasses
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.parts.part import Part
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import Stage, make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import DenseHead, FCOSHead, RetinaHead, RPNHead, YOLACTHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.pixels import PixelBranch, PixelStream, Protonet
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.semantic import PlusSemantic, SemanticHead
from jaxdet.nn.heads.trunk import FC2, FCC, ConvFC
from jaxdet.nn.necks import FPN, StridedConvs
from jaxdet.ops.anchors import Anchors, Points
from jaxdet.ops.boxes import DeltaCoder, DistanceCoder
from jaxdet.ops.instances import (
    Correlation,
    CroppedEntropy,
    CutEntropy,
    Dice,
    DynamicConvs,
    Prototypes,
)
from jaxdet.ops.losses import BoxLoss, CrossEntropy, Focal, GIoU, SmoothL1
from jaxdet.ops.matching import CentreSampling, Matcher
from jaxdet.ops.sampling import HardNegatives
from jaxdet.ops.suppression import NMS, FastNMS

Trunk: TypeAlias = Callable[[], nn.Module]
Extractor: TypeAlias = Callable[[int], nn.Module]
"""Makes the extractor of crops of that size: 7 for boxes, 14 for masks."""

Stds: TypeAlias = tuple[float, float, float, float]

CASCADE_STDS: tuple[Stds, ...] = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Scales of the box deltas of the first, second and third head, the reference's numbers.

Each head gets better boxes than the one before and has less to correct, so that its deltas are scaled up by more.
"""

IOUS = {1: (0.5,), 2: (0.5, 0.6), 3: (0.5, 0.6, 0.7), 4: (0.5, 0.6, 0.7, 0.8), 5: (0.5, 0.6, 0.7, 0.75, 0.8)}
"""The IoU from which on a box is positive, for each stage, by the number of stages: the authors' configs."""

WEIGHTS = {1: (1.0,), 2: (1.0, 0.75), 3: (1.0, 0.75, 0.5), 4: (1.0, 0.75, 0.5, 0.3), 5: (1.0, 0.8, 0.6, 0.5, 0.4)}
"""Weights of the losses of each stage, by the number of stages: the authors' configs."""

THIRDS = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
"""Three scales of anchors an octave, from 4 times the stride on (RetinaNet, Lin et al. 2017, section 4)."""

# Halved from stage to stage (HTC, Chen et al. 2019, section 3.4), as in the reference's Cascade R-CNN.
HTC_WEIGHTS = (1.0, 0.5, 0.25)


def coco(
    model: Detector, optimizer: Optimizer | None = None, run: Run | None = None, *, stuff: bool = False, **data: Any
) -> Experiment:
    """A model on COCO 2017; ``stuff``: with COCO-stuff's maps for a semantic branch; ``data``: other data settings."""
    images, annotations = "data/coco/{}2017", "data/coco/annotations/instances_{}2017.json"
    maps = "data/coco/stuffthingmaps/train2017" if stuff else None
    settings = Data(
        train=CocoFolder(images.format("train"), annotations.format("train"), stuff=maps),
        val=CocoFolder(images.format("val"), annotations.format("val")),
        **data,
    )
    return Experiment(model, settings, optimizer or Optimizer(), run or Run())


def two_stage(heads: Sequence[BoxBranch], *, depth: int = 50, **changes: Any) -> TwoStage:
    """A two-stage model with these box heads on a ResNet and FPN; ``changes`` are settings of `TwoStage`."""
    settings: dict[str, Any] = {"rpn": rpn(), "neck": FPN()} | changes
    return TwoStage(num_classes=80, backbone=ResNet(depth=depth), heads=tuple(heads), **settings)


def box_branch(
    extractor: Extractor = SingleLevel,
    trunk: Trunk = FC2,
    stds: Stds = CASCADE_STDS[0],
    *,
    box_loss: BoxLoss = SmoothL1(),
    agnostic: bool = False,
) -> BoxBranch:
    """A box head on crops of 7x7; ``agnostic``: one box for all classes."""
    return BoxBranch(extractor(7), BoxHead(trunk(), class_agnostic=agnostic), DeltaCoder(stds), box_loss)


def mask_branch(extractor: Extractor = SingleLevel, *, linked: bool = False) -> MaskBranch:
    """A mask head on crops of 14x14."""
    return MaskBranch(extractor(14), FCN(linked=linked))


def cascade_rpn() -> DenseDetector:
    """The RPN in front of a cascade: no training on anchors across the image's border, smooth L1, 2000 proposals."""
    return rpn(border=0.0, box_loss=SmoothL1(1 / 9), train=(2000, 2000))


def faster_rcnn(extractor: Extractor = SingleLevel) -> Experiment:
    """Faster R-CNN (Ren et al. 2015) whose boxes read the pyramid by ``extractor``."""
    # The reference lets low-quality matches into the heads of Mask R-CNN but not of Faster R-CNN.
    stage = Stage(matcher=Matcher(positive_iou=0.5, negative_iou=0.5, low_quality=False))
    return coco(two_stage([box_branch(extractor)], stages=(stage,)), masks=False)


def mask_rcnn(
    extractor: Extractor = SingleLevel, *, depth: int = 50, score: Trunk | None = None, epochs: Literal[12, 36] = 12
) -> Experiment:
    """Mask R-CNN (He et al. 2017), 1x or 3x schedule; ``score``: the trunk of a branch that rates the masks."""
    drops = {12: (8, 11), 36: (28, 34)}[epochs]
    model = two_stage([box_branch(extractor)], depth=depth, parts=mask_parts([mask_branch(extractor)], score))
    return coco(model, Optimizer(schedule=Schedule(length=epochs, drops=drops)))


def rcnn_v2(*, masks: bool) -> Experiment:
    """torchvision's ``_v2`` (after Li et al. 2021): norms in pyramid and heads, more layers in RPN and box head."""
    box = BoxBranch(SingleLevel(7), BoxHead(ConvFC(norm="batch")))
    parts = mask_parts([MaskBranch(SingleLevel(14), FCN(norm="batch"))]) if masks else ()
    return coco(two_stage([box], neck=FPN(norm="batch"), rpn=rpn(RPNHead(convs=2)), parts=parts), masks=masks)


def mask_parts(branches: Sequence[MaskBranch], score: Trunk | None = None) -> tuple[Part, ...]:
    """What follows the boxes: masks, and where ``score`` is a trunk, how good they are."""
    masks = MaskPrediction(tuple(branches))
    return (masks,) if score is None else (masks, MaskScoring(MaskIoUHead(score())))


def cascade_mask_rcnn(*, masks: bool = True) -> Experiment:
    """Cascade Mask R-CNN (Cai and Vasconcelos 2019): three heads, each on the boxes of the one before.

    Without ``masks`` it is Cascade R-CNN.
    """
    heads = [box_branch(stds=stds, box_loss=SmoothL1(1.0), agnostic=True) for stds in CASCADE_STDS]
    stages = make_stages((0, 1, 2), IOUS[3], HTC_WEIGHTS, interleaved=False, mask_passes="none", low_quality=False)
    parts = mask_parts([mask_branch() for _ in heads]) if masks else ()
    return coco(two_stage(heads, rpn=cascade_rpn(), stages=stages, parts=parts), masks=masks)


def htc(extractor: Extractor = SingleLevel, *, semantic: bool = False) -> Experiment:
    """Hybrid Task Cascade (Chen et al. 2019): masks see the boxes of their own stage, and the masks before them.

    ``semantic``: with the branch that learns COCO-stuff, whose maps all crops add.
    """

    def own(size: int) -> nn.Module:
        return PlusSemantic(extractor(size)) if semantic else extractor(size)

    heads = [box_branch(own, stds=stds, box_loss=SmoothL1(1.0), agnostic=True) for stds in CASCADE_STDS]
    model = _interleaved(
        heads,
        [mask_branch(own, linked=i > 0) for i in range(3)],  # nothing comes before the first
        make_stages((0, 1, 2), IOUS[3], HTC_WEIGHTS),
        semantic=SemanticHead() if semantic else None,
    )
    return coco(model, stuff=semantic)


def r3_cnn(
    alternation: str = "aaa",
    *,
    trunk: Trunk = FC2,
    score: Trunk | None = None,
    extractor: Extractor = SingleLevel,
    mask_extractor: Extractor | None = None,
    stds: Sequence[Stds] = CASCADE_STDS,
    ious: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    mask_passes: Literal["stage", "head"] = "stage",
    test_loops: int | None = None,
) -> Experiment:
    """R3-CNN (Rossi et al. 2021) and what is built on it: a head in a loop.

    ``alternation`` is the head of each stage, a letter for each, as in SBR-CNN's Table 5.  ``trunk`` is that of the box
    heads; ``score`` that of the mask IoU branch, if there is one.  ``mask_extractor`` is ``extractor`` if not given.
    ``ious`` and ``weights`` are those of the stages, ``stds`` of the heads.  ``test_loops``: that many times the first
    head at test.
    """
    number = len(set(alternation))
    order = tuple("abc".index(letter) for letter in alternation)
    ious, weights = ious or IOUS[len(order)], weights or WEIGHTS[len(order)]
    model = _interleaved(
        [box_branch(extractor, trunk, stds[i], box_loss=SmoothL1(1.0), agnostic=True) for i in range(number)],
        [mask_branch(mask_extractor or extractor, linked=True) for _ in range(number)],
        make_stages(order, ious, weights, mask_passes=mask_passes),
        score,
        test_heads=None if test_loops is None else (0,) * test_loops,
    )
    return coco(model)


def _interleaved(
    heads: Sequence[BoxBranch],
    mask_branches: Sequence[MaskBranch],
    stages: tuple[Stage, ...],
    score: Trunk | None = None,
    **changes: Any,
) -> TwoStage:
    """What HTC and R3-CNN share."""
    # Their reference keeps detections from a score of 0.001 on, other models' from 0.05.
    return two_stage(
        heads,
        rpn=cascade_rpn(),
        stages=stages,
        suppression=NMS(score_threshold=0.001),
        parts=mask_parts(mask_branches, score),
        **changes,
    )


def retinanet(depth: int = 50) -> Experiment:
    """RetinaNet (Lin et al. 2017): class and box of nine anchors in every cell, by a focal loss over all of them."""
    model = OneStage(
        num_classes=80,
        backbone=ResNet(depth=depth),
        neck=FPN(lowest=3, top=StridedConvs()),
        dense=retina_detector(RetinaHead()),
    )
    # Half the rate of the two-stage models, as in the paper and the reference.
    return coco(model, Optimizer(lr=0.01), masks=False)


def retina_detector(head: DenseHead, **changes: Any) -> DenseDetector:
    """The detector of RetinaNet; ``changes`` are settings of `DenseDetector`."""
    settings: dict[str, Any] = {
        "places": Anchors(levels=(3, 4, 5, 6, 7), scales=THIRDS),
        # Places between 0.4 and 0.5 are left out; every object gets its best place, however small the overlap.
        "matcher": Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0),
        "class_loss": Focal(),
        "test": Selection(per_level=1000, suppression=NMS(score_threshold=0.05, iou_threshold=0.5)),
    }
    return DenseDetector(head, **settings | changes)


def rdsnet(
    depth: int = 50,
    *,
    boxes_from: BoxesFrom | None = None,
    gamma: float = 0.05,
    reach: int = 4,
    epochs: Literal[12, 24] = 12,
    **data: Any,
) -> Experiment:
    """RDSNet (Wang et al. 2020): RetinaNet's places have codes, which the pixels of an image compare with their own.

    ``boxes_from``: what masks do to boxes, ``"mbrm"`` the boundary refinement with its ``gamma`` and ``reach``; None:
    nothing.  ``data``: other data settings.
    """
    maker = Correlation()
    parts: tuple[Part, ...] = (InstanceMasks(PixelStream(), maker, CroppedEntropy(), least_area=100.0),)
    if boxes_from is not None:
        # The published weights are of a kernel of nine.
        start: Literal["published", "edge"] = "published" if reach == 4 else "edge"
        parts += (BoundaryRefinement(boxes_from, start, gamma, reach),)
    model = OneStage(
        num_classes=80,
        backbone=ResNet(depth=depth),
        neck=FPN(lowest=3, top=StridedConvs()),
        # The authors' code counts pixels as mmdetection 1.x does, and has the smooth L1 loss of its RetinaNet.
        dense=retina_detector(
            RetinaHead(groups=32, code=maker.code),
            places=Anchors(levels=(3, 4, 5, 6, 7), scales=THIRDS, legacy=True),
            box_loss=SmoothL1(0.11),
        ),
        parts=parts,
    )
    drops = {12: (8, 11), 24: (16, 22)}[epochs]
    schedule = Schedule(length=epochs, drops=drops, warmup_ratio=1 / 3)
    return coco(model, Optimizer(lr=0.005, clip_norm=35.0, schedule=schedule), whole_masks=True, **data)


def condinst(depth: int = 50) -> Experiment:
    """CondInst (Tian et al. 2020): FCOS, whose places give the weights of small networks that draw their masks.

    Images are trained on with a short side of 640, 672, ... 800.
    """
    maker = DynamicConvs()
    model = OneStage(
        num_classes=80,
        backbone=ResNet(depth=depth),
        neck=FPN(lowest=3, top=StridedConvs(source="pyramid", relu=True)),
        dense=DenseDetector(
            FCOSHead(code=maker.code),
            places=Points(),
            coder=DistanceCoder(),
            matcher=CentreSampling(),
            class_loss=Focal(),
            box_loss=GIoU(),
            least_positives=0,
            test=Selection(1000, NMS(score_threshold=None, iou_threshold=0.6), pairs_above=0.05),
        ),
        parts=(InstanceMasks(PixelBranch(), maker, Dice(), limit=300),),
    )
    schedule = Schedule(length=90_000, drops=(60_000, 80_000), unit="steps", warmup_steps=1000)
    return coco(model, Optimizer(lr=0.01, schedule=schedule), whole_masks=True, augment=(ShortSide(640, step=32),))


def yolact(depth: int = 50) -> Experiment:
    """YOLACT (Bolya et al. 2019): masks are sums of prototypes of the image, each place says of how much of which.

    Images fill 550 x 550 whatever their ratio; in training SSD's augmentation comes before it, and objects that are
    under 4 pixels after it are left out.
    """
    maker = Prototypes()
    normalization = Normalization((123.68, 116.78, 103.94), (58.40, 57.12, 57.38))
    model = OneStage(
        num_classes=80,
        # Nothing is frozen, and batch normalisation learns.
        backbone=ResNet(depth=depth, frozen_stages=-1, norm="sync_batch"),
        neck=FPN(lowest=3, top=StridedConvs(), bilinear=True),
        dense=DenseDetector(
            YOLACTHead(code=maker.code),
            # 24 pixels at stride 8, doubled from level to level, around the middle of each cell.
            places=Anchors(levels=(3, 4, 5, 6, 7), scales=(3.0,), offset=0.5, even=True),
            coder=DeltaCoder((0.1, 0.1, 0.2, 0.2)),
            matcher=Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0, ties=False),
            mining=HardNegatives(3.0),
            class_loss=CrossEntropy(),
            box_loss=SmoothL1(1.0),
            box_weight=1.5,
            test=Selection(1000, FastNMS()),
        ),
        parts=(InstanceMasks(Protonet(), maker, CutEntropy()), PixelClasses()),
        normalization=normalization,
    )
    schedule = Schedule(length=55, drops=(20, 42, 49, 52), warmup_ratio=0.1)
    optimizer = Optimizer(lr=1e-3, base_batch=8, weight_decay=5e-4, schedule=schedule)
    data: dict[str, Any] = {"short_side": 550, "long_side": 550, "keep_ratio": False, "pad_multiple": 1}
    augment = (Expand(colour=normalization.rgb_mean), MinIoUCrop(), PhotometricDistortion())
    return coco(model, optimizer, whole_masks=True, batch_size=8, augment=augment, min_box=4.0, **data)


def with_backbone(experiment: Experiment, normalization: Normalization | None = None, **changes: Any) -> Experiment:
    """The same model with other settings of its ResNet, as ``depth=101``, and other numbers of the colours."""
    model: Any = experiment.model
    model = model.clone(backbone=model.backbone.clone(**changes), normalization=normalization or model.normalization)
    return dataclasses.replace(experiment, model=model)


def resnext101(experiment: Experiment, kind: Literal["32x8d", "32x4d", "64x4d"]) -> Experiment:
    """The same model on ResNeXt-101 (Xie et al. 2017): so many groups with so many channels in the first stage.

    The weights from which the reference starts 32x8d come from Caffe2: colours are BGR, and no norm is trained.
    """
    groups, group_width = {"32x8d": (32, 8), "32x4d": (32, 4), "64x4d": (64, 4)}[kind]
    settings: dict[str, Any] = {"depth": 101, "groups": groups, "group_width": group_width}
    if kind == "32x8d":
        settings["norm"] = "frozen_batch"
        settings["normalization"] = Normalization((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), channels="bgr")
    return with_backbone(experiment, **settings)


def fcc(
    kernel: Literal["7x7", "7x3"] = "7x7",
    reduce: Literal["first", "last"] = "last",
    *,
    before: bool = False,
    after: bool = False,
) -> Trunk:
    """Makes trunks of convolutions (L2C), with 7x7 non-local blocks before (NLb) and after (NLa) them."""

    def make() -> FCC:
        blocks = [NonLocal() if wanted else None for wanted in (before, after)]
        return FCC(kernel=kernel, reduce=reduce, before=blocks[0], after=blocks[1])

    return make


def first_groie(size: int) -> GRoIE:
    """GRoIE as first published (Rossi et al. 2020): 5x5 convolution, sum, attention."""
    return GRoIE(size, pre=ConvReLU(5), post=Attention())


def best_groie(size: int) -> GRoIE:
    """GRoIE as in SBR-CNN (Rossi et al. 2022): 7x7 convolution, sum, 7x7 non-local block."""
    return GRoIE(size, pre=ConvReLU(7), post=NonLocal(7))
