"""The compiled step on a model small enough to work out by hand."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.experiment import Optimizer, Run, Schedule
from jaxdet.mesh import check_batch_size, data_mesh, replicate, split_batch
from jaxdet.structures import Batch
from jaxdet.train_lib.loop import Pending, run_steps
from jaxdet.train_lib.meter import Meter
from jaxdet.train_lib.optimizer import learning_rate, update_direction
from jaxdet.train_lib.start import start_state, to_save
from jaxdet.train_lib.step import TrainState, check_finite, init_state, make_train_step
from tests.devices import run_on_devices

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


def batch_of(step: int, size: int = 8) -> Batch:
    draw = np.random.default_rng(step)
    two = np.full((size, 2), 16, np.float32)
    image = draw.integers(0, 256, (size, 16, 16, 3), np.uint8)
    return Batch(image, two, two / 16, two.astype(np.int32), np.arange(size, dtype=np.int32), np.ones(size, bool))


def batches_from(step: int) -> Any:
    while True:
        yield batch_of(step)
        step += 1


def fresh(devices: list[jax.Device] | None = None) -> tuple[Any, TrainState, Any]:
    """Train step, state and mesh of the stub."""
    model, mesh = Stub(), data_mesh(devices)
    direction = update_direction(OPTIMIZER, model.is_frozen)
    variables = model.init(jax.random.key(0), batch_of(0), method="predict")
    state = replicate(init_state(variables, direction), mesh)
    return make_train_step(model, direction, learning_rate(OPTIMIZER, 8, 10), mesh), state, mesh


def nothing(step: int, state: TrainState, pending: Pending) -> None:
    pass


def trained(steps: int, devices: list[jax.Device] | None = None) -> TrainState:
    step, state, mesh = fresh(devices)
    return run_steps(step, state, batches_from(0), steps, mesh=mesh, key=KEY, meter=Meter(8), after=nothing)


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_one_step_is_the_gradient_step_written_out() -> None:
    step, state, mesh = fresh()
    before = jax.tree.map(np.array, state.variables)
    gradient = jax.grad(
        lambda params: sum(
            Stub()
            .apply(before | {"params": params}, batch_of(0), jax.random.fold_in(KEY, 0), method="losses")[0]
            .values()
        )
    )(before["params"])
    state, metrics = step(state, split_batch(batch_of(0), mesh), KEY)
    lr = 0.1 * 0.001  # first step of the warm-up
    for name, value in before["params"]["head"].items():
        expected = value - lr * (gradient["head"][name] + 1e-4 * value)
        np.testing.assert_allclose(state.params["head"][name], expected, rtol=1e-6)
    assert_same_bits(state.params["stem"], before["params"]["stem"])
    assert_same_bits(state.batch_stats, before["batch_stats"])
    assert int(state.step) == 1
    norm = np.sqrt(sum(np.square(g).sum() for g in gradient["head"].values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["lr"], lr, rtol=1e-5)
    assert {"loss", "loss/fit", "loss/noisy", "largest"} < set(metrics)
    np.testing.assert_allclose(metrics["loss"], metrics["loss/fit"] + metrics["loss/noisy"], rtol=1e-6)


def test_draws_change_with_the_step_and_repeat_with_the_seed() -> None:
    step, state, mesh = fresh()
    noise = []
    for _ in range(2):
        state, metrics = step(state, split_batch(batch_of(0), mesh), KEY)
        noise.append(float(metrics["loss/noisy"]))
    assert noise[0] != pytest.approx(noise[1], rel=1e-2)
    assert_same_bits(trained(3), trained(3))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    model = Stub()
    direction = update_direction(OPTIMIZER, model.is_frozen)
    step, state, mesh = fresh()
    state = run_steps(step, state, batches_from(0), 3, mesh=mesh, key=KEY, meter=Meter(8), after=nothing)
    with CheckpointStore(tmp_path) as store:
        store.save(3, to_save(state), {})
    with CheckpointStore(tmp_path) as store:
        resumed = start_state(model, direction, Run(seed=99), store, mesh)
    assert_same_bits(resumed, state)
    step, _, _ = fresh()
    resumed = run_steps(step, resumed, batches_from(3), 6, mesh=mesh, key=KEY, meter=Meter(8), after=nothing)
    assert_same_bits(resumed, trained(6))


def test_after_is_called_after_every_step_and_a_nan_stops_the_run() -> None:
    step, state, mesh = fresh()
    seen = []

    def after(number: int, state: TrainState, pending: Pending) -> None:
        pending.settle()
        seen.append((number, int(state.step)))

    run_steps(step, state, batches_from(0), 3, mesh=mesh, key=KEY, meter=Meter(8), after=after)
    assert seen == [(1, 1), (2, 2), (3, 3)]

    step, state, mesh = fresh()
    broken = state.replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
    with pytest.raises(FloatingPointError, match="step 1: grad_norm = nan, loss/fit = nan, loss/noisy = nan"):
        run_steps(step, broken, batches_from(0), 3, mesh=mesh, key=KEY, meter=Meter(8), after=nothing)


def test_a_finished_run_takes_no_batch() -> None:
    step, state, mesh = fresh()
    state = state.replace(step=state.step + 3)
    assert run_steps(step, state, iter(()), 3, mesh=mesh, key=KEY, meter=Meter(8), after=nothing) is state


def test_check_finite_names_only_what_is_wrong() -> None:
    check_finite({"loss/a": 1.0, "grad_norm": 2.0, "other": float("nan")}, 5)
    with pytest.raises(FloatingPointError, match=r"step 5: loss/b = inf\. "):
        check_finite({"loss/a": 1.0, "loss/b": float("inf"), "grad_norm": 2.0}, 5)


def test_a_batch_must_divide_over_the_devices() -> None:
    class Eight:
        size = 8

    check_batch_size(16, Eight())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"multiple of the 8 devices, got 12; set data.batch_size=8"):
        check_batch_size(12, Eight())  # type: ignore[arg-type]


def test_eight_devices_train_as_one() -> None:
    assert run_on_devices(__file__) == ["8", "equal"]


def compare_devices() -> None:
    devices = jax.devices()
    many, one = trained(6), trained(6, devices[:1])
    split = split_batch(batch_of(0), data_mesh()).image.sharding
    print(len(split.device_set))
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many))
    print("equal")


if __name__ == "__main__":
    compare_devices()
