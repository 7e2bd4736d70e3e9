"""Which head works at which step of the loop, and on which boxes: what makes Cascade, HTC and R3-CNN differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import flax.linen as nn

from jaxdet.models.branches import Head, Losses
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: which head, and how its training boxes are matched, sampled and weighed.

    ``interleaved``: the mask branch trains on the boxes as this step has moved them, matched and sampled once more
    (HTC, Chen et al. 2019, section 3.1), not on the boxes that the box branch got.  ``mask_passes``: so many passes
    over the mask features, by the heads of the first steps, come before the pass that is trained.
    """

    head: int = 0
    matcher: Matcher = Matcher(positive_iou=0.5, negative_iou=0.5, min_positive_iou=0.5)
    sampler: Sampler = Sampler(number=512, positive_fraction=0.25)
    weight: float = 1.0
    interleaved: bool = False
    mask_passes: int = 0

    def weigh(self, terms: Losses) -> Losses:
        """Loss terms of this step times its weight."""
        return {name: value * self.weight for name, value in terms.items()}


def make_schedule(
    heads: Sequence[int],
    ious: Sequence[float] = (0.5, 0.6, 0.7),
    weights: Sequence[float] = (1.0, 0.75, 0.5),
    *,
    interleaved: bool = True,
    mask_passes: Literal["step", "head", "none"] = "step",
    low_quality: bool = True,
    sampler: Sampler = Step.sampler,
) -> tuple[Step, ...]:
    """A step for each of ``heads``, positive from the IoU of the same place on.

    ``(0, 1, 2)`` is a cascade, ``(0, 0, 0)`` the loop of R3-CNN.  ``mask_passes``: ``"step"`` as many as there were
    steps before (R3-CNN's eq. 6, SBR-CNN), ``"head"`` as many as the number of the head says (the code that made
    R3-CNN's tables), ``"none"`` for mask heads that are not linked.
    """
    if not len(heads) == len(ious) == len(weights):
        raise ValueError(
            f"a schedule needs an IoU and a weight for each step, got {len(heads)} heads, {len(ious)} IoUs and "
            f"{len(weights)} weights"
        )
    ways = {"step": range(len(heads)), "head": heads, "none": [0] * len(heads)}
    if mask_passes not in ways:
        raise ValueError(f"mask_passes: expected one of {list(ways)}, got {mask_passes!r}")
    passes = ways[mask_passes]
    return tuple(
        Step(head, Matcher(iou, iou, iou, low_quality=low_quality), sampler, weight, interleaved, before)
        for head, iou, weight, before in zip(heads, ious, weights, passes, strict=True)
    )


def heads_of_passes(schedule: Sequence[Step], t: int) -> list[int]:
    """The heads whose mask branches look at the crops of step ``t``, one after the other; the last is the step's."""
    before = schedule[: schedule[t].mask_passes]
    return [step.head for step in (*before, schedule[t])]


def check_schedule(schedule: Sequence[Step], heads: Sequence[Head]) -> None:
    """ValueError where a step names a head that is not there, a head is never used, or stands there twice."""
    used = {step.head for step in schedule}
    if used != set(range(len(heads))):
        raise ValueError(
            f"the schedule uses heads {sorted(used)}, the model has heads {list(range(len(heads)))}: "
            "each step needs a head and each head a step"
        )
    if len({head.mask_head is None for head in heads}) > 1:
        raise ValueError("some heads have a mask branch and some have none: give one to all, or to none")
    for t, step in enumerate(schedule):
        if not 0 <= step.mask_passes <= t:
            raise ValueError(
                f"step {t} has {t} steps before it: expected 0 to {t} mask passes before its own, "
                f"got {step.mask_passes}"
            )
        if step.mask_passes and not heads[step.head].linked:
            raise ValueError(
                f"step {t} wants {step.mask_passes} mask passes before its own, but head {step.head} has no mask head "
                "that is linked: set linked=True in it, or mask_passes to 0 (make_schedule: mask_passes='none')"
            )


def check_test_heads(test_heads: Sequence[int] | None, heads: Sequence[Head]) -> None:
    """ValueError for no step at test, or a head that is not there."""
    there = range(len(heads))
    if test_heads is not None and not (test_heads and set(test_heads) <= set(there)):
        raise ValueError(f"test_heads: expected one or more of the heads {list(there)}, got {test_heads}")


def check_unshared(parts: Mapping[str, nn.Module | None]) -> None:
    """ValueError where two parts, or parts inside them, are one and the same instance, and so share their weights."""
    places: dict[int, str] = {}

    def walk(part: object, place: str) -> None:
        if not isinstance(part, nn.Module):
            return
        if places.setdefault(id(part), place) != place:
            raise ValueError(
                f"the same {type(part).__name__} instance is listed twice, as {places[id(part)]} and {place}: make one "
                "for each; to share weights name one head in several steps of the schedule"
            )
        for field in dataclasses.fields(part):
            if field.name not in ("parent", "name"):
                walk(getattr(part, field.name), f"{place}.{field.name}")

    for name, part in parts.items():
        walk(part, name)
