"""The inner loop: the device always has its next step, the host looks at the step before."""

import time
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.sharding import Mesh

from jaxdet.runtime.mesh import split_batch
from jaxdet.structures import Batch
from jaxdet.training.meter import Meter
from jaxdet.training.step import COUNT, Metrics, TrainState, TrainStep

Check = Callable[[int, Mapping[str, float], Batch], bool]
"""``(step, metrics, batch)`` -> whether the step counts; raises where it must not go on (`nonfinite.FiniteCheck`)."""


class Pending:
    """Metrics of a step that the device may still be working on; reading them a step later costs it no time."""

    def __init__(self, meter: Meter, check: Check) -> None:
        self._meter = meter
        self._check = check
        self._pending: tuple[int, Metrics, Batch] | None = None

    def push(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Take the metrics of ``step`` and its batch on the host, and settle those of the step before."""
        self.settle()
        self._pending = step, metrics, batch

    def settle(self) -> None:
        """Wait for the step, check that its losses are finite, count it.  Raises what the check raises."""
        if self._pending is None:
            return
        step, metrics, batch = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        counts = {name.removeprefix(COUNT): int(values.pop(name)) for name in metrics if name.startswith(COUNT)}
        good = self._check(step, values, batch)
        if good:
            self._meter.add(values)
        self._meter.count({**counts, "skipped_steps": int(not good)})


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
    check: Check,
    after: AfterStep,
) -> TrainState:
    """The state after ``total`` steps.

    While the device works on a step, the next batch is fetched and its transfer begun.  ``after`` may raise to stop.
    """

    def fetch() -> tuple[Batch, Batch]:
        begin = time.perf_counter()
        batch = next(batches)
        meter.wait(time.perf_counter() - begin)
        return batch, split_batch(batch, mesh)

    step = int(state.step)
    if step >= total:
        return state
    pending = Pending(meter, check)
    host, batch = fetch()
    while step < total:
        state, metrics = train_step(state, batch, key)
        step += 1
        given = host
        if step < total:
            host, batch = fetch()
        pending.push(step, metrics, given)
        after(step, state, pending)
    pending.settle()
    return state
