"""Which head works at which stage, and on which boxes: what makes Cascade, HTC and R3-CNN differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import flax.linen as nn

from jaxdet.models.features import Losses
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.ranges import HEADS, WEIGHT, check_ranges


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: which head, and how its training boxes are matched, sampled and weighed.

    ``interleaved``: the mask branch trains on the boxes as this stage has moved them, matched and sampled once more
    (HTC, Chen et al. 2019, section 3.1), not on the boxes that the box branch got.  ``mask_passes``: so many passes
    over the mask features, by the mask heads of the first stages, come before the pass that is trained.
    """

    head: int = 0
    matcher: Matcher = Matcher(positive_iou=0.5, negative_iou=0.5, min_positive_iou=0.5)
    sampler: Sampler = Sampler(number=512, positive_fraction=0.25)
    weight: float = 1.0
    interleaved: bool = False
    mask_passes: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, head=HEADS, weight=WEIGHT, mask_passes=HEADS)

    def weigh(self, terms: Losses) -> Losses:
        """Loss terms of this stage times its weight."""
        return {name: value * self.weight for name, value in terms.items()}


def make_stages(
    heads: Sequence[int],
    ious: Sequence[float] = (0.5, 0.6, 0.7),
    weights: Sequence[float] = (1.0, 0.75, 0.5),
    *,
    interleaved: bool = True,
    mask_passes: Literal["stage", "head", "none"] = "stage",
    low_quality: bool = True,
    sampler: Sampler = Stage.sampler,
) -> tuple[Stage, ...]:
    """A stage for each of ``heads``; a box is positive from the IoU of the same place on.

    ``(0, 1, 2)`` is a cascade, ``(0, 0, 0)`` the loop of R3-CNN.  ``mask_passes``: ``"stage"`` as many as there were
    stages before (R3-CNN's eq. 6, SBR-CNN), ``"head"`` as many as the number of the head says (the code that made
    R3-CNN's tables), ``"none"`` for mask heads that are not linked.
    """
    if not len(heads) == len(ious) == len(weights):
        raise ValueError(
            f"make_stages needs an IoU and a weight for each stage, got {len(heads)} heads, {len(ious)} IoUs and "
            f"{len(weights)} weights"
        )
    # Without linked heads there is nothing that a pass could hand on.
    ways = {"stage": range(len(heads)), "head": heads, "none": [0] * len(heads)}
    if mask_passes not in ways:
        raise ValueError(f"mask_passes: expected one of {list(ways)}, got {mask_passes!r}")
    passes = ways[mask_passes]
    return tuple(
        # One number for positive, negative and least IoU, as in Cascade R-CNN: no sample is ignored.
        Stage(head, Matcher(iou, iou, iou, low_quality=low_quality), sampler, weight, interleaved, before)
        for head, iou, weight, before in zip(heads, ious, weights, passes, strict=True)
    )


def heads_of_passes(stages: Sequence[Stage], t: int) -> list[int]:
    """The mask heads that look at the crops of stage ``t``, one after the other; the last is the stage's own."""
    before = stages[: stages[t].mask_passes]
    return [stage.head for stage in (*before, stages[t])]


def check_stages(stages: Sequence[Stage], heads: Sequence[nn.Module]) -> None:
    """ValueError where a stage names a head that is not there, a head is never used, or passes come before the first.

    The list of stages is the only place where weights are shared, so that a head of no stage is a mistake.
    """
    used = {stage.head for stage in stages}
    if used != set(range(len(heads))):
        raise ValueError(
            f"the stages use heads {sorted(used)}, the model has heads {list(range(len(heads)))}: "
            "each stage needs a head and each head a stage"
        )
    for t, stage in enumerate(stages):
        if not 0 <= stage.mask_passes <= t:
            raise ValueError(
                f"stage {t} has {t} stages before it: expected 0 to {t} mask passes before its own, "
                f"got {stage.mask_passes}"
            )


def check_test_heads(test_heads: Sequence[int] | None, heads: Sequence[nn.Module]) -> None:
    """ValueError for no stage at test, or a head that is not there."""
    there = range(len(heads))
    if test_heads is not None and not (test_heads and set(test_heads) <= set(there)):
        raise ValueError(f"test_heads: expected one or more of the heads {list(there)}, got {test_heads}")


def check_unshared(parts: Mapping[str, object]) -> None:
    """ValueError where two parts, or parts inside them, are one and the same instance, and so share their weights."""
    places: dict[int, str] = {}

    def visit(part: object, place: str) -> None:
        if isinstance(part, tuple):
            for i, member in enumerate(part):
                visit(member, f"{place}[{i}]")
            return
        if not isinstance(part, nn.Module):
            return
        # By identity: equal instances are different modules with weights of their own.
        if places.setdefault(id(part), place) != place:
            raise ValueError(
                f"the same {type(part).__name__} instance is listed twice, as {places[id(part)]} and {place}: make one "
                "for each; to share weights name one head in several stages"
            )
        for field in dataclasses.fields(part):
            # linen's own fields; the parent would lead back to where the search began.
            if field.name not in ("parent", "name"):
                visit(getattr(part, field.name), f"{place}.{field.name}")

    for name, part in parts.items():
        visit(part, name)
