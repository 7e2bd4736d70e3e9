"""The state of a run: what it is, where it comes from, and how a checkpoint holds it.

A run starts from its own last checkpoint, from weights of another one (``run.init_from``), or afresh.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from jaxdet.checkpoints.importing import find_weights
from jaxdet.checkpoints.reading import VARIABLES
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.experiment import Experiment, Run
from jaxdet.models.detector import Detector
from jaxdet.runtime.mesh import layout_of
from jaxdet.structures import Batch
from jaxdet.training.phases import first_phase, named
from jaxdet.training.weights import start_variables, with_weights

_OPTIMIZER = "optimizer"  #: the checkpoint's item with step and optimizer state

_log = logging.getLogger(__name__)


@struct.dataclass
class TrainState:
    """Everything that a run needs to go on, beside its config."""

    step: jax.Array  #: int32, number of steps done
    params: Any
    batch_stats: Any  #: running statistics of batch norm; constants where it is frozen
    opt_state: Any
    average: Any = None  #: moving average of ``params`` (``optimizer.ema``); None: the run has none

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def result(self) -> dict[str, Any]:
        """What ``model.apply`` takes in evaluation, and a checkpoint gives away: the average, where there is one."""
        return self.variables if self.average is None else self.variables | {"params": self.average}


def init_variables(model: Detector, key: jax.Array, side: int = 128) -> dict[str, Any]:
    """Initialise the variables of a model.

    Args:
        model: the model.
        key: random key.
        side: height and width of the image on which the model is traced.  The shapes of variables do not depend on
            the canvas, so a small one does.
    """
    image = np.zeros((1, side, side, 3), np.uint8)
    whole, one = np.full((1, 2), side, np.float32), np.ones((1, 2), np.float32)
    batch = Batch(image, whole, one, whole.astype(np.int32), np.zeros(1, np.int32), np.ones(1, bool))
    variables = jax.jit(lambda key: model.init(key, batch, method="predict"))(key)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(
    variables: Mapping[str, Any], direction: optax.GradientTransformation, *, averaged: bool = False
) -> TrainState:
    """Make the state before step 0; ``direction`` as in `optimizer.update_direction`, ``averaged``: with an average."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    stats = jax.tree.map(jnp.asarray, variables.get("batch_stats", {}))
    # A copy: the step gives the memory of every array of the state away, so that none may be there twice.
    average = jax.tree.map(jnp.copy, params) if averaged else None
    return TrainState(jnp.zeros((), jnp.int32), params, stats, direction.init(params), average)


def start_state(
    model: Detector,
    direction: optax.GradientTransformation,
    run: Run,
    store: CheckpointStore,
    mesh: Mesh,
    classes: Sequence[str] = (),
    *,
    averaged: bool = False,
) -> TrainState:
    """Make the state to start from.

    Args:
        model: the model.
        direction: see `optimizer.update_direction`.
        run: settings; ``seed``, ``init_*`` and ``shard_parameters`` are used.
        store: the run's checkpoints.
        mesh: the devices.
        classes: names of the data's categories, in the order of their labels (see `weights.start_variables`).
        averaged: the state has a moving average of the parameters (``optimizer.ema``).

    Returns:
        The newest state in the store if there is one, else the state before step 0 with ``run.init_from`` or fresh
        variables.  It lies on the devices as ``run.shard_parameters`` says, however it lay when it was saved.

    Raises:
        ValueError: the weights or the checkpoint do not fit the model.
    """
    if store.steps():
        # Shapes only: a second state would take as much memory again while the checkpoint is read.
        like = jax.eval_shape(
            lambda: init_state(init_variables(model, jax.random.key(0)), direction, averaged=averaged)
        )
        layout = layout_of(like, mesh, split=run.shard_parameters)
        target = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), like, layout)
        if (found := store.restore_newest(to_save(target))) is not None:
            state = _from_saved(like, found[0])
            _log.info("continuing after step %d", int(state.step))
            return state
    variables = start_variables(model, init_variables(model, jax.random.key(run.seed)), run, classes)
    state = init_state(variables, direction, averaged=averaged)
    placed: TrainState = jax.device_put(state, layout_of(state, mesh, split=run.shard_parameters))
    return placed


def check_weights(experiment: Experiment, classes: Sequence[str] = ()) -> None:
    """Make sure that the weights to start from are there and fit, before anything is compiled.

    Args:
        experiment: the run; of two phases the first one's weights count.
        classes: as in `start_state`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they do not fit the model.
        OSError: public weights cannot be downloaded.
    """
    started = first_phase(experiment) or experiment
    if started.run.init_from is None:
        return
    setting = "run.init_from" if started is experiment else "before.init_from"
    with named(f"the weights to start from ({setting})"):
        find_weights(started.run.init_from)  # before the model is traced
        shapes = jax.eval_shape(lambda: init_variables(started.model, jax.random.key(0)))
        fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        with_weights(started.model, fresh, started.run, classes)


def to_save(state: TrainState) -> dict[str, Any]:
    """Arrange a state as the items of a checkpoint; evaluation reads the variables alone."""
    # Leaves by number: optax's states are tuples of its own classes, which the next version may name otherwise.
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    optimizer = {"step": state.step, "leaves": leaves}
    # Whoever reads a checkpoint reads its variables, and is to find the average there.
    return {VARIABLES: state.result, _OPTIMIZER: optimizer | ({} if state.average is None else {"raw": state.params})}


def _from_saved(like: TrainState, saved: dict[str, Any]) -> TrainState:
    """The inverse of `to_save`; ``like`` gives the structure of the optimizer state."""
    leaves = saved[_OPTIMIZER]["leaves"]
    ordered = [leaves[str(i)] for i in range(len(leaves))]
    given = saved[VARIABLES]["params"]
    return TrainState(
        step=saved[_OPTIMIZER]["step"],
        params=given if like.average is None else saved[_OPTIMIZER]["raw"],
        batch_stats=saved[VARIABLES]["batch_stats"],
        opt_state=jax.tree.unflatten(jax.tree.structure(like.opt_state), ordered),
        average=None if like.average is None else given,
    )
