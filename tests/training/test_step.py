"""The compiled step on a model small enough to work out by hand."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.experiment import Run
from jaxdet.runtime.mesh import check_batch_size, data_mesh, split_batch
from jaxdet.training.loop import PendingMetrics
from jaxdet.training.metrics import Meter
from jaxdet.training.optimizer import update_direction
from jaxdet.training.state import TrainState, start_state, to_save
from tests.devices import run_on_devices
from tests.training.stub import KEY, OPTIMIZER, BatchesFrom, Stub, batch_of, fresh, run_to


def trained(steps: int, devices: list[jax.Device] | None = None) -> TrainState:
    return run_to(steps, fresh(devices))


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


def test_a_batch_that_is_not_full_makes_a_smaller_step() -> None:
    """Two of eight slots are filled: a quarter of the step that these losses would make, the weight decay apart."""
    moved = []
    for number in (8, 2):
        step, state, mesh = fresh()
        before = jax.tree.map(np.array, state.params["head"])
        batch = batch_of(0).replace(valid=np.arange(8) < number)
        state, metrics = step(state, split_batch(batch, mesh), KEY)
        decay = jax.tree.map(lambda p, m=metrics: float(m["lr"]) * 1e-4 * p, before)
        moved.append(jax.tree.map(lambda a, b, d: np.asarray(a) - b + d, state.params["head"], before, decay))
        np.testing.assert_allclose(metrics["loss"], metrics["loss/fit"] + metrics["loss/noisy"], rtol=1e-6)
    jax.tree.map(lambda full, part: np.testing.assert_allclose(part, full / 4, atol=1e-7), *moved)


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
    state = run_to(3, (step, state, mesh))
    with CheckpointStore(tmp_path) as store:
        store.save(3, to_save(state), {})
    with CheckpointStore(tmp_path) as store:
        resumed = start_state(model, direction, Run(seed=99), store, mesh)
    assert_same_bits(resumed, state)
    step, _, _ = fresh()
    resumed = run_to(6, (step, resumed, mesh), BatchesFrom(3))
    assert_same_bits(resumed, trained(6))


def test_after_is_called_after_every_step() -> None:
    seen: list[tuple[int, int]] = []

    def after(number: int, state: TrainState, pending: PendingMetrics) -> None:
        pending.settle()
        seen.append((number, int(state.step)))

    run_to(3, fresh(), after=after)
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_a_finished_run_takes_no_batch() -> None:
    step, state, mesh = fresh()
    state = state.replace(step=state.step + 3)
    assert run_to(3, (step, state, mesh)) is state


def test_a_batch_must_divide_over_the_devices() -> None:
    class Eight:
        size = 8

    check_batch_size(16, Eight())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"multiple of the 8 devices, got 12; set data.batch_size=8"):
        check_batch_size(12, Eight())  # type: ignore[arg-type]


def test_eight_devices_train_as_one() -> None:
    # Kernels of 3 x 4 and 4 x 3 and a bias of 4 are split over four devices; a bias of 3 is on each.
    assert run_on_devices(__file__) == ["8", "equal", str(4 * (12 + 4 + 12 + 3)), str(4 * (3 + 1 + 3 + 3)), "48"]


def compare_devices() -> None:
    devices = jax.devices()
    meter = Meter(8)
    many, one = run_to(6, fresh(), meter=meter), trained(6, devices[:1])
    split = split_batch(batch_of(0), data_mesh()).image.sharding
    print(len(split.device_set))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many))
    sharded = run_to(6, fresh(devices[:4], split=True))  # four: the sides of the stub's kernels are 3 and 4
    with tempfile.TemporaryDirectory() as folder:
        resumed = resumed_in_parts(devices, Path(folder))
    for state in (many, sharded, resumed):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    print("equal")
    print(*(bytes_on_first(state.params) for state in (one, sharded)))
    print(meter.take(0)["dropped"])  # one of each image, whichever device has it


def resumed_in_parts(devices: list[jax.Device], folder: Path) -> TrainState:
    """Two steps on eight devices, two on four that share the state, two on one: from checkpoint to checkpoint."""
    direction, state = update_direction(OPTIMIZER, Stub().is_frozen), trained(2)
    for start, number, split in ((2, 4, True), (4, 1, False)):
        with CheckpointStore(folder) as store:
            store.save(start, to_save(state), {})
        step, _, mesh = fresh(devices[:number], split=split)
        with CheckpointStore(folder) as store:
            state = start_state(Stub(), direction, Run(shard_parameters=split), store, mesh)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)) != split
        state = run_to(start + 2, (step, state, mesh), BatchesFrom(start))
    return state


def bytes_on_first(tree: Any) -> int:
    """What the first device holds of a tree."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    compare_devices()
