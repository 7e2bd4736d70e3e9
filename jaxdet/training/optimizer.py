"""What a step subtracts from the parameters, and the learning rate as a function of the step.

The two are apart because the reference's momentum holds gradients and not updates: a new learning rate acts at once.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxdet.checkpoints.tree import flatten
from jaxdet.experiment import Optimizer, Schedule
from jaxdet.models.detector import Detector

LearningRateSchedule: TypeAlias = Callable[[jax.Array], jax.Array]
"""Step number (int32) -> learning rate of that step (float32)."""

IsFrozen: TypeAlias = Callable[[tuple[str, ...]], bool]
"""Path of a parameter -> whether it is frozen, that is, not trained."""


def learning_rate(optimizer: Optimizer, batch_size: int, steps_per_epoch: int, shift: int = 0) -> LearningRateSchedule:
    """Make the learning-rate schedule: linear warm-up, then drops at given steps, or a steady decay.

    Step t of a warm-up of w steps from ratio r has the share ``r + (1 - r) t / w`` of the full rate, and a drop at
    step d holds from step d on.  A decay begins where the warm-up ends, and the step after the last would have the
    final rate.

    Args:
        optimizer: settings.
        batch_size: images in a batch, over all processes; the rate is scaled to it.
        steps_per_epoch: for drops that are given in epochs, and the length of the warm-up.
        shift: what is added to a step for its place in the schedule (`position.Position`).
    """
    schedule = optimizer.schedule
    drops = jnp.asarray([schedule.in_steps(d, steps_per_epoch) - shift for d in schedule.drops], jnp.int32)
    full = optimizer.scaled_lr(batch_size)
    # One rate before the first drop, and one after each.
    levels = jnp.asarray([full * schedule.drop_factor**i for i in range(len(schedule.drops) + 1)], jnp.float32)
    warmup = schedule.warmup(steps_per_epoch)
    steady = None if schedule.decay == "drops" else _decay(schedule, full, steps_per_epoch)

    def rate(step: jax.Array) -> jax.Array:
        level = levels[(step >= drops).sum()] if steady is None else steady(step + shift - warmup)
        if not warmup:  # the division below would give NaN at step 0
            return level
        warm = jnp.minimum(step / warmup, 1)
        return level * (schedule.warmup_ratio + (1 - schedule.warmup_ratio) * warm)

    return rate


def _decay(schedule: Schedule, full: float, steps_per_epoch: int) -> LearningRateSchedule:
    """The rate as a function of the steps since the warm-up; before its end it is the full one."""
    left = max(schedule.in_steps(schedule.length, steps_per_epoch) - schedule.warmup(steps_per_epoch), 1)
    if schedule.decay == "cosine":
        falling = optax.cosine_decay_schedule(full, left, schedule.final_ratio)
    else:
        falling = optax.linear_schedule(full, full * schedule.final_ratio, left)

    def rate(step: jax.Array) -> jax.Array:
        return jnp.asarray(falling(jnp.maximum(step, 0)), jnp.float32)

    return rate


def update_direction(optimizer: Optimizer, is_frozen: IsFrozen) -> optax.GradientTransformation:
    """Make the transformation from gradients to what a step subtracts, to be multiplied by the learning rate.

    SGD is torch's: ``g += decay * p; v = momentum * v + g``, and the direction is ``v``.  AdamW and Muon add the decay
    after their own scaling.  Before all that the gradient is clipped, if ``optimizer.clip_norm`` is set.  With
    ``optimizer.accumulate`` all of this sees the mean gradient, and the direction of the steps between is 0.

    Args:
        optimizer: settings.
        is_frozen: tells which parameters get 0, count in no norm and have no momentum.
    """
    clip = optax.identity() if optimizer.clip_norm is None else optax.clip_by_global_norm(optimizer.clip_norm)
    decay = optax.add_decayed_weights(optimizer.weight_decay)
    rules = {
        "sgd": (decay, optax.trace(optimizer.momentum)),
        "adamw": (optax.scale_by_adam(), decay),
        "muon": (_muon(optimizer),),
    }
    # `partition` gives each group only its own gradients, so the clipping norm is that of trained parameters.
    trained = optax.chain(clip, *rules[optimizer.rule])
    if optimizer.accumulate > 1:
        trained = optax.MultiSteps(trained, optimizer.accumulate).gradient_transformation()
    transforms = {"trained": trained, "frozen": optax.set_to_zero()}
    return optax.partition(transforms, lambda params: _labels(params, is_frozen))


def descend(params: Any, updates: Any, rate: jax.Array, is_frozen: IsFrozen) -> Any:
    """Subtract what `update_direction` gives, times the learning rate; a step need not touch what is frozen."""

    def less(param: jax.Array, update: jax.Array, label: str) -> jax.Array:
        return param - rate * update if label == "trained" else param

    return jax.tree.map(less, params, updates, _labels(params, is_frozen))


def frozen_parameters(model: Detector, train_only: Sequence[str]) -> IsFrozen:
    """Tells which parameters of a run are frozen: those of the model, and all that ``run.train_only`` does not match.

    Patterns are searched in names as ``params/boundaries/weights``; without any the model's are frozen alone.
    """
    if not train_only:
        return model.is_frozen
    return lambda path: model.is_frozen(path) or not any(re.search(p, _name(path)) for p in train_only)


def check_patterns(model: Detector, params: Any, train_only: Sequence[str]) -> None:
    """ValueError for a pattern of ``run.train_only`` that matches no parameter which the model would train."""
    names = [_name(path) for path in flatten(params) if not model.is_frozen(path)]
    for pattern in train_only:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"run.train_only: {pattern!r} matches none of the {len(names)} parameters that are not frozen; their "
                f"names are as {', '.join(names[:: max(len(names) // 3, 1)][:3])}"
            )


def _name(path: tuple[str, ...]) -> str:
    return "/".join(("params", *path))


def _muon(optimizer: Optimizer) -> optax.GradientTransformation:
    """Muon for kernels, Adam for the rest.

    Muon's updates are scaled to a root mean square of 0.2, which is that of AdamW's (Liu et al. 2025), so that one
    learning rate serves both.
    """
    return optax.contrib.muon(
        -1.0,  # optax's updates are added, ours are subtracted
        consistent_rms=0.2,
        ns_steps=optimizer.muon_steps,
        preconditioning=optimizer.muon_norm,
        weight_decay=optimizer.weight_decay,
        adam_weight_decay=optimizer.weight_decay,
        muon_weight_dimension_numbers=_as_matrices,
    )


def _as_matrices(params: Any) -> Any:
    """How Muon sees each kernel as a matrix: the last axis are outputs, all others inputs; None for biases."""

    def dimensions(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        # Kernels are [height, width, in, out] or [in, out]; vectors are left to Adam.
        *inputs, output = range(leaf.ndim) if leaf.ndim > 1 else [0]
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), output) if inputs else None

    return jax.tree.map(dimensions, params)


def trained_norm(gradients: Any, is_frozen: IsFrozen) -> jax.Array:
    """Compute the global L2 norm of the gradients of all parameters that are not frozen."""
    labels = jax.tree.leaves(_labels(gradients, is_frozen))
    pairs = zip(jax.tree.leaves(gradients), labels, strict=True)
    return jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g, label in pairs if label == "trained"), jnp.float32(0)))


def _labels(params: Any, is_frozen: IsFrozen) -> Any:
    """A tree with ``trained`` or ``frozen`` for each parameter."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        return "frozen" if is_frozen(tuple(str(entry.key) for entry in path)) else "trained"

    return jax.tree_util.tree_map_with_path(label, params)
