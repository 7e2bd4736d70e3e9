"""Training one system from several seeds with programs that are compiled once, on data that lies on the device."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments.resident_data import rows_of, take
from jaxdet.data import Source, eval_batches
from jaxdet.evaluation.inference import detect, predict_batch
from jaxdet.evaluation.results import Result
from jaxdet.experiment import Experiment
from jaxdet.runtime.mesh import data_mesh, replicate, split_batch
from jaxdet.structures import Batch
from jaxdet.training.metrics import not_finite
from jaxdet.training.optimizer import learning_rate, update_direction
from jaxdet.training.state import TrainState, init_state, init_variables
from jaxdet.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run leaves."""

    variables: Any
    metrics: list[dict[str, float]]  #: means over the steps of each chunk
    seconds: list[float]  #: of each chunk


@dataclasses.dataclass(frozen=True)
class System:
    """A system whose programs are compiled."""

    experiment: Experiment
    chunk: int  #: steps that run without the host
    eval_batch: int  #: images
    parameters: int  #: number of trained values
    start: Callable[[jax.Array], TrainState]
    advance: Callable[..., tuple[TrainState, Any]]

    @property
    def stages(self) -> int:
        """Of boxes, in training."""
        model: Any = self.experiment.model
        return len(model.stages)

    @property
    def test_stages(self) -> int:
        """Of boxes, at test, if nothing else is asked for."""
        model: Any = self.experiment.model
        return len(model.test_heads or model.stages)

    def train(self, examples: Batch, seed: int, steps: int) -> Trained:
        """A run of ``steps`` steps, rounded up to chunks; initialisation, order and sampling follow the seed."""
        count, batch_size = len(examples.index), self.experiment.data.batch_size
        chunks = -(-steps // self.chunk)
        key = jax.random.key(seed)
        state, metrics, seconds = self.start(key), [], []
        for number in range(chunks):
            rows = rows_of(count, batch_size, seed, number * self.chunk, self.chunk)
            begin = time.perf_counter()
            state, means = self.advance(state, examples, rows, key, np.int32(chunks * self.chunk))
            metrics.append({name: float(value) for name, value in jax.device_get(means).items()})
            seconds.append(time.perf_counter() - begin)
            if bad := not_finite(metrics[-1]):
                raise FloatingPointError(f"step {(number + 1) * self.chunk}, seed {seed}: {', '.join(bad)} not finite")
        return Trained(jax.device_get(state.variables), metrics, seconds)

    def detect(self, variables: Any, val: Source, test_heads: tuple[int, ...] | None = None) -> list[Result]:
        """Detections in the validation images, by other stages than the model's own if ``test_heads`` are given."""
        model = with_test_heads(self.experiment.model, test_heads)
        data = self.experiment.data
        return detect(model, variables, val, data, data_mesh(jax.devices()[:1]), batch_size=self.eval_batch)

    def warm_up(self, val: Source, test_heads: tuple[int, ...] | None) -> None:
        """Compiles what `detect` runs."""
        mesh = data_mesh(jax.devices()[:1])
        with eval_batches(val, self.experiment.data, batch_size=self.eval_batch) as batches:
            batch = split_batch(next(batches), mesh)
        variables = replicate(self.start(jax.random.key(0)).variables, mesh)
        model = with_test_heads(self.experiment.model, test_heads)
        jax.block_until_ready(predict_batch(model, mesh, variables, batch))


def with_test_heads(model: Any, test_heads: tuple[int, ...] | None) -> Any:
    """The model with these heads at test; itself for None."""
    return model if test_heads is None else model.clone(test_heads=test_heads)


def compiled(experiment: Experiment, examples: Batch, chunk: int, eval_batch: int) -> System:
    """Compiles start and training of a system for ``examples`` of these shapes.

    The learning rate follows the schedule of the experiment, stretched to the length of the run, which is an argument
    of the compiled program like the seed.
    """
    model, optimizer = experiment.model, experiment.optimizer
    mesh = data_mesh(jax.devices()[:1])
    direction = update_direction(optimizer, model.is_frozen)
    base = learning_rate(optimizer, experiment.data.batch_size, steps_per_epoch=1)

    def start(key: jax.Array) -> TrainState:
        return init_state(init_variables(model, key), direction)

    def advance(state: TrainState, examples: Batch, rows: jax.Array, key: jax.Array, total: jax.Array) -> Any:
        train_step = make_train_step(
            model, direction, lambda step: base(step * optimizer.schedule.length // total), mesh
        )
        if chunk == 1:  # not even a loop of one: on a CPU, weight gradients are many times slower inside a loop
            return train_step(state, take(examples, rows[0]), key)
        state, metrics = jax.lax.scan(lambda s, r: train_step(s, take(examples, r), key), state, rows)
        return state, jax.tree.map(jnp.mean, metrics)

    started = jax.jit(start).lower(jax.random.key(0)).compile()
    state = jax.eval_shape(start, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((chunk, experiment.data.batch_size), np.int32)
    arguments = (state, examples, rows, jax.random.key(0), jax.ShapeDtypeStruct((), np.int32))
    advanced = jax.jit(advance, donate_argnums=0).lower(*arguments).compile()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return System(experiment, chunk, eval_batch, parameters, started, advanced)
