"""The inner loop: the device always has its next step, the host looks at the step before."""

import time
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from jaxdet.mesh import split_batch
from jaxdet.structures import Batch
from jaxdet.train_lib.meter import Meter
from jaxdet.train_lib.step import Metrics, TrainState, TrainStep, check_finite


class Pending:
    """Metrics of a step that the device may still be working on; reading them a step later costs it no time."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pending: tuple[int, Metrics] | None = None

    def push(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of ``step``, and settle those of the step before."""
        self.settle()
        self._pending = step, metrics

    def settle(self) -> None:
        """Wait for the step, check that its losses are finite, count it.

        Raises:
            FloatingPointError: as `check_finite`.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        check_finite(values, step)
        self._meter.add(values)


AfterStep = Callable[[int, TrainState, Pending], None]
"""Called after each step is on its way; it settles before it saves or shows anything."""


def run_steps(
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[Batch],
    total: int,
    *,
    mesh: Mesh,
    key: jax.Array,
    meter: Meter,
    after: AfterStep,
) -> TrainState:
    """The state after ``total`` steps.

    While the device works on a step, the next batch is fetched and its transfer begun.  ``after`` may raise to stop.
    """

    def fetch() -> Batch:
        begin = time.perf_counter()
        batch = next(batches)
        meter.wait(time.perf_counter() - begin)
        return split_batch(batch, mesh)

    step = int(state.step)
    if step >= total:
        return state
    pending = Pending(meter)
    batch = fetch()
    while step < total:
        state, metrics = train_step(state, batch, key)
        step += 1
        if step < total:
            batch = fetch()
        pending.push(step, metrics)
        after(step, state, pending)
    pending.settle()
    return state
