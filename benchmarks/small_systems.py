"""The systems of the papers, small: the demo's backbone, one and the same pyramid, proposals, samples and losses.

They differ in what the papers add and in nothing else.  Boxes are class-agnostic and their loss is L1 in all of them,
other than in the papers, where Mask R-CNN differs from R3-CNN in these too.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jaxdet.config import load_config
from jaxdet.experiment import Experiment, Optimizer, Schedule
from jaxdet.models.branches import Head
from jaxdet.models.finish import Finish
from jaxdet.models.schedule import Step, make_schedule
from jaxdet.nn.box_head import BoxHead
from jaxdet.nn.context import NonLocal
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.fpn import FPN
from jaxdet.nn.groie import ConvReLU, GRoIE
from jaxdet.nn.mask_head import FCN
from jaxdet.nn.score_head import MaskIoUHead
from jaxdet.nn.trunk import FC2, FCC
from jaxdet.ops.sampling import Sampler

DEMO = Path(__file__).parents[1] / "configs" / "demo.py"
CHANNELS = 64  # of the pyramid; the papers' have 256, and what follows is a quarter of theirs too
SAMPLER = Sampler(number=48, positive_fraction=0.5)

MASK, GROIE, NAIVE, WITH_FCC, SBR = "Mask R-CNN", "Mask R-CNN + GRoIE", "R3-CNN naive", "R3-CNN + FCC", "SBR-CNN"
LOOPED = (NAIVE, SBR)
"""The systems whose number of steps at test is varied (R3-CNN, Table 2)."""


def small_systems(batch_size: int, dtype: str = "float32") -> dict[str, Experiment]:
    """Name -> experiment; data and optimizer are the same in all."""
    return {
        MASK: _experiment(batch_size, dtype, _head()),
        GROIE: _experiment(batch_size, dtype, _head(**_groie())),
        NAIVE: _experiment(batch_size, dtype, _head(linked=True), loop=True),
        WITH_FCC: _experiment(batch_size, dtype, _head(linked=True, box_head=_fcc_head()), loop=True),
        SBR: _experiment(
            batch_size,
            dtype,
            _head(linked=True, box_head=_fcc_head(), **_groie()),
            loop=True,
            mask_iou=MaskIoUHead(_fcc("7x7"), channels=CHANNELS),
        ),
    }


def _experiment(batch_size: int, dtype: str, head: Head, loop: bool = False, **parts: Any) -> Experiment:
    demo: Experiment = load_config(DEMO)
    model: Any = demo.model
    model = model.clone(
        neck=FPN(channels=CHANNELS),
        rpn=model.rpn.clone(post_nms_train=200, post_nms_test=200),
        heads=(head,),
        schedule=make_schedule((0, 0, 0), sampler=SAMPLER) if loop else (Step(sampler=SAMPLER),),
        test_heads=None,
        finish=Finish(score_threshold=0.001, max_detections=50),
        dtype=dtype,
        **{"mask_iou": None} | parts,
    )
    schedule = Schedule(
        length=1000, drops=(300, 550, 800, 930), unit="steps", drop_factor=0.4, warmup_steps=30, warmup_ratio=0.01
    )
    optimizer = Optimizer(
        rule="adamw", lr=1.5e-3, base_batch=None, weight_decay=1e-2, clip_norm=10.0, schedule=schedule
    )
    return dataclasses.replace(
        demo, model=model, optimizer=optimizer, data=dataclasses.replace(demo.data, batch_size=batch_size)
    )


def _head(linked: bool = False, **parts: Any) -> Head:
    plain = {
        "box_extractor": OneLevel(size=7, sampling_ratio=2, finest=28.0),
        "box_head": BoxHead(FC2(channels=256), class_agnostic=True),
        "mask_extractor": OneLevel(size=14, sampling_ratio=2, finest=28.0),
        "mask_head": FCN(channels=CHANNELS, linked=linked),
    }
    return Head(**plain | parts)


def _groie() -> dict[str, Any]:
    return {
        "box_extractor": GRoIE(size=7, pre=ConvReLU(7), post=NonLocal(7)),
        "mask_extractor": GRoIE(size=14, pre=ConvReLU(7), post=NonLocal(7)),
    }


def _fcc_head() -> BoxHead:
    return BoxHead(_fcc("7x3", reduce="first", before=NonLocal(7)), class_agnostic=True)


def _fcc(kernel: str, **parts: Any) -> FCC:
    return FCC(channels=(CHANNELS // 2, CHANNELS // 4), kernel=kernel, **parts)  # type: ignore[arg-type]
