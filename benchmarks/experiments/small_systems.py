"""The systems of the papers, small: the SBR-CNN of ``small_sbr_cnn.py`` and what is left of it without its parts.

They differ in what the papers add and in nothing else.  Boxes are class-agnostic and their loss is L1 in all of them,
other than in the papers, where Mask R-CNN differs from R3-CNN in these too.
"""

import dataclasses
from typing import Any

from benchmarks.experiments.small_sbr_cnn import get_config
from jaxdet.experiment import Experiment
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.single_level import OneLevel
from jaxdet.nn.heads.trunk import FC2

MASK, GROIE, NAIVE, WITH_FCC, SBR = "Mask R-CNN", "Mask R-CNN + GRoIE", "R3-CNN naive", "R3-CNN + FCC", "SBR-CNN"
LOOPED = (NAIVE, SBR)
"""The systems whose number of steps at test is varied (R3-CNN, Table 2)."""


def small_systems(batch_size: int, dtype: str = "float32") -> dict[str, Experiment]:
    """Name -> experiment; data and optimizer are the same in all."""
    whole = get_config()
    sbr: Any = whole.model
    sbr = sbr.clone(dtype=dtype)
    loop = sbr.clone(mask_iou=None)
    models = {
        MASK: _one_step(_fc_boxes(_one_level(loop))),
        GROIE: _one_step(_fc_boxes(loop)),
        NAIVE: _fc_boxes(_one_level(loop)),
        WITH_FCC: _one_level(loop),
        SBR: sbr,
    }
    data = dataclasses.replace(whole.data, batch_size=batch_size)
    optimizer = dataclasses.replace(whole.optimizer, base_batch=None)
    return {name: dataclasses.replace(whole, model=m, data=data, optimizer=optimizer) for name, m in models.items()}


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
