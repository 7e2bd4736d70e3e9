"""The reference's models in terms of the project's configs: what is no config of its own is a change to one."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdet.models.branches import Head
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.box_head import BoxHead
from jaxdet.nn.context import NonLocal
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.mask_head import FCN
from jaxdet.nn.score_head import MaskIoUHead
from jaxdet.nn.trunk import FC2, FCC
from jaxdet.ops.boxes import DeltaCoder

CONFIGS = {
    "mask_rcnn_r50": "mask_rcnn_r50_fpn",
    "faster_rcnn_r50": "faster_rcnn_r50_fpn",
    "cascade_mask_rcnn_r50": "cascade_mask_rcnn_r50_fpn",
    "htc_r50": "htc_r50_fpn",
    "ms_rcnn_r50": "ms_rcnn_r50_fpn",
    "r3_naive": "r3_cnn",
    "groie1_faster": "groie_faster_rcnn_r50_fpn",
    "groie1_mask": "groie_mask_rcnn_r50_fpn",
    "groie2_faster": "groie_sbr_faster_rcnn_r50_fpn",
    "sbr_cnn": "sbr_cnn",
}
"""Reference model -> config file of the project."""

Trunk = Callable[[], Any]


def first_rect() -> FCC:
    """7x3 then 3x7, channels lowered by the first of each pair, behind a non-local block."""
    return FCC(kernel="7x3", reduce="first", before=NonLocal())


def last_rect() -> FCC:
    """7x3 then 3x7, channels lowered by the last of each pair, behind a non-local block."""
    return FCC(kernel="7x3", reduce="last", before=NonLocal())


def r3(trunk: Trunk, score_trunk: Trunk | None = None, **changes: Any) -> dict[str, Any]:
    """Changes to R3-CNN: another trunk in its one head, a mask IoU branch."""
    if score_trunk is not None:
        changes["mask_iou"] = MaskIoUHead(score_trunk())
    return {"heads": (_head(trunk, (0.1, 0.1, 0.2, 0.2)),), **changes}


def r3_with_two_heads(trunk: Trunk, *schedule: Any) -> dict[str, Any]:
    """Changes to R3-CNN: two heads, and the schedule that ``make_schedule`` makes of the rest."""
    heads = (_head(trunk, (0.1, 0.1, 0.2, 0.2)), _head(trunk, (0.05, 0.05, 0.1, 0.1)))
    return {"heads": heads, "schedule": make_schedule(*schedule)}


R3: dict[str, Callable[[], dict[str, Any]]] = {
    "r3_deeper": lambda: r3_with_two_heads(FC2, (0, 0, 1)),
    "r3_fcc7x7": lambda: r3(FCC),
    "r3_fcc_rect": lambda: r3(lambda: FCC(kernel="7x3")),
    "r3_fcc7x7_nlb": lambda: r3(lambda: FCC(before=NonLocal())),
    "r3_fcc7x7_nlb_nla": lambda: r3(lambda: FCC(before=NonLocal(), after=NonLocal())),
    "r3_rect_nlb": lambda: r3(first_rect),
    "r3_rect_nlb_nomaskloop": lambda: r3(first_rect, schedule=make_schedule((0, 0, 0), mask_passes="head")),
    "r3_4l2h_rect_nlb": lambda: r3_with_two_heads(last_rect, (0, 0, 1, 1), (0.5, 0.6, 0.7, 0.8), (1.0, 0.75, 0.5, 0.3)),
    "r3_maskiou_orig": lambda: r3(first_rect, FC2),
    "r3_maskiou_fcc7x7": lambda: r3(first_rect, FCC),
    "r3_maskiou_rect": lambda: r3(last_rect, lambda: FCC(kernel="7x3")),
    "r3_advanced": lambda: r3(lambda: FCC(before=NonLocal()), lambda: FCC(before=NonLocal(), after=NonLocal())),
}
"""Reference models that differ from R3-CNN in a few fields."""

MODELS = (*CONFIGS, *R3)


def build(name: str) -> TwoStage:
    """The model of that name.  ValueError: there is none."""
    if name in R3:
        return _from_config("r3_cnn").clone(**R3[name]())
    if name in CONFIGS:
        return _from_config(CONFIGS[name])
    raise ValueError(f"no composition for {name}; there are {sorted(MODELS)}")


def with_first_samples(model: TwoStage, roi_samples: int) -> TwoStage:
    """The model with samplers that take the first boxes, not random ones, and pixels as they are."""

    def first(sampler: Any, **changes: Any) -> Any:
        return dataclasses.replace(sampler, order="first", **changes)

    schedule = tuple(dataclasses.replace(s, sampler=first(s.sampler, number=roi_samples)) for s in model.schedule)
    rpn = model.rpn.clone(sampler=first(model.rpn.sampler))
    return model.clone(rpn=rpn, schedule=schedule, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))


def _head(trunk: Trunk, stds: tuple[float, float, float, float]) -> Head:
    return Head(
        box_extractor=OneLevel(size=7),
        box_head=BoxHead(trunk(), class_agnostic=True),
        mask_extractor=OneLevel(size=14),
        mask_head=FCN(linked=True),
        coder=DeltaCoder(stds),
        beta=1.0,
    )


def _from_config(name: str) -> TwoStage:
    path = Path(__file__).parents[2] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: TwoStage = module.get_config().model
    return model
