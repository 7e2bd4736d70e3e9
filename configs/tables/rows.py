"""What the files of the papers' tables share: a row, models with the settings of mmdetection 1.x, and RDSNet_s.

A table file has ``ROWS`` and ``get_config``, so that ``--config sbr_table6:row_3`` trains row 3.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from jaxdet.configs.base import (
    box_branch,
    cascade_rpn,
    coco,
    htc,
    mask_branch,
    mask_parts,
    mask_rcnn,
    resnext101,
    two_stage,
    with_backbone,
    yolact,
)
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment, Optimizer, Schedule
from jaxdet.models.parts.instances import InstanceMasks, PixelClasses
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.dense import YOLACTHead
from jaxdet.nn.heads.pixels import Protonet
from jaxdet.nn.necks import StridedConvs
from jaxdet.ops.instances import Correlation, CroppedEntropy, CutEntropy, InstanceLoss, MaskMaker, Prototypes
from jaxdet.ops.losses import SmoothL1

# Parameters, all and trained, that the authors' code has; of models that stand in several tables.
FASTER_RCNN = (41_753_056, 41_527_712)
MASK_RCNN = (44_396_336, 44_170_992)
HTC = (77_456_190, 77_230_846)
CONDINST = (34_164_299, 33_938_955)
RETINANET_R101 = (56_960_820, 56_735_476)
RDSNET_R101 = (63_611_796, 63_386_452)
RDSNET_REFINE_R101 = (63_611_806, 63_386_462)
R3_NAIVE = (44_138_228, 43_912_884)
R3_DEEPER = (60_830_105, 60_604_761)
R3_ADVANCED = (50_298_020, 50_072_676)

# The box branch of mmdetection 1.x moves boxes of the background class too, and its mask branch draws their masks.
BACKGROUND_BOXES = 4 * (1024 + 1)
BACKGROUND_MASKS = 256 + 1


@dataclass(frozen=True)
class Row:
    """A row of a paper's table: a model, its published AP (in percent) and parameters."""

    what: str
    experiment: Experiment
    box_ap: float | None
    mask_ap: float | None = None
    printed: str = ""  #: parameters as the paper prints them: those trained, cut off and not rounded
    params: tuple[int, int] | None = None  #: all and trained ones of the authors' code
    background: int = 0  #: parameters of the authors' code for the background class; here it has none
    note: str = ""


def deeper(experiment: Experiment) -> Experiment:
    """The same model with ResNet-101."""
    return with_backbone(experiment, depth=101)


def gcnet(experiment: Experiment) -> Experiment:
    """The same model with GC blocks of ratio 1/4 in C3 to C5, and norms that take the statistics of the batch."""
    return with_backbone(experiment, context=4, norm="sync_batch")


def dcn(experiment: Experiment) -> Experiment:
    """The same model with deformable convolutions in C3 to C5."""
    return with_backbone(experiment, deform="v1")


def rdsnet_s(
    masks: Literal["correlation", "linear"] = "correlation",
    *,
    expand_train: float = 1.5,
    expand_test: float = 1.2,
    hard_background: bool = True,
) -> Experiment:
    """RDSNet_s (Wang et al. 2020, section 4.2): backbone and dense head of YOLACT, which sees images of 550 pixels.

    ``masks``: by correlation, cut at boxes that are expanded by ``expand_train`` and ``expand_test``; or linear
    combinations as YOLACT's, cut at boxes.
    """
    experiment = yolact(depth=101)
    model: Any = experiment.model
    maker: MaskMaker = Prototypes() if masks == "linear" else Correlation(expand=expand_test)
    loss: InstanceLoss = CutEntropy() if masks == "linear" else CroppedEntropy(expand_train, hard_background)
    # The original code of YOLACT makes anchors of all ratios square, and its last levels from the pyramid.
    sides = (3.0, 3 * math.sqrt(1 / 2), 3 * math.sqrt(2))
    dense = model.dense.clone(
        head=YOLACTHead(code=maker.code),
        places=dataclasses.replace(model.dense.places, scales=sides, ratios=(1.0,)),
        matcher=dataclasses.replace(model.dense.matcher, ignore_cover=0.7),
    )
    model = model.clone(
        neck=model.neck.clone(top=StridedConvs(source="pyramid")),
        dense=dense,
        parts=(InstanceMasks(Protonet(relu=masks == "linear"), maker, loss), PixelClasses()),
    )
    schedule = Schedule(length=800_000, drops=(280_000, 600_000, 700_000, 750_000), unit="steps", warmup_ratio=0.1)
    return dataclasses.replace(
        experiment, model=model, optimizer=dataclasses.replace(experiment.optimizer, schedule=schedule)
    )


MR_BASES: dict[str, tuple[str, Callable[[], Experiment]]] = {
    "r50": ("R50", mask_rcnn),
    "r101": ("R101", functools.partial(mask_rcnn, depth=101)),
    "x101": ("X101-32x8d", lambda: resnext101(mask_rcnn(), "32x8d")),
    "r101_dcn": ("R101 DCN", lambda: dcn(mask_rcnn(depth=101))),
}
"""What MR R-CNN's tables refine: by the name of the row the backbone's, and the Mask R-CNN that has it."""


def mr_rcnn(backbone: str, **settings: Any) -> Experiment:
    """MR R-CNN (Ding et al. 2019) on one of `MR_BASES`; ``settings`` are those of `Refine`."""
    return refined(MR_BASES[backbone][1], **settings)


def mr_rows(what: str, name: str, aps: Mapping[str, tuple[float, float]], **settings: Any) -> dict[str, Row]:
    """Rows of MR R-CNN, one for each backbone that has a box and a mask AP in ``aps``."""
    return {
        f"{name}_{backbone}": Row(f"{what}, {MR_BASES[backbone][0]}", mr_rcnn(backbone, **settings), *ap)
        for backbone, ap in aps.items()
    }


def mr_baselines(aps: Mapping[str, tuple[float, float]]) -> dict[str, Row]:
    """Rows of the Mask R-CNN that these begin with."""
    return {
        f"mask_{backbone}": Row(f"Mask R-CNN, {MR_BASES[backbone][0]}", MR_BASES[backbone][1](), *ap)
        for backbone, ap in aps.items()
    }


def by_name(rows: Mapping[str, Row]) -> Callable[[str], Experiment]:
    """``get_config`` of a table: the experiment of the row of that name.  ValueError lists the names."""

    def get_config(row: str = "") -> Experiment:
        if row not in rows:
            names = ", ".join(rows)
            raise ValueError(f"expected the name of a row behind the file, as in FILE.py:NAME, got {row!r}: {names}")
        return rows[row].experiment

    return get_config


def first_generation(box_extractor: nn.Module, mask_extractor: nn.Module | None = None) -> Experiment:
    """Faster or Mask R-CNN with the settings of mmdetection 1.x, on six devices, as in GRoIE's paper.

    Smooth L1, more proposals in training, gradients clipped.  Boxes are measured as everywhere here, without 1.x's
    pixel that it adds to width and height, and RoIAlign is the aligned one.
    """
    heads = [box_branch(lambda size: box_extractor, box_loss=SmoothL1(1.0))]
    parts = () if mask_extractor is None else mask_parts([mask_branch(lambda size: mask_extractor)])
    rule = Optimizer(clip_norm=35.0, schedule=Schedule(warmup_ratio=1 / 3))  # the rate of 12 images is 0.015
    model = two_stage(heads, rpn=cascade_rpn(), parts=parts)
    return coco(model, rule, batch_size=12, masks=mask_extractor is not None)


def two_samples(size: int) -> SingleLevel:
    """One level for each box, with two samples along each axis of a bin, as in mmdetection 1.x."""
    return SingleLevel(size, sampling_ratio=2)


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

# Rows that R3-CNN's Table 4 and SBR-CNN's Table 11 have in common.
GCNET_MASK = Row(
    "Mask R-CNN + GC-Net",
    gcnet(mask_rcnn()),
    40.5,
    36.4,
    params=(54_397_245, 54_171_901),
    note="the papers do not say how its backbone is normalised; here as in their other rows of GC-Net",
)
GCNET_HTC = Row("HTC + GC-Net", gcnet(htc()), 43.9, 38.7, params=(87_457_099, 87_231_755))
DCN_MASK = Row("Mask R-CNN + DCN", dcn(mask_rcnn()), 41.9, 37.6, params=(44_977_178, 44_751_834))
DCN_HTC = Row("HTC + DCN", dcn(htc()), 44.7, 39.4, params=(78_037_032, 77_811_688))
