"""Where a run starts: from its own last checkpoint, from weights of another, or afresh."""

import logging
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxdet.checkpoints.files import read_weights
from jaxdet.checkpoints.from_mmdet import from_mmdet
from jaxdet.checkpoints.from_torchvision import (
    Imported,
    from_folded_resnet,
    from_torchvision,
    from_torchvision_resnet,
)
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.store import VARIABLES, CheckpointStore, load
from jaxdet.experiment import Run
from jaxdet.mesh import replicate
from jaxdet.train_lib.step import Trainable, TrainState, init_state, init_variables

OPTIMIZER = "optimizer"

_log = logging.getLogger(__name__)


def start_state(
    model: Trainable, direction: optax.GradientTransformation, run: Run, store: CheckpointStore, mesh: Mesh
) -> TrainState:
    """The newest state in the store if there is one, else step 0 with ``run.init_from`` or fresh variables.

    Raises:
        ValueError: the weights or the checkpoint do not fit the model.
    """
    step = store.latest_step()
    variables = init_variables(model, jax.random.key(run.seed))
    if step is None and run.init_from is not None:
        variables = initialised(variables, run)
    state = replicate(init_state(variables, direction), mesh)
    if step is None:
        return state
    saved, metadata = store.restore(to_save(state), step)
    _log.info("continuing after step %d", metadata["step"])
    return _from_saved(state, saved)


def initialised(variables: dict[str, Any], run: Run) -> dict[str, Any]:
    """Fresh variables with the weights of ``run.init_from`` in their places; says which they leave."""
    imported = read_variables(str(run.init_from))
    merged, report = merge(
        variables, imported.variables, run.init_skip, new_classes=run.init_new_classes, within=imported.within
    )
    _log.info("weights from %s: %s", run.init_from, report)
    return merged


def read_variables(path: str) -> Imported:
    """Variables in a run folder, a checkpoint, or a weight file, whose names tell where it comes from.

    Files: mmdetection's detectors, torchvision's detectors and ResNet classifiers (batch norm folded or not).
    Errors as `jaxdet.checkpoints.store.load` and `jaxdet.checkpoints.files.read_weights`.
    """
    if Path(path).is_dir():
        return Imported(load(path)[0])
    state = read_weights(path)
    if any(name.startswith("roi_heads.") for name in state):
        return from_torchvision(state)
    if any(name.startswith(("roi_head.", "rpn_head.")) for name in state):
        return Imported(from_mmdet(state))
    folded = "conv1.bias" in state and "bn1.weight" not in state
    return from_folded_resnet(state) if folded else from_torchvision_resnet(state)


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
