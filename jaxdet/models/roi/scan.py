"""The stages rolled into one ``jax.lax.scan``: the same numbers from the same parameters as `loop`, in less program.

The program holds one stage.  Its head is picked from the stacked parameters of all heads, its thresholds and weight
from arrays, so that neither the size of the program nor the time to compile it grows with the number of stages.
Nothing else in the library knows of this: the functions here have the names, arguments and results of those in `loop`,
and `choose` says which of the two a model uses.

Letters in shapes: T stages, B images, P slots that may hold a positive, s rows and columns of a crop, C channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Generic, TypeVar

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.models.roi import loop
from jaxdet.models.roi.boxes import PredictedStage, TrainedStage, pad, predict_stage, train_stage
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.masks import (
    MaskPass,
    PredictedMasks,
    TrainedMasks,
    candidates,
    mask_stage_losses,
    mean_probabilities,
)
from jaxdet.models.roi.schedule import Stage, heads_of_passes
from jaxdet.ops.devices import backend
from jaxdet.structures import Detections, Features, Proposals, Samples, Targets

_Branch = TypeVar("_Branch", bound=nn.Module)


def choose(heads: Sequence[nn.Module], stages: Sequence[Stage], unroll: bool | None) -> ModuleType:
    """The module whose functions run these stages: this one, or `loop`.

    ``unroll`` None: `loop` where it was measured to be faster (``python -m benchmarks.models.loop``,
    docs/BENCHMARKS.md), or where the stages cannot be rolled.  With gradients, three stages rolled take 2.6 times as
    long as written out on a CPU, where much of what is in a loop has one core, and took 1.3 times on an H200; forward
    alone there is little difference.  Elsewhere nobody has measured: the smaller program.

    Raises:
        ValueError: ``unroll`` is False and the stages cannot be rolled; says what keeps them from it.
    """
    import sys

    reason = why_not_rolled(heads, stages)
    if unroll is None:
        unroll = len(stages) == 1 or backend() in ("cpu", "gpu") or reason is not None
    if not unroll and reason is not None:
        raise ValueError(f"{reason} and cannot be rolled into a scan; set model.unroll=true")
    return loop if unroll else sys.modules[__name__]


def train_boxes(
    heads: Sequence[BoxBranch],
    stages: Sequence[Stage],
    features: Features,
    proposals: Proposals,
    targets: Targets,
    true_hw: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> list[TrainedStage]:
    """As `loop.train_boxes`."""
    stacked = _Stacked(heads)

    # Stage 0 stands for all: what may differ between them is replaced by the numbers of the step.
    def one(proposals: Proposals, now: Any) -> tuple[Proposals, TrainedStage]:
        t, numbers = now
        branch, stage = stacked.pick(numbers["head"]), _with_numbers(stages[0], numbers)
        key_of_stage = jax.random.fold_in(key, t)
        trained = train_stage(branch, stage, features, proposals, targets, true_hw, num_classes, key_of_stage)
        return trained.proposals, trained

    first = pad(proposals, loop.slots_of(stages))
    # Results of all stages come stacked, [T, ..]; what the last one hands on has no reader.
    trained = jax.lax.scan(one, first, (jnp.arange(len(stages)), _all_numbers(stages)))[1]
    return _unstack(trained, len(stages))


def predict_boxes(
    heads: Sequence[BoxBranch],
    stages: Sequence[Stage],
    features: Features,
    proposals: Proposals,
    true_hw: jax.Array,
    num_classes: int,
) -> list[PredictedStage]:
    """As `loop.predict_boxes`."""
    stacked = _Stacked(heads)

    def one(boxes: jax.Array, head: jax.Array) -> tuple[jax.Array, PredictedStage]:
        predicted = predict_stage(stacked.pick(head), features, boxes, proposals.valid, true_hw, num_classes)
        return predicted.boxes, predicted

    return _unstack(jax.lax.scan(one, proposals.boxes, _heads(stages))[1], len(stages))


def train_masks(
    branches: Sequence[MaskBranch],
    stages: Sequence[Stage],
    features: Features,
    samples: Sequence[Samples],
    targets: Targets,
    num_classes: int,
) -> list[TrainedMasks]:
    """As `loop.train_masks`: a scan for the crops, one for all passes, one for the losses."""
    stacked = _Stacked(branches)
    all_samples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)  # [T, B, S, ..]

    # Three scans: passes need the crops of all stages, losses the last pass of each.
    def crop(_: None, now: Any) -> tuple[None, Any]:
        head, samples_of_stage = now
        own = candidates(samples_of_stage, stages[0])
        return None, (own, stacked.pick(head).crops(features, own.boxes, own.positive))

    own, crops = jax.lax.scan(crop, None, (_heads(stages), all_samples))[1]
    passed = _passes(stacked, stages, crops)

    def losses(_: None, now: Any) -> tuple[None, TrainedMasks]:
        numbers, (own, crops, passed) = now
        branch = stacked.pick(numbers["head"])
        return None, mask_stage_losses(branch, numbers["weight"], own, crops, passed, targets, num_classes)

    trained = jax.lax.scan(losses, None, (_all_numbers(stages), (own, crops, passed)))[1]
    return _unstack(trained, len(stages))


def _passes(stacked: "_Stacked[MaskBranch]", stages: Sequence[Stage], crops: jax.Array) -> jax.Array:
    """Features of the last pass over the crops ``[T, B * P, s, s, C]`` of each stage.

    All passes of all stages are one scan, because how many there are is known when the program is traced: so no branch
    is needed for those that do not run, and the mask head stands once in the program.
    """
    # A triangle laid out in a row: the passes of stage 0, then those of stage 1, ..; all of it is constant.
    order = [heads_of_passes(stages, t) for t in range(len(stages))]
    passes = [(t, head, j == 0) for t, heads in enumerate(order) for j, head in enumerate(heads)]
    of_stage, heads, first = (np.asarray(values) for values in zip(*passes, strict=True))
    empty = stacked.template.empty_features(crops[0])

    def one(before: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        own, head, is_first = now
        # Each stage begins anew, with no earlier features.
        passed = stacked.pick(head).features(own, jnp.where(is_first, empty, before))
        return passed, passed

    # Picked here, crops cost a copy; picked in the loop, its backward pass would add to those of all stages in each.
    passed = jax.lax.scan(one, empty, (crops[of_stage], heads, first))[1]
    # The last pass of each stage.
    return passed[np.cumsum([len(heads) for heads in order]) - 1]


def predict_masks(
    branches: Sequence[MaskBranch],
    stages: Sequence[Stage],
    features: Features,
    found: Detections,
    num_classes: int,
) -> PredictedMasks:
    """As `loop.predict_masks`."""
    stacked = _Stacked(branches)
    last = branches[stages[-1].head]
    crops = last.crops(features, found.boxes, found.valid)
    # Which head a step has is not known while tracing: heads without links crop anew, unless there is only one.
    is_shared = last.linked or len(branches) == 1

    def one(before: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
        branch = stacked.pick(head)
        own = crops if is_shared else branch.crops(features, found.boxes, found.valid)
        passed = branch.features(own, before)
        return passed, branch.logits(passed, found.labels, num_classes)

    logits = _unstack(jax.lax.scan(one, last.empty_features(crops), _heads(stages))[1], len(stages))
    return PredictedMasks(mean_probabilities(logits), MaskPass(crops, logits[-1]))


class _Stacked(Generic[_Branch]):
    """Branches that differ in numbers alone, as one branch with an array of parameters for each leaf."""

    def __init__(self, branches: Sequence[_Branch]) -> None:
        # Modules without their variables, and these as plain trees: what a scan can take a slice of.
        unbound = [branch.unbind() for branch in branches]
        # A linked branch can stand for one without link, whose link is all zeros; not the other way round.
        self.template: Any = next((branch for branch, _ in unbound if getattr(branch, "linked", False)), unbound[0][0])
        self.variables = stack([dict(variables) for _, variables in unbound])
        self.number = len(branches)
        # Delta scales are settings and no parameters, so that they are stacked by hand.
        coders: list[Any] = [branch.coder for branch in branches if hasattr(branch, "coder")]
        self.stds = jnp.asarray([coder.stds for coder in coders], jnp.float32) if coders else None

    def pick(self, index: jax.Array) -> _Branch:
        """The branch of that number, which may be an array."""
        branch = self.template
        if self.stds is not None:
            branch = branch.clone(coder=dataclasses.replace(branch.coder, stds=self.stds[index]))
        # Where there is one for all stages, picking it by number would keep its weights for the gradient once a stage.
        place = 0 if self.number == 1 else index
        picked: _Branch = branch.bind(jax.tree.map(lambda leaf: leaf[place], self.variables))
        return picked


def stack(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Trees of variables as one, with a leading axis.  A link that a tree lacks is one of zeros, which is no link."""
    flat = [flax.traverse_util.flatten_dict(tree) for tree in trees]
    stacked = {}  # path -> [heads, *shape of the leaf]
    for path in sorted(set().union(*flat)):
        some = next(leaves[path] for leaves in flat if path in leaves)
        if "link" not in path and not all(path in leaves for leaves in flat):
            raise ValueError(
                f"{'/'.join(path)} is not in all heads; stages with them cannot be rolled, set model.unroll=true"
            )
        stacked[path] = jnp.stack([leaves.get(path, jnp.zeros_like(some)) for leaves in flat])
    return dict(flax.traverse_util.unflatten_dict(stacked))


def why_not_rolled(heads: Sequence[nn.Module], stages: Sequence[Stage]) -> str | None:
    """What keeps these stages from being one program with other numbers; None if nothing does."""
    # Modules and stages are frozen dataclasses: equal settings are equal values.
    alike = [_numberless(head.unbind()[0]) for head in heads]
    if any(head != alike[0] for head in alike):
        return "heads differ in more than delta scale and link"
    if len({_constant(stage) for stage in stages}) > 1:
        return "stages differ in their samplers or kinds of matching"
    return None


def _numberless(branch: Any) -> Any:
    """The branch without what may differ between those that are rolled together."""
    if hasattr(branch, "coder"):
        branch = branch.clone(coder=dataclasses.replace(branch.coder, stds=(1.0, 1.0, 1.0, 1.0)))
    if hasattr(branch.head, "linked"):
        branch = branch.clone(head=branch.head.clone(linked=False))
    return branch


def _numbers(stage: Stage) -> dict[str, Any]:
    # Floats, so that stages whose settings are ints stack with those whose are not.
    matcher = stage.matcher
    return {
        "head": stage.head,
        "weight": float(stage.weight),
        "matcher": {
            name: float(getattr(matcher, name)) for name in ("positive_iou", "negative_iou", "min_positive_iou")
        },
    }


def _all_numbers(stages: Sequence[Stage]) -> Any:
    return jax.tree.map(lambda *values: jnp.asarray(values), *[_numbers(stage) for stage in stages])


def _heads(stages: Sequence[Stage]) -> jax.Array:
    return jnp.asarray([stage.head for stage in stages])


def _with_numbers(stage: Stage, numbers: Mapping[str, Any]) -> Stage:
    matcher = dataclasses.replace(stage.matcher, **numbers["matcher"])
    return dataclasses.replace(stage, **{**numbers, "matcher": matcher})


def _constant(stage: Stage) -> Stage:
    """The stage without what may differ; mask passes have a scan of their own."""
    return dataclasses.replace(_with_numbers(stage, jax.tree.map(lambda _: 0, _numbers(stage))), mask_passes=0)


def _unstack(values: Any, number: int) -> list[Any]:
    """What a scan put out, as a list with a member for each stage."""
    return [jax.tree.map(lambda a, t=t: a[t], values) for t in range(number)]
