"""Training step and inference of a whole model, ready to compile.

Weights are random.  The heads get proposals around twenty objects, as those of a trained RPN would be, so that the
samplers find their positives and boxes have the sizes of objects.  The RPN runs too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.loop import make_targets
from benchmarks.relative_time import make_batch
from benchmarks.timing import Compiled, compiled
from jaxdet.experiment import Optimizer
from jaxdet.mesh import data_mesh
from jaxdet.structures import Batch, Proposals
from jaxdet.train_lib.optimizer import learning_rate, update_direction
from jaxdet.train_lib.step import init_state, make_train_step


class Inputs(NamedTuple):
    """Images of noise with twenty objects each, and proposals around these."""

    batch: Batch
    proposals: Proposals


def make_inputs(hw: tuple[int, int], number: int) -> Inputs:
    """``number`` images of size ``hw``."""
    targets, proposals = make_targets(number, hw)
    return Inputs(jax.tree.map(jnp.asarray, make_batch(*hw, number).replace(targets=targets)), proposals)


@dataclass(frozen=True)
class OnGiven:
    """A detector whose heads train on given proposals; its losses are all that a training step asks for."""

    net: Any
    proposals: Proposals

    def apply(self, variables: Any, batch: Batch, key: jax.Array, method: str, **options: Any) -> Any:
        assert method == "losses"
        return self.net.apply(variables, batch, self.proposals, key, method=_losses, **options)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        frozen: bool = self.net.is_frozen(path)
        return frozen


def _losses(net: Any, batch: Batch, proposals: Proposals, key: jax.Array) -> Any:
    features = net.features(batch)
    terms, _ = net.rpn.losses(features, batch.true_hw, batch.targets, key)
    more, metrics = net.head_losses(features, proposals, batch.targets, batch.true_hw, key)
    return terms | more, metrics


def _detect(net: Any, batch: Batch, proposals: Proposals) -> Any:
    features = net.features(batch)
    made = net.rpn.proposals(features, batch.true_hw)
    # Adding nothing of them keeps the compiler from leaving the RPN out.
    nothing = 0.0 * jnp.nan_to_num(made.boxes).sum()
    return net.detect(features, proposals.replace(boxes=proposals.boxes + nothing), batch.true_hw)


def make_weights(net: Any) -> Any:
    """Fresh ones."""
    return jax.jit(partial(net.init, method="predict"))(jax.random.key(0), make_batch(64, 64))


def inference(net: Any, weights: Any, inputs: Inputs, **options: Any) -> tuple[Compiled, Callable[[], Any]]:
    """The compiled program, and a call of it."""

    def detect(weights: Any, batch: Batch, proposals: Proposals) -> Any:
        return net.apply(weights, batch, proposals, method=_detect)

    program = compiled(detect, weights, *inputs, **options)
    return program, partial(program.call, weights, *inputs)


def training(net: Any, weights: Any, inputs: Inputs, **options: Any) -> tuple[Compiled, Callable[[], Any]]:
    """The compiled step with SGD, and a call of it, which goes on from the state of the call before."""
    detector, mesh = OnGiven(net, inputs.proposals), data_mesh(jax.devices()[:1])
    direction = update_direction(Optimizer(), detector.is_frozen)
    step: Any = make_train_step(detector, direction, learning_rate(Optimizer(), 1, 1), mesh)  # type: ignore[arg-type]
    state, key = init_state(jax.tree.map(jnp.copy, weights), direction), jax.random.key(0)
    program = compiled(step, state, inputs.batch, key, donate=(0,), **options)

    def advance() -> Any:
        nonlocal state
        state, metrics = program.call(state, inputs.batch, key)
        return metrics

    return program, advance
