"""Training step and inference of a whole model, ready to compile, and how models compare.

Weights are random.  The heads of a second stage get proposals around twenty objects, as those of a trained RPN would
be, so that the samplers find their positives and boxes have the sizes of objects; the RPN runs too.  A model of one
stage takes no proposals: it trains on the twenty objects, and in inference finds what is in noise, which is nothing, at
the same cost but for a few overlaps.
"""

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.inputs import make_batch, make_targets
from benchmarks.measure import Compiled, compiled, milliseconds
from jaxdet.config import load_config
from jaxdet.experiment import Optimizer
from jaxdet.runtime.compiling import compiler_options
from jaxdet.runtime.mesh import data_mesh
from jaxdet.structures import Batch, Proposals
from jaxdet.training.optimizer import learning_rate, update_direction
from jaxdet.training.state import init_state
from jaxdet.training.step import make_train_step


class Inputs(NamedTuple):
    """Images of noise with twenty objects each, and proposals around these."""

    batch: Batch
    proposals: Proposals


def make_inputs(hw: tuple[int, int], number: int) -> Inputs:
    """``number`` images of size ``hw``."""
    targets, proposals = make_targets(number, hw)
    batch = replace(make_batch(*hw, number), targets=targets)
    return Inputs(jax.tree.map(jnp.asarray, batch), proposals)


def options(doc: str | None, *, batch: int = 1, dtype: str = "float32", repeats: int = 3) -> argparse.ArgumentParser:
    """A parser with what all scripts that run whole models ask for; these are its defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def make_model(name: str, dtype: str) -> Any:
    """The model of a config by its name (`load_config`), computing in ``dtype``."""
    return load_config(name).model.clone(dtype=dtype)


def setting(args: argparse.Namespace) -> str:
    """These options, for the heading of a table."""
    return f"{args.batch} x {args.image[0]} x {args.image[1]}, {args.dtype}"


def takes_proposals(net: Any) -> bool:
    """Whether the model has a second stage, which can begin with given proposals."""
    return "proposals" in inspect.signature(net.predict).parameters


@dataclass(frozen=True)
class OnGiven:
    """A detector that trains on given proposals, if it can; its losses are all that a training step asks for."""

    net: Any
    proposals: Proposals

    def apply(self, variables: Any, batch: Batch, key: jax.Array, method: str, **options: Any) -> Any:
        given = (self.proposals,) if takes_proposals(self.net) else ()
        return self.net.apply(variables, batch, key, *given, method=method, **options)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        frozen: bool = self.net.is_frozen(path)
        return frozen


def _detect(net: Any, batch: Batch, proposals: Proposals) -> Any:
    if not takes_proposals(net):
        return net.predict(batch)
    features = net.features(batch)
    made = net.rpn.proposals(net.rpn(features, batch.true_hw), batch.true_hw, net.rpn.test)
    # Adding nothing of them keeps the compiler from leaving the RPN out.
    nothing = 0.0 * jnp.nan_to_num(made.boxes).sum()
    return net.detect(features, replace(proposals, boxes=proposals.boxes + nothing), batch.true_hw)


def make_weights(net: Any) -> Any:
    """Variables with fresh, random parameters."""
    return jax.jit(partial(net.init, method="predict"))(jax.random.key(0), make_batch(64, 64))


def inference(net: Any, weights: Any, inputs: Inputs, **options: Any) -> tuple[Compiled, Callable[[], Any]]:
    """The compiled program, and a call of it."""

    def detect(weights: Any, batch: Batch, proposals: Proposals) -> Any:
        return net.apply(weights, batch, proposals, method=_detect)

    program = compiled(detect, weights, *inputs, options=compiler_options(), **options)
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


def relative_times(
    models: Mapping[str, Any], base: Any, hw: tuple[int, int], repeats: int
) -> Iterator[tuple[str, float]]:
    """Name of each model, and how long it takes for one image of size ``hw``, divided by the time of ``base``.

    Each takes turns with ``base`` alone, and times are medians of ``repeats`` turns.
    """
    inputs = make_inputs(hw, 1)
    first = inference(base, make_weights(base), inputs)[1]
    for name, model in models.items():
        base_ms, ms = milliseconds(first, inference(model, make_weights(model), inputs)[1], repeats=repeats)
        yield name, round(ms / base_ms, 3)
