"""Two ways to run the same steps: written out one after the other, or rolled into one ``jax.lax.scan``.

Both take the same body and the same parameter tree.  Written out, every step is a part of the program of its own;
rolled, the program holds one step, whose head is picked from the stacked parameters of all heads and whose thresholds
and weight are picked from arrays, so that the size of the program and the time to compile it do not grow with steps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.models.branches import Head, Losses
from jaxdet.models.schedule import Step, heads_of_passes

EachStep: TypeAlias = Any
"""What all steps put out: for a member of `Repeat` to take, and for ``listed`` to take apart."""


class Repeat(Protocol):
    """Runs steps.

    What a body puts out for a step is a tuple.  A tuple of as many members comes back, each that of all steps.
    """

    @property
    def heads(self) -> Sequence[Head]: ...

    @property
    def schedule(self) -> Sequence[Step]: ...

    def fold(self, body: Callable[[Head, Step, Any, Any], tuple[Any, tuple[Any, ...]]], carry: Any) -> EachStep:
        """Steps that begin where the one before ended: ``body(head, step, t, carry) -> (carry, out)``."""

    def each(self, body: Callable[..., tuple[Any, ...]], *given: EachStep) -> EachStep:
        """Steps that do not depend on each other: ``body(head, step, *given) -> out``, ``given`` being the step's."""

    def mask_passes(self, crops: EachStep) -> EachStep:
        """Mask features of the crops of each step: those of its own pass, after the passes that come before it."""

    def listed(self, values: EachStep) -> list[Any]:
        """Those of each step."""


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """Steps one after the other."""

    heads: Sequence[Head]
    schedule: Sequence[Step]

    def fold(self, body: Callable[..., Any], carry: Any) -> EachStep:
        outs = []
        for t, step in enumerate(self.schedule):
            carry, out = body(self.heads[step.head], step, t, carry)
            outs.append(out)
        return tuple(zip(*outs, strict=True))

    def each(self, body: Callable[..., tuple[Any, ...]], *given: EachStep) -> EachStep:
        outs = [body(self.heads[step.head], step, *its) for step, *its in zip(self.schedule, *given, strict=True)]
        return tuple(zip(*outs, strict=True))

    def mask_passes(self, crops: EachStep) -> EachStep:
        seen = []
        for t, its in enumerate(crops):
            order = [self.heads[head] for head in heads_of_passes(self.schedule, t)]
            before = order[0].no_mask_features(its)
            for head in order:
                before = head.mask_features(its, before)
            seen.append(before)
        return seen

    def listed(self, values: EachStep) -> list[Any]:
        return list(values)


class Rolled:
    """One step in a scan.  ValueError where `why_not_rolled` has a reason."""

    def __init__(self, heads: Sequence[Head], schedule: Sequence[Step]) -> None:
        self.heads, self.schedule = heads, schedule
        reason = why_not_rolled(heads, schedule)
        if reason is not None:
            raise ValueError(f"{reason} and cannot be rolled into a scan; set unroll=True")
        unbound = [head.unbind() for head in heads]
        self.template = next((module for module, _ in unbound if module.linked), unbound[0][0])
        self.variables = stack([dict(variables) for _, variables in unbound])
        self.stds = jnp.asarray([head.coder.stds for head in heads], jnp.float32)
        self.steps = jax.tree.map(lambda *values: jnp.asarray(values), *[_numbers(step) for step in schedule])

    def fold(self, body: Callable[..., Any], carry: Any) -> EachStep:
        def one(carry: Any, now: Any) -> tuple[Any, Any]:
            t, numbers = now
            return body(self._head(numbers["head"]), self._step(numbers), t, carry)

        return jax.lax.scan(one, carry, (jnp.arange(len(self.schedule)), self.steps))[1]

    def each(self, body: Callable[..., tuple[Any, ...]], *given: EachStep) -> EachStep:
        def one(_: None, now: Any) -> tuple[None, Any]:
            numbers, its = now
            return None, body(self._head(numbers["head"]), self._step(numbers), *its)

        return jax.lax.scan(one, None, (self.steps, given))[1]

    def mask_passes(self, crops: EachStep) -> EachStep:
        """All passes of all steps in one scan, so that none is there that does not run."""
        order = [heads_of_passes(self.schedule, t) for t in range(len(self.schedule))]
        passes = [(t, head, j == 0) for t, heads in enumerate(order) for j, head in enumerate(heads)]
        steps, heads, first = (np.asarray(values) for values in zip(*passes, strict=True))
        nothing = self.template.no_mask_features(crops[0])

        def one(before: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
            its, head, is_first = now
            seen = self._head(head).mask_features(its, jnp.where(is_first, nothing, before))
            return seen, seen

        # Picked here, crops cost a copy; picked in the loop, its backward pass would add to those of all steps in each.
        seen = jax.lax.scan(one, nothing, (crops[steps], heads, first))[1]
        return seen[np.cumsum([len(heads) for heads in order]) - 1]

    def listed(self, values: EachStep) -> list[Any]:
        return [jax.tree.map(lambda a, t=t: a[t], values) for t in range(len(self.schedule))]

    def _step(self, numbers: Mapping[str, Any]) -> Step:
        return _with_numbers(self.schedule[0], numbers)

    def _head(self, index: jax.Array) -> Head:
        stds: Any = self.stds[index]
        head = self.template.clone(coder=dataclasses.replace(self.template.coder, stds=stds))
        # Where there is one for all steps, picking it by the step's number would keep its weights for the gradient once
        # a step.
        pick = 0 if len(self.heads) == 1 else index
        return head.bind(jax.tree.map(lambda leaf: leaf[pick], self.variables))


def by_name(repeat: Repeat, terms: EachStep) -> Losses:
    """Terms of all steps in one dictionary, told apart by a prefix where there are several steps."""
    steps = repeat.listed(terms)
    if len(steps) == 1:
        return dict(steps[0])
    return {f"s{t}.{name}": value for t, its in enumerate(steps) for name, value in its.items()}


def why_not_rolled(heads: Sequence[Head], schedule: Sequence[Step]) -> str | None:
    """What keeps these steps from being one program with other numbers; None if nothing does."""
    alike = [_numberless(head.unbind()[0]) for head in heads]
    if any(head != alike[0] for head in alike):
        return "heads differ in more than delta scale and link"
    if len({_constant(step) for step in schedule}) > 1:
        return "steps differ in their samplers or kinds of matching"
    return None


def is_faster_unrolled(steps: int) -> bool:
    """What ``python -m benchmarks.models.loop`` found on the backend in use (docs/BENCHMARKS.md).

    With gradients, three steps rolled take 2.6 times as long as written out on a CPU, where what is in a loop has one
    core for much of it, and took 1.3 times on an H200; forward alone there is little difference.  Elsewhere nobody has
    measured: the smaller program.
    """
    return steps == 1 or jax.default_backend() in ("cpu", "gpu")


def stack(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Trees of variables as one, with a leading axis.  A link that a tree lacks is one of zeros, which is no link."""
    flat = [flax.traverse_util.flatten_dict(tree) for tree in trees]
    stacked = {}
    for path in sorted(set().union(*flat)):
        some = next(leaves[path] for leaves in flat if path in leaves)
        if "link" not in path and not all(path in leaves for leaves in flat):
            raise ValueError(f"{'/'.join(path)} is not in all heads; steps with them cannot be rolled, set unroll=True")
        stacked[path] = jnp.stack([leaves.get(path, jnp.zeros_like(some)) for leaves in flat])
    return dict(flax.traverse_util.unflatten_dict(stacked))


def _numberless(head: Head) -> Head:
    """The head without what may differ between heads that are rolled together."""
    mask_head = None if head.mask_head is None else head.mask_head.clone(linked=False)
    return head.clone(coder=dataclasses.replace(head.coder, stds=(1.0, 1.0, 1.0, 1.0)), mask_head=mask_head)


def _numbers(step: Step) -> dict[str, Any]:
    matcher = step.matcher
    return {
        "head": step.head,
        "weight": float(step.weight),
        "matcher": {
            name: float(getattr(matcher, name)) for name in ("positive_iou", "negative_iou", "min_positive_iou")
        },
    }


def _with_numbers(step: Step, numbers: Mapping[str, Any]) -> Step:
    return dataclasses.replace(step, **{**numbers, "matcher": dataclasses.replace(step.matcher, **numbers["matcher"])})


def _constant(step: Step) -> Step:
    """The step without what may differ between steps that are rolled together; mask passes have a scan of their own."""
    return dataclasses.replace(_with_numbers(step, jax.tree.map(lambda _: 0, _numbers(step))), mask_passes=0)
