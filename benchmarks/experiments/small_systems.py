"""The systems of the papers, small: the SBR-CNN of ``small_sbr_cnn.py`` and what is left of it without its parts.

They differ in what the papers add and in nothing else.  Boxes are class-agnostic and their loss is L1 in all of them,
other than in the papers, where Mask R-CNN differs from R3-CNN in these too.
"""

import dataclasses
from typing import Any

from benchmarks.experiments.small_sbr_cnn import get_config
from jaxdet.experiment import Experiment
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.trunk import FC2

MASK, GROIE, NAIVE, WITH_FCC, SBR = "Mask R-CNN", "Mask R-CNN + GRoIE", "R3-CNN naive", "R3-CNN + FCC", "SBR-CNN"
LOOPED = (NAIVE, SBR)
"""The systems whose number of steps at test is varied (R3-CNN, Table 2)."""


def small_systems(batch_size: int, dtype: str = "float32") -> dict[str, Experiment]:
    """Name -> experiment; data and optimizer are the same in all."""
    whole = get_config()
    sbr: Any = whole.model
    sbr = sbr.clone(dtype=dtype)
    loop = sbr.clone(parts=sbr.parts[:1])  # without scores of masks
    models = {
        MASK: _one_stage(_fc_boxes(_single_level(loop))),
        GROIE: _one_stage(_fc_boxes(loop)),
        NAIVE: _fc_boxes(_single_level(loop)),
        WITH_FCC: _single_level(loop),
        SBR: sbr,
    }
    data = dataclasses.replace(whole.data, batch_size=batch_size)
    optimizer = dataclasses.replace(whole.optimizer, base_batch=None)
    return {name: dataclasses.replace(whole, model=m, data=data, optimizer=optimizer) for name, m in models.items()}


def _single_level(model: TwoStage) -> TwoStage:
    """RoI features from the level that fits the box, in place of GRoIE's."""
    box, mask = (SingleLevel(size=size, sampling_ratio=2, finest=28.0) for size in (7, 14))
    return _with(_with_masks(model, extractor=mask), extractor=box)


def _fc_boxes(model: TwoStage) -> TwoStage:
    """Two fully connected layers, in place of FCC."""
    head: Any = model.heads[0].head
    return _with(model, head=head.clone(trunk=FC2(channels=256)))


def _one_stage(model: TwoStage) -> TwoStage:
    """Without the loop, and so without the link from one mask pass to the next."""
    masks: Any = model.parts[0]
    unlinked = _with_masks(model, head=masks.heads[0].head.clone(linked=False))
    return unlinked.clone(stages=model.stages[:1], test_heads=None)


def _with_masks(model: TwoStage, **parts: Any) -> TwoStage:
    masks: Any = model.parts[0]
    return model.clone(parts=(masks.clone(heads=(masks.heads[0].clone(**parts),)), *model.parts[1:]))


def _with(model: TwoStage, **parts: Any) -> TwoStage:
    return model.clone(heads=(model.heads[0].clone(**parts),))
