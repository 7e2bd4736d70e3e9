"""A model and its second phase: what MR R-CNN (Ding et al. 2019) adds to any two-stage model with masks."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdet.configs.base import Extractor
from jaxdet.experiment import Experiment, Optimizer, Phase, Run, Schedule
from jaxdet.models.parts.part import Part
from jaxdet.models.parts.refine import Refine


def refined(
    base: Callable[[], Experiment],
    extractor: Extractor | None = None,
    *,
    behind: tuple[Part, ...] = (),
    **settings: Any,
) -> Experiment:
    """MR R-CNN (Ding et al. 2019) on a two-stage model with masks: its boxes, scores and masks are refined once more.

    The base is trained first, or given by ``run.init_from``; the refining heads start as copies of its last ones, and
    all of it is trained for 9,000 steps of 16 images (section 4.1).  Their crops are made as those of the base, or by
    ``extractor``; parts ``behind`` the step begin with fresh weights, unless ``run.init_from`` has some for them;
    ``settings`` are those of `Refine`.
    """
    experiment = base()
    model: Any = experiment.model
    # Modules of their own for the refining heads, since weights are shared by instances.
    twin: Any = base().model
    last = model.stages[-1].head
    box, mask = twin.heads[last], twin.parts[0].heads[last]
    mask = mask.clone(head=mask.head.clone(linked=True))
    if extractor is not None:
        box, mask = box.clone(extractor=extractor(7)), mask.clone(extractor=extractor(14))
    parts = Refine(model.parts[0].heads, box, mask, **settings), *model.parts[1:], *behind
    # The warm-up is that of the code base on which the paper's baselines were trained.
    schedule = Schedule(length=9000, drops=(6000,), unit="steps", warmup_ratio=1 / 3)
    return dataclasses.replace(
        experiment,
        model=model.clone(parts=parts),
        optimizer=Optimizer(lr=0.002, schedule=schedule),
        run=Run(
            init_copy=(("masks/refine_box", f"heads_{last}"), ("masks/refine_mask", f"masks/heads_{last}")),
            init_fresh=tuple(part.place for part in behind),
        ),
        before=Phase(model, experiment.optimizer),
    )
