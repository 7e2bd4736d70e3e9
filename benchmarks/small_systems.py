"""The systems of the papers, small: an SBR-CNN twice as wide as the demo's and what is left of it without its parts.

They differ in what the papers add and in nothing else.  Boxes are class-agnostic and their loss is L1 in all of them,
other than in the papers, where Mask R-CNN differs from R3-CNN in these too.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jaxdet.config import load_config
from jaxdet.experiment import Experiment, Optimizer
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.fpn import FPN
from jaxdet.nn.score_head import MaskIoUHead
from jaxdet.nn.trunk import FC2, FCC
from jaxdet.ops.sampling import Sampler

DEMO = Path(__file__).parents[1] / "configs" / "demo.py"

MASK, GROIE, NAIVE, WITH_FCC, SBR = "Mask R-CNN", "Mask R-CNN + GRoIE", "R3-CNN naive", "R3-CNN + FCC", "SBR-CNN"
LOOPED = (NAIVE, SBR)
"""The systems whose number of steps at test is varied (R3-CNN, Table 2)."""


def small_systems(batch_size: int, dtype: str = "float32") -> dict[str, Experiment]:
    """Name -> experiment; data and optimizer are the same in all."""
    demo: Experiment = load_config(DEMO)
    sbr = _wider(demo.model).clone(dtype=dtype)
    loop = sbr.clone(mask_iou=None)
    models = {
        MASK: _one_step(_fc_boxes(_one_level(loop))),
        GROIE: _one_step(_fc_boxes(loop)),
        NAIVE: _fc_boxes(_one_level(loop)),
        WITH_FCC: _one_level(loop),
        SBR: sbr,
    }
    data = dataclasses.replace(demo.data, batch_size=batch_size)
    drops = dataclasses.replace(demo.optimizer.schedule, length=1500, drops=(480, 870, 1230, 1400), drop_factor=0.4)
    muon = Optimizer("muon", lr=4e-3, base_batch=None, weight_decay=1e-2, clip_norm=10.0, schedule=drops)
    return {name: dataclasses.replace(demo, model=m, data=data, optimizer=muon) for name, m in models.items()}


def _wider(demo: Any) -> TwoStage:
    """As large as docs/RESULTS.md has it; the demo has become smaller since."""
    head = demo.heads[0]
    twice = {name: getattr(head, name).clone(sampling_ratio=2) for name in ("box_extractor", "mask_extractor")}
    model: TwoStage = demo.clone(
        backbone=demo.backbone.clone(width=32),
        neck=FPN(channels=48),
        schedule=make_schedule((0, 0), (0.5, 0.6), (1.0, 0.75), sampler=Sampler(number=32, positive_fraction=0.5)),
        mask_iou=MaskIoUHead(FCC((32, 16)), channels=48),
    )
    return _with(model, **twice)


def _one_level(model: TwoStage) -> TwoStage:
    """RoI features from the level that fits the box, in place of GRoIE's."""
    box, mask = (OneLevel(size=size, sampling_ratio=2, finest=28.0) for size in (7, 14))
    return _with(model, box_extractor=box, mask_extractor=mask)


def _fc_boxes(model: TwoStage) -> TwoStage:
    """Two fully connected layers, in place of FCC."""
    box_head: Any = model.heads[0].box_head
    return _with(model, box_head=box_head.clone(trunk=FC2(channels=256)))


def _one_step(model: TwoStage) -> TwoStage:
    """Without the loop, and so without the link from one mask pass to the next."""
    mask_head: Any = model.heads[0].mask_head
    unlinked = _with(model, mask_head=mask_head.clone(linked=False))
    return unlinked.clone(schedule=model.schedule[:1], test_heads=None)


def _with(model: TwoStage, **parts: Any) -> TwoStage:
    return model.clone(heads=(model.heads[0].clone(**parts),))
