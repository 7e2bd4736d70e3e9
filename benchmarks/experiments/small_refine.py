"""A small Mask R-CNN on scenes whose objects huddle, and what MR R-CNN's refining step adds to it.

    jaxdet train --config benchmarks/experiments/small_refine.py:mask_rcnn --workdir runs/refine/mask_rcnn
    jaxdet train --config benchmarks/experiments/small_refine.py:sara --workdir runs/refine/sara \
        run.init_from=runs/refine/mask_rcnn

Names are ``mask_rcnn``, which is trained first, and those that start from its weights: ``control``, the same model
trained on for as long as the others, without which longer training would count for them; ``rm``, the refining step on
plain crops; and ``sara``, the step on crops by Shape-aware RoIAlign (the rows of Table 3 of Ding et al. 2019).  Without
``run.init_from`` each trains a first phase of its own.

Backbone, neck, proposals and optimizer are those of ``configs/demo.py``.  AP over huddled objects alone:

    jaxdet eval runs/refine/sara --out runs/refine/sara/results.json
    python -m benchmarks.experiments.huddled_ap instances_val.json runs/refine/sara/results.json

where the json lies in the folder of the scenes (``~/.cache/jaxdet``).
"""

import dataclasses
from typing import Any

from jaxdet.configs import demo
from jaxdet.configs.refined import refined
from jaxdet.data.settings import Scenes
from jaxdet.experiment import Experiment, Optimizer, Phase, Schedule
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import make_stages
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.sampling import Sampler

HUDDLED = 0.8
"""Share of objects that are placed onto another; with those that overlap by chance 93 % of them huddle."""
FINEST = 28.0
"""Objects of 56 pixels and more read the second level."""


def extractor(size: int) -> SingleLevel:
    return SingleLevel(size=size, sampling_ratio=2, levels=demo.LEVELS, finest=FINEST)


def mask_rcnn() -> Experiment:
    whole = demo.get_config()
    sbr: Any = whole.model
    data = dataclasses.replace(
        whole.data,
        train=Scenes("train", count=2000, size=demo.SIZE, huddled=HUDDLED),
        val=Scenes("val", count=200, size=demo.SIZE, huddled=HUDDLED),
    )
    # Each class has boxes of its own, as in the paper: the step is guided by the mask of one class.
    boxes = BoxBranch(extractor(7), BoxHead(FC2(channels=256)))
    masks = MaskBranch(extractor(14), FCN(channels=32, convs=2))
    model = sbr.clone(
        heads=(boxes,),
        stages=make_stages((0,), (0.5,), (1.0,), sampler=Sampler(number=32, positive_fraction=0.25)),
        test_heads=None,
        parts=(MaskPrediction((masks,)),),
    )
    return dataclasses.replace(whole, model=model, data=data)


def second_phase(optimizer: Optimizer) -> Optimizer:
    """A third of the rate and of the steps; the paper takes a tenth of both."""
    schedule = Schedule(
        length=460, drops=(310, 400), unit="steps", drop_factor=0.3, warmup_steps=40, warmup_ratio=1 / 3
    )
    return dataclasses.replace(optimizer, lr=optimizer.lr / 3, schedule=schedule)


def get_config(name: str = "sara") -> Experiment:
    first = mask_rcnn()
    if name == "mask_rcnn":
        return first
    if name not in ("control", "rm", "sara"):
        raise ValueError(f"expected mask_rcnn, control, rm or sara behind the file, got {name!r}")
    second = first if name == "control" else refined(mask_rcnn, guided=name == "sara")
    run = dataclasses.replace(first.run, init_copy=second.run.init_copy)
    before = Phase(first.model, first.optimizer)
    return dataclasses.replace(second, optimizer=second_phase(first.optimizer), run=run, before=before)
