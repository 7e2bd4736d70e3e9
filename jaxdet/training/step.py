"""The state of a training run and the one compiled function that advances it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.models.detector import Detector
from jaxdet.structures import Batch
from jaxdet.training.optimizer import Rate, trained_norm

Metrics = dict[str, jax.Array]
"""``loss`` (the total), ``loss/NAME`` for each term, ``grad_norm``, ``lr``, ``count/NAME`` for the sum of each of the
batch's counts, and the model's own metrics: scalars."""

_PREFIX = "loss_"
COUNT = "count/"


@struct.dataclass
class TrainState:
    """Everything that a run needs to go on, beside its config."""

    step: jax.Array  #: int32, number of steps done
    params: Any
    batch_stats: Any  #: running statistics of BatchNorm; constants where it is frozen
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def init_variables(model: Detector, key: jax.Array, side: int = 128) -> dict[str, Any]:
    """Fresh variables; their shapes do not depend on the canvas, so a single small image does."""
    image = np.zeros((1, side, side, 3), np.uint8)
    whole, one = np.full((1, 2), side, np.float32), np.ones((1, 2), np.float32)
    batch = Batch(image, whole, one, whole.astype(np.int32), np.zeros(1, np.int32), np.ones(1, bool))
    variables = jax.jit(lambda key: model.init(key, batch, method="predict"))(key)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(variables: Mapping[str, Any], direction: optax.GradientTransformation) -> TrainState:
    """The state before step 0."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    stats = jax.tree.map(jnp.asarray, variables.get("batch_stats", {}))
    return TrainState(jnp.zeros((), jnp.int32), params, stats, direction.init(params))


def make_train_step(
    model: Detector,
    direction: optax.GradientTransformation,
    rate: Rate,
    mesh: Mesh,
    *,
    skip_nonfinite: bool = False,
    layout: Any = None,
) -> TrainStep:
    """The compiled step ``(state, batch, key) -> (state, metrics)``; the old state's memory is given to the new one.

    Args:
        model: gives the loss terms, whose sum is minimised.
        direction: see `update_direction`.
        rate: see `learning_rate`.
        mesh: one axis ``data``; the batch comes split along it (`jaxdet.runtime.mesh.split_batch`).
        skip_nonfinite: where the loss or the gradient is not finite, only the step number of the state changes.
        layout: shardings of the state, as `jaxdet.runtime.mesh.layout_of` gives them; None: it is replicated.

    ``key`` is the run's; the draws of a step depend on it and on the step number alone.
    """

    replicated = NamedSharding(mesh, P())

    def loss(params: Any, state: TrainState, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Metrics, Any]]:
        # Where the state is split over devices, each of them gathers the variables for its images.
        variables = jax.lax.with_sharding_constraint(state.variables | {"params": params}, replicated)
        (terms, metrics), changed = model.apply(variables, batch, key, method="losses", mutable=["batch_stats"])
        total = sum(terms.values())
        named = {f"loss/{name.removeprefix(_PREFIX)}": term for name, term in terms.items()} | {"loss": total}
        # A batch that is not full makes a step as much smaller: its images weigh what they do in a full one.
        return batch.valid.mean() * total, (metrics | named, changed.get("batch_stats", {}))

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        gradients, (metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.params, state, batch, step_key)
        updates, opt_state = direction.update(gradients, state.opt_state, state.params)
        lr = rate(state.step)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        norm = trained_norm(gradients, model.is_frozen)
        new = TrainState(state.step + 1, params, batch_stats, opt_state)
        if skip_nonfinite:
            same = TrainState(state.step + 1, state.params, state.batch_stats, state.opt_state)
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, same)
        counts = {f"{COUNT}{name}": each.sum() for name, each in batch.counts.items()}
        return new, metrics | {"grad_norm": norm, "lr": lr} | counts

    outputs = (replicated if layout is None else layout, replicated)
    compiled: TrainStep = jax.jit(step, donate_argnums=0, out_shardings=outputs)
    return compiled
