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

from jaxdet.models.branches import Head
from jaxdet.models.schedule import Step

Body: TypeAlias = Callable[[Head, Step, Any, Any], tuple[Any, Any, Any]]
"""``body(head, step, t, carry) -> (carry, out, last)``, whose shapes are those of every step.

``out`` is wanted of every step, ``last`` of the last one alone: rolled, it takes no memory for the others.
"""


class Repeat(Protocol):
    """Runs steps."""

    @property
    def heads(self) -> Sequence[Head]: ...

    @property
    def schedule(self) -> Sequence[Step]: ...

    def fold(self, body: Body, carry: Any) -> tuple[list[Any], Any]:
        """What each step put out, and what the last one added."""

    def chain(self, crops: jax.Array, passes: Any, nothing: jax.Array) -> jax.Array:
        """Mask features after the first ``passes`` steps' heads have looked at the crops; ``nothing`` if it is 0."""


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """Steps one after the other."""

    heads: Sequence[Head]
    schedule: Sequence[Step]

    def fold(self, body: Body, carry: Any) -> tuple[list[Any], Any]:
        outs, last = [], None
        for t, step in enumerate(self.schedule):
            carry, out, last = body(self.heads[step.head], step, t, carry)
            outs.append(out)
        return outs, last

    def chain(self, crops: jax.Array, passes: Any, nothing: jax.Array) -> jax.Array:
        for step in self.schedule[:passes]:
            nothing = self.heads[step.head].mask_features(crops, nothing)
        return nothing


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

    def fold(self, body: Body, carry: Any) -> tuple[list[Any], Any]:
        def one(before: Any, now: Any) -> tuple[Any, Any]:
            t, numbers = now
            head, step = self._head(numbers["head"]), _with_numbers(self.schedule[0], numbers)
            carry, out, last = body(head, step, t, before[0])
            return (carry, last), out

        count = len(self.schedule)
        steps = (jnp.arange(count), self.steps)
        (_, last), _ = jax.eval_shape(one, (carry, None), jax.tree.map(lambda a: a[0], steps))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), last)
        (_, last), outs = jax.lax.scan(one, (carry, nothing), steps)
        return [jax.tree.map(lambda a, t=t: a[t], outs) for t in range(count)], last

    def chain(self, crops: jax.Array, passes: Any, nothing: jax.Array) -> jax.Array:
        """A pass that does not run costs nothing: the branch around it is a real one."""

        def one(before: jax.Array, now: Any) -> tuple[jax.Array, None]:
            j, index = now
            return jax.lax.cond(j < passes, run, lambda _, f: f, index, before), None

        def run(index: jax.Array, before: jax.Array) -> jax.Array:
            return self._head(index).mask_features(crops, before)

        before = len(self.schedule) - 1
        return jax.lax.scan(one, nothing, (jnp.arange(before), self.steps["head"][:before]))[0]

    def _head(self, index: jax.Array) -> Head:
        stds: Any = self.stds[index]
        head = self.template.clone(coder=dataclasses.replace(self.template.coder, stds=stds))
        # Where there is one for all steps, picking it by the step's number would keep its weights for the gradient once
        # a step.
        pick = 0 if len(self.heads) == 1 else index
        return head.bind(jax.tree.map(lambda leaf: leaf[pick], self.variables))


def why_not_rolled(heads: Sequence[Head], schedule: Sequence[Step]) -> str | None:
    """What keeps these steps from being one program with other numbers; None if nothing does."""
    alike = [_numberless(head.unbind()[0]) for head in heads]
    if any(head != alike[0] for head in alike):
        return "heads differ in more than delta scale and link"
    if len({_constant(step) for step in schedule}) > 1:
        return "steps differ in their samplers or kinds of matching"
    return None


def is_faster_unrolled(steps: int) -> bool:
    """What ``python -m benchmarks.loop`` found on the backend in use (docs/BENCHMARKS.md).

    With gradients, three steps rolled take 65 times as long as written out on a CPU, and 1.3 times on an H200; forward
    alone there is no difference worth the name.  Elsewhere nobody has measured: the smaller program.
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
        "mask_passes": step.mask_passes,
        "matcher": {
            name: float(getattr(matcher, name)) for name in ("positive_iou", "negative_iou", "min_positive_iou")
        },
    }


def _with_numbers(step: Step, numbers: Mapping[str, Any]) -> Step:
    return dataclasses.replace(step, **{**numbers, "matcher": dataclasses.replace(step.matcher, **numbers["matcher"])})


def _constant(step: Step) -> Step:
    return _with_numbers(step, jax.tree.map(lambda _: 0, _numbers(step)))
