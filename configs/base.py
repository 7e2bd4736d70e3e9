"""The models of the papers and their data, once: a config is a call of these with its differences.

Every function returns a whole experiment on COCO with ResNet-50, 1x schedule if no other.  Settings are the reference's
(mmdetection 2.x and the authors' forks of it) unless a docstring says otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import flax.linen as nn

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment, Optimizer, Run, Schedule
from jaxdet.models.dense import DenseDetector, Selection, rpn
from jaxdet.models.detector import Detector
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import Stage, make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import RetinaHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.semantic import PlusSemantic, SemanticHead
from jaxdet.nn.heads.trunk import FC2, FCC
from jaxdet.nn.necks import FPN, StridedConvs
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.losses import BoxLoss, Focal, SmoothL1
from jaxdet.ops.matching import Matcher
from jaxdet.ops.suppression import NMS

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
    settings: dict[str, Any] = {"rpn": rpn()} | changes
    return TwoStage(num_classes=80, backbone=ResNet(depth=depth), neck=FPN(), heads=tuple(heads), **settings)


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
    extractor: Extractor = SingleLevel, *, score: Trunk | None = None, epochs: Literal[12, 36] = 12
) -> Experiment:
    """Mask R-CNN (He et al. 2017), 1x or 3x schedule; ``score``: the trunk of a branch that rates the masks."""
    drops = {12: (8, 11), 36: (28, 34)}[epochs]
    model = two_stage([box_branch(extractor)], parts=mask_parts([mask_branch(extractor)], score))
    return coco(model, Optimizer(schedule=Schedule(length=epochs, drops=drops)))


def mask_parts(branches: Sequence[MaskBranch], score: Trunk | None = None) -> tuple[nn.Module, ...]:
    """What follows the boxes: masks, and where ``score`` is a trunk, how good they are."""
    masks = MaskPrediction(tuple(branches))
    return (masks,) if score is None else (masks, MaskScoring(MaskIoUHead(score())))


def cascade_mask_rcnn() -> Experiment:
    """Cascade Mask R-CNN (Cai and Vasconcelos 2019): three heads, each on the boxes of the one before."""
    heads = [box_branch(stds=stds, box_loss=SmoothL1(1.0), agnostic=True) for stds in CASCADE_STDS]
    stages = make_stages((0, 1, 2), IOUS[3], HTC_WEIGHTS, interleaved=False, mask_passes="none", low_quality=False)
    model = two_stage(heads, rpn=cascade_rpn(), stages=stages, parts=mask_parts([mask_branch() for _ in heads]))
    return coco(model)


def htc(*, semantic: bool = False) -> Experiment:
    """Hybrid Task Cascade (Chen et al. 2019): masks see the boxes of their own stage, and the masks before them.

    ``semantic``: with the branch that learns COCO-stuff, whose maps all crops add.
    """

    def extractor(size: int) -> nn.Module:
        return PlusSemantic(SingleLevel(size)) if semantic else SingleLevel(size)

    heads = [box_branch(extractor, stds=stds, box_loss=SmoothL1(1.0), agnostic=True) for stds in CASCADE_STDS]
    model = _interleaved(
        heads,
        [mask_branch(extractor, linked=i > 0) for i in range(3)],  # nothing comes before the first
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
    # Three scales an octave, from 4 times the stride (Lin et al. 2017, section 4).
    thirds = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
    model = OneStage(
        num_classes=80,
        backbone=ResNet(depth=depth),
        neck=FPN(lowest=3, top=StridedConvs()),
        dense=DenseDetector(
            head=RetinaHead(),
            places=Anchors(levels=(3, 4, 5, 6, 7), scales=thirds),
            # Places between 0.4 and 0.5 are left out; every object gets its best place, however small the overlap.
            matcher=Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0),
            class_loss=Focal(),
            test=Selection(per_level=1000, suppression=NMS(score_threshold=0.05, iou_threshold=0.5)),
        ),
    )
    # Half the rate of the two-stage models, as in the paper and the reference.
    return coco(model, Optimizer(lr=0.01), masks=False)


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
