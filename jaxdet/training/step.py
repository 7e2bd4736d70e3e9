"""The one compiled function that advances a run by a step."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.experiment import Experiment
from jaxdet.models.detector import Detector
from jaxdet.models.features import Dtype
from jaxdet.ops.devices import split_over
from jaxdet.runtime.compiling import breakable
from jaxdet.structures import Batch
from jaxdet.training.optimizer import IsFrozen, LearningRateSchedule, descend, frozen_parameters, trained_norm
from jaxdet.training.state import TrainState

Metrics: TypeAlias = dict[str, jax.Array]
"""Scalars of a step: ``loss`` (the total), ``loss/NAME`` for each term, ``grad_norm``, ``lr``, ``count/NAME`` for the
sum of each of the batch's counts, and the model's own metrics."""

TrainStep: TypeAlias = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
"""``(state, batch, key) -> (state, metrics)``."""

COUNT = "count/"
_PREFIX = "loss_"  #: how models name their terms

_log = logging.getLogger(__name__)


class StepByCanvas:
    """A `TrainStep` that says when it compiles, which it does when a canvas comes for the first time.

    Args:
        step: what `make_train_step` gives.
        leave_out: is told how long a compilation took, in seconds; it is no part of the speed of a run.
        stopping: whether a signal asked to stop; looked at while the step is compiled.
    """

    def __init__(self, step: Any, leave_out: Callable[[float], None], stopping: Callable[[], bool]) -> None:
        self._step = step
        self._leave_out = leave_out
        self._stopping = stopping
        self._programs: dict[tuple[int, ...], TrainStep] = {}

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Advance by a step; `compiling.Abandoned` if that was to be compiled and a signal came meanwhile."""
        canvas = batch.image.shape
        if canvas not in self._programs:
            begin = time.perf_counter()
            _log.info("compiling the step for a canvas of %d x %d pixels", *canvas[1:3])
            self._programs[canvas] = breakable(lambda: self._step.lower(state, batch, key).compile(), self._stopping)
            seconds = time.perf_counter() - begin
            _log.info("compiled in %.1f s", seconds)
            self._leave_out(seconds)
        return self._programs[canvas](state, batch, key)


def averaging(decay: float, step: jax.Array) -> jax.Array:
    """The weight of the new parameters in their moving average, ``1 - min(decay, (1 + t) / (10 + t))`` for step t.

    So the average forgets the parameters of the start soon, as TensorFlow's ``ExponentialMovingAverage`` does.
    """
    return 1 - jnp.minimum(jnp.float32(decay), (1 + step) / jnp.float32(10 + step))


def make_train_step(
    model: Detector,
    direction: optax.GradientTransformation,
    rate: LearningRateSchedule,
    mesh: Mesh,
    *,
    skip_nonfinite: bool = False,
    layout: Any = None,
    is_frozen: IsFrozen | None = None,
    statistics: bool = True,
    ema: float | None = None,
    reduce_dtype: Dtype = "float32",
) -> TrainStep:
    """Make the compiled step; the old state's memory is given to the new one.

    Args:
        model: gives the loss terms, whose sum is minimised.
        direction: see `optimizer.update_direction`.
        rate: see `optimizer.learning_rate`.
        mesh: one axis ``data``; the batch comes split along it (`jaxdet.runtime.mesh.split_batch`).
        skip_nonfinite: where the loss or the gradient is not finite, only the step number of the state changes.
        layout: shardings of the state, as `jaxdet.runtime.mesh.layout_of` gives them; None: it is replicated.
        is_frozen: tells which parameters are not trained, as to `optimizer.update_direction`; None: those of the model.
        statistics: normalisation learns from the batch, where it is not frozen; False: it stays as at test.
        ema: decay of the state's average, if it has one; see `averaging`.
        reduce_dtype: in which dtype devices add up the gradients of layers that compute in bfloat16.

    Returns:
        The step.  Its key is the run's: the draws of a step depend on it and on the step number alone, so that a run
        that was stopped goes on with the same ones.
    """
    replicated = NamedSharding(mesh, P())

    def loss(params: Any, state: TrainState, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Metrics, Any]]:
        # Where the state is split over devices, each of them gathers the variables for its images.
        variables = jax.lax.with_sharding_constraint(state.variables | {"params": params}, replicated)
        mutable = ["batch_stats"] if statistics else []
        with split_over(mesh, narrow_sums=reduce_dtype != "float32"):
            (terms, metrics), changed = model.apply(variables, batch, key, method="losses", mutable=mutable)
        total = sum(terms.values())
        named = {f"loss/{name.removeprefix(_PREFIX)}": term for name, term in terms.items()} | {"loss": total}
        # Losses are means over the images that are there.  In a batch that is not full these would weigh more than in
        # a full one, so its gradient is made smaller by the share of slots that are filled.
        kept = {} if statistics else state.batch_stats
        return batch.valid.mean() * total, (metrics | named, changed.get("batch_stats", kept))

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        gradients, (metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.params, state, batch, step_key)
        updates, opt_state = direction.update(gradients, state.opt_state, state.params)
        lr = rate(state.step)
        params = descend(state.params, updates, lr, is_frozen or model.is_frozen)
        norm = trained_norm(gradients, is_frozen or model.is_frozen)
        average = None if ema is None else optax.incremental_update(params, state.average, averaging(ema, state.step))
        new = TrainState(state.step + 1, params, batch_stats, opt_state, average)
        if skip_nonfinite:
            same = TrainState(state.step + 1, state.params, state.batch_stats, state.opt_state, state.average)
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, same)
        # The batch is global here, so these sums are over all devices and processes.
        counts = {f"{COUNT}{name}": count.sum() for name, count in batch.counts.items()}
        return new, metrics | {"grad_norm": norm, "lr": lr} | counts

    outputs = (replicated if layout is None else layout, replicated)
    compiled: TrainStep = jax.jit(step, donate_argnums=0, out_shardings=outputs)
    return compiled


def step_of_run(
    experiment: Experiment, direction: optax.GradientTransformation, rate: LearningRateSchedule, mesh: Mesh, layout: Any
) -> TrainStep:
    """The step that an experiment asks for: `make_train_step` for its model, as its settings say."""
    run = experiment.run
    return make_train_step(
        experiment.model,
        direction,
        rate,
        mesh,
        skip_nonfinite=run.skip_nonfinite > 0,
        layout=layout,
        is_frozen=frozen_parameters(experiment.model, run.train_only),
        statistics=not run.train_only,
        ema=experiment.optimizer.ema,
        reduce_dtype=run.reduce_dtype,
    )
