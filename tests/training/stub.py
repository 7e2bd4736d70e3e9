"""A model small enough to work out by hand, its batches, and the loop over them."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.experiment import Optimizer, Schedule
from jaxdet.runtime.mesh import data_mesh, layout_of
from jaxdet.structures import Batch
from jaxdet.training.loop import AfterStep, PendingMetrics, StepCheck, run_steps
from jaxdet.training.metrics import Meter, not_finite
from jaxdet.training.optimizer import learning_rate, update_direction
from jaxdet.training.state import TrainState, init_state
from jaxdet.training.step import make_train_step

OPTIMIZER = Optimizer(lr=0.1, base_batch=8, schedule=Schedule(length=6, drops=(4,), unit="steps", warmup_steps=2))
KEY = jax.random.key(3)


class Stub(nn.Module):
    """Mean colour through two linear maps; one loss has noise from the key, of each image's own."""

    def setup(self) -> None:
        self.stem = nn.Dense(4)
        self.head = nn.Dense(3)
        self.mean = self.variable("batch_stats", "mean", lambda: 0.5 * jnp.ones(4))

    def predict(self, batch: Batch) -> jax.Array:
        colours = jnp.asarray(batch.image, jnp.float32).mean((1, 2)) / 255
        return self.head(nn.tanh(self.stem(colours) - self.mean.value))

    def losses(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        out = self.predict(batch)
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(jax.random.split(key, out.shape[0]))
        terms = {"loss_fit": jnp.square(out - 1).mean(), "noisy": (out * noise).sum() / out.shape[0]}
        return terms, {"largest": jnp.abs(out).max()}

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        return path[0] == "stem"


STUB = Stub()


def batch_of(step: int, size: int = 8) -> Batch:
    draw = np.random.default_rng(step)
    two = np.full((size, 2), 16, np.float32)
    image = draw.integers(0, 256, (size, 16, 16, 3), np.uint8)
    index, valid, counts = np.arange(size, dtype=np.int32), np.ones(size, bool), {"dropped": np.ones(size, np.int32)}
    return Batch(image, two, two / 16, two.astype(np.int32), index, valid, counts=counts)


class BatchesFrom(Iterator[Batch]):
    """The batches of a step and all later ones; ``broken`` ones have no finite loss."""

    def __init__(self, step: int, broken: tuple[int, ...] = ()) -> None:
        self.step = step
        self.broken = broken

    def __next__(self) -> Batch:
        batch = batch_of(self.step)
        if self.step in self.broken:
            batch = batch.replace(image=np.full(batch.image.shape, np.nan, np.float32))
        self.step += 1
        return batch


def fresh(
    devices: list[jax.Device] | None = None,
    *,
    skip_nonfinite: bool = False,
    split: bool = False,
    model: nn.Module = STUB,
) -> tuple[Any, TrainState, Any]:
    """Train step, state and mesh of a model."""
    mesh = data_mesh(devices)
    direction = update_direction(OPTIMIZER, model.is_frozen)
    variables = model.init(jax.random.key(0), batch_of(0), method="predict")
    state = init_state(variables, direction)
    layout = layout_of(state, mesh, split=split)
    rate = learning_rate(OPTIMIZER, 8, 10)
    step = make_train_step(model, direction, rate, mesh, skip_nonfinite=skip_nonfinite, layout=layout)
    return step, jax.device_put(state, layout), mesh


def finite(step: int, metrics: Mapping[str, float], batch: Batch) -> bool:
    return not not_finite(metrics)


def nothing(step: int, state: TrainState, pending: PendingMetrics) -> None:
    pass


def run_to(
    total: int,
    started: tuple[Any, TrainState, Any],
    batches: BatchesFrom | None = None,
    *,
    check: StepCheck = finite,
    after: AfterStep = nothing,
    meter: Meter | None = None,
) -> TrainState:
    """`run_steps` of what `fresh` gives, by default from batch 0 on."""
    step, state, mesh = started
    feed, meter = batches or BatchesFrom(0), meter or Meter(8)
    return run_steps(step, state, feed, total, mesh=mesh, key=KEY, meter=meter, check=check, after=after)
