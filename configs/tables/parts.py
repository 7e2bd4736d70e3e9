"""What the files of the papers' tables share: a row, and the models that rows are made of.

A table file has ``ROWS`` and ``get_config``, so that ``--config configs/tables/sbr_table6.py:row_3`` trains row 3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from jaxdet.data.settings import CocoFolder, Data
from jaxdet.experiment import Experiment, Optimizer, Schedule
from jaxdet.models.branches import Head
from jaxdet.models.finish import Finish
from jaxdet.models.proposals import RPN
from jaxdet.models.schedule import Step, make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.extractors.single_level import OneLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.rpn import RPNHead
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2, FCC
from jaxdet.nn.necks import FPN
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.matching import Matcher

Trunk = Callable[[], nn.Module]
Extractor = Callable[[int], nn.Module]
Stds = tuple[float, float, float, float]

# Parameters, all and trained, that the authors' code has; of models that stand in several tables.
FASTER_RCNN = (41_753_056, 41_527_712)
MASK_RCNN = (44_396_336, 44_170_992)
HTC = (77_456_190, 77_230_846)
R3_NAIVE = (44_138_228, 43_912_884)
R3_DEEPER = (60_830_105, 60_604_761)
R3_ADVANCED = (50_298_020, 50_072_676)

# The box branch of mmdetection 1.x moves boxes of the background class too, and its mask branch draws their masks.
BACKGROUND_BOXES = 4 * (1024 + 1)
BACKGROUND_MASKS = 256 + 1

LINEAR: tuple[Stds, ...] = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Standard deviations of the box deltas of the first, second and third head of a cascade."""

IOUS = {1: (0.5,), 2: (0.5, 0.6), 3: (0.5, 0.6, 0.7), 4: (0.5, 0.6, 0.7, 0.8), 5: (0.5, 0.6, 0.7, 0.75, 0.8)}
"""Where a box is positive from on, at each of so many steps."""

WEIGHTS = {1: (1.0,), 2: (1.0, 0.75), 3: (1.0, 0.75, 0.5), 4: (1.0, 0.75, 0.5, 0.3), 5: (1.0, 0.8, 0.6, 0.5, 0.4)}
"""Weights of the losses of each of so many steps."""


@dataclass(frozen=True)
class Row:
    """A row of a paper's table."""

    what: str
    experiment: Experiment
    box_ap: float | None
    mask_ap: float | None = None
    printed: str = ""  #: parameters as the paper prints them: those trained, cut off and not rounded
    params: tuple[int, int] | None = None  #: all and trained ones of the authors' code
    background: int = 0  #: so many of these are about the background class, which has none here
    note: str = ""


def by_name(rows: Mapping[str, Row]) -> Callable[[str], Experiment]:
    """``get_config`` of a table: the experiment of the row of that name.  ValueError lists the names."""

    def get_config(row: str = "") -> Experiment:
        if row not in rows:
            names = ", ".join(rows)
            raise ValueError(f"expected the name of a row behind the file, as in FILE.py:NAME, got {row!r}: {names}")
        return rows[row].experiment

    return get_config


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
    """GRoIE as first published: 5x5 convolution, sum, attention."""
    return GRoIE(size, pre=ConvReLU(5), post=Attention())


def best_groie(size: int) -> GRoIE:
    """GRoIE as in SBR-CNN: 7x7 convolution, sum, 7x7 non-local block."""
    return GRoIE(size, pre=ConvReLU(7), post=NonLocal(7))


def coco(model: nn.Module, optimizer: Optimizer | None = None, **changes: Any) -> Experiment:
    """A model on COCO, 1x schedule if no other; ``changes`` are those of the data's settings."""
    data = Data(
        train=CocoFolder("data/coco/train2017", "data/coco/annotations/instances_train2017.json"),
        val=CocoFolder("data/coco/val2017", "data/coco/annotations/instances_val2017.json"),
        **changes,
    )
    return Experiment(model, data, optimizer or Optimizer())


def detector(heads: tuple[Head, ...], **changes: Any) -> TwoStage:
    """Heads on ResNet-50 and FPN."""
    settings = {"rpn": RPN(head=RPNHead())} | changes
    return TwoStage(num_classes=80, backbone=ResNet(depth=50), neck=FPN(), heads=heads, **settings)


def faster_rcnn(extractor: Extractor = OneLevel) -> Experiment:
    """Faster R-CNN whose boxes read the pyramid by ``extractor``."""
    head = Head(box_extractor=extractor(7), box_head=BoxHead(FC2()))
    step = Step(matcher=Matcher(positive_iou=0.5, negative_iou=0.5, low_quality=False))
    return coco(detector((head,), schedule=(step,)), masks=False)


def mask_rcnn(extractor: Extractor = OneLevel, *, epochs: Literal[12, 36] = 12) -> Experiment:
    """Mask R-CNN, 1x or 3x schedule."""
    drops = {12: (8, 11), 36: (28, 34)}[epochs]
    model = detector((_mask_head(extractor, FC2, LINEAR[0], beta=None, agnostic=False, linked=False),))
    return coco(model, Optimizer(schedule=Schedule(length=epochs, drops=drops)))


def first_generation(box_extractor: nn.Module, mask_extractor: nn.Module | None = None) -> Experiment:
    """Faster or Mask R-CNN with the settings of mmdetection 1.x, on six devices, as in GRoIE's paper.

    Smooth L1, more proposals in training, gradients clipped.  Boxes are measured as everywhere here, without 1.x's
    pixel that it adds to width and height, and RoIAlign is the aligned one.
    """
    mask_head = None if mask_extractor is None else FCN()
    head = Head(box_extractor, BoxHead(FC2()), mask_extractor, mask_head, beta=1.0)
    rule = Optimizer(clip_norm=35.0, schedule=Schedule(warmup_ratio=1 / 3))  # the rate of 12 images is 0.015
    return coco(detector((head,), rpn=_cascade_rpn()), rule, batch_size=12, masks=mask_head is not None)


def two_samples(size: int) -> OneLevel:
    """One level a box, two samples an axis and cell, as in mmdetection 1.x."""
    return OneLevel(size, sampling_ratio=2)


def htc() -> Experiment:
    """Hybrid Task Cascade without its semantic branch."""
    heads = tuple(
        _mask_head(OneLevel, FC2, stds, beta=1.0, agnostic=True, linked=i > 0) for i, stds in enumerate(LINEAR)
    )
    return coco(_loop(heads, make_schedule((0, 1, 2), IOUS[3], (1.0, 0.5, 0.25))))


def r3_cnn(
    alternation: str = "aaa",
    *,
    trunk: Trunk = FC2,
    score: Trunk | None = None,
    extractor: Extractor = OneLevel,
    mask_extractor: Extractor | None = None,
    stds: Sequence[Stds] = LINEAR,
    ious: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    mask_passes: Literal["step", "head"] = "step",
    test_loops: int | None = None,
) -> Experiment:
    """R3-CNN and what is built on it.

    ``alternation`` is the head of each step, a letter for each, as in SBR-CNN's Table 5.  ``trunk`` is that of the box
    heads; ``score`` that of the mask IoU branch, if there is one.  ``mask_extractor`` is ``extractor`` if not given.
    ``ious`` and ``weights`` are those of the steps, ``stds`` of the heads.  ``test_loops``: that many times the first
    head at test.
    """
    heads = tuple(
        _mask_head(extractor, trunk, stds[i], beta=1.0, agnostic=True, linked=True, mask_extractor=mask_extractor)
        for i in range(len(set(alternation)))
    )
    steps = tuple("abc".index(letter) for letter in alternation)
    ious, weights = ious or IOUS[len(steps)], weights or WEIGHTS[len(steps)]
    changes = {
        "mask_iou": None if score is None else MaskIoUHead(score()),
        "test_heads": None if test_loops is None else (0,) * test_loops,
    }
    return coco(_loop(heads, make_schedule(steps, ious, weights, mask_passes=mask_passes), **changes))


def _loop(heads: tuple[Head, ...], schedule: tuple[Step, ...], **changes: Any) -> TwoStage:
    return detector(heads, rpn=_cascade_rpn(), schedule=schedule, finish=Finish(score_threshold=0.001), **changes)


def _cascade_rpn() -> RPN:
    return RPN(head=RPNHead(), border=0.0, beta=1 / 9, post_nms_train=2000)


def _mask_head(
    extractor: Extractor,
    trunk: Trunk,
    stds: Stds,
    *,
    beta: float | None,
    agnostic: bool,
    linked: bool,
    mask_extractor: Extractor | None = None,
) -> Head:
    return Head(
        box_extractor=extractor(7),
        box_head=BoxHead(trunk(), class_agnostic=agnostic),
        mask_extractor=(mask_extractor or extractor)(14),
        mask_head=FCN(linked=linked),
        coder=DeltaCoder(stds),
        beta=beta,
    )


def groie_row(
    what: str, extractor: nn.Module, box_ap: float, params: tuple[int, int] = (41_757_156, 41_531_812), note: str = ""
) -> Row:
    """A row of GRoIE's tables: Faster R-CNN with that extractor; ``params`` of one without parameters of its own."""
    name = f"Faster R-CNN{what}"
    return Row(name, first_generation(extractor), box_ap, params=params, background=BACKGROUND_BOXES, note=note)


GROIE_FASTER = groie_row("", two_samples(7), 36.5)
"""The baseline of GRoIE's tables."""

GROIE_MASK = Row(
    "Mask R-CNN",
    first_generation(two_samples(7), two_samples(14)),
    37.3,
    34.1,
    params=(44_400_693, 44_175_349),
    background=BACKGROUND_BOXES + BACKGROUND_MASKS,
)
"""Mask R-CNN of GRoIE's Table V, which later papers repeat."""
