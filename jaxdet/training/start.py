"""Where a run starts: from its own last checkpoint, from weights of another, or afresh."""

import logging
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.reading import VARIABLES
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.experiment import Run
from jaxdet.models.detector import Detector
from jaxdet.runtime.mesh import layout_of
from jaxdet.trained import warn_of_settings
from jaxdet.training.step import TrainState, init_state, init_variables

OPTIMIZER = "optimizer"

_log = logging.getLogger(__name__)


def start_state(
    model: Detector, direction: optax.GradientTransformation, run: Run, store: CheckpointStore, mesh: Mesh
) -> TrainState:
    """The newest state in the store if there is one, else step 0 with ``run.init_from`` or fresh variables.

    It lies on the devices of the mesh as ``run.shard_parameters`` says, however it lay when it was saved.

    Raises:
        ValueError: the weights or the checkpoint do not fit the model.
    """
    if store.steps():
        like = jax.eval_shape(lambda: init_state(init_variables(model, jax.random.key(0)), direction))
        layout = layout_of(like, mesh, split=run.shard_parameters)
        target = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), like, layout)
        if (found := store.restore_newest(to_save(target))) is not None:
            state = _from_saved(like, found[0])
            _log.info("continuing after step %d", int(state.step))
            return state
    variables = init_variables(model, jax.random.key(run.seed))
    if run.init_from is not None:
        variables = initialised(model, variables, run)
    state = init_state(variables, direction)
    placed: TrainState = jax.device_put(state, layout_of(state, mesh, split=run.shard_parameters))
    return placed


def initialised(model: Detector, variables: dict[str, Any], run: Run) -> dict[str, Any]:
    """Fresh variables with the weights of ``run.init_from`` in their places; says which they leave."""
    imported = import_weights(str(run.init_from), variables)
    warn_of_settings(model, imported)
    merged, report = merge(
        variables, imported.variables, run.init_skip, new_classes=run.init_new_classes, within=imported.within
    )
    _log.info("weights from %s: %s", run.init_from, report)
    return merged


def to_save(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint; evaluation needs the first alone."""
    # Leaves by number: optax's states are tuples of its own classes, which need not look the same in its next version.
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    return {VARIABLES: state.variables, OPTIMIZER: {"step": state.step, "leaves": leaves}}


def _from_saved(like: TrainState, saved: dict[str, Any]) -> TrainState:
    leaves = saved[OPTIMIZER]["leaves"]
    ordered = [leaves[str(i)] for i in range(len(leaves))]
    return TrainState(
        step=saved[OPTIMIZER]["step"],
        params=saved[VARIABLES]["params"],
        batch_stats=saved[VARIABLES]["batch_stats"],
        opt_state=jax.tree.unflatten(jax.tree.structure(like.opt_state), ordered),
    )
