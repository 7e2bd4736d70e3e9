"""Decays, accumulation and the average of the weights against their formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.experiment import Optimizer, Schedule
from jaxdet.runtime.mesh import data_mesh
from jaxdet.training.optimizer import learning_rate, update_direction
from jaxdet.training.state import init_state
from jaxdet.training.step import make_train_step
from tests.training.stub import KEY, OPTIMIZER, STUB, batch_of


def rates(schedule: Schedule, steps: int, **settings: Any) -> np.ndarray:
    optimizer = Optimizer(lr=0.4, base_batch=4, schedule=schedule, **settings)
    rate = learning_rate(optimizer, 4, 5)
    found = [rate(jnp.int32(step)) for step in range(steps)]
    assert {value.dtype for value in found} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found, jax.jit(jax.vmap(rate))(jnp.arange(steps)), rtol=3e-7)
    return np.array(found)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_rate_falls_from_the_warm_up_to_the_end(decay: Any) -> None:
    # 4 epochs of 5 steps: 4 of warm-up, 16 in which it falls to a tenth.  The drops of the default count for nothing.
    schedule = Schedule(length=4, decay=decay, warmup_share=0.2, warmup_ratio=0.5, final_ratio=0.1)
    found = rates(schedule, 22)
    np.testing.assert_allclose(found[:5], [0.2, 0.25, 0.3, 0.35, 0.4], rtol=1e-6)
    share = np.minimum((np.arange(4, 22) - 4) / 16, 1)
    height = (1 + np.cos(np.pi * share)) / 2 if decay == "cosine" else 1 - share
    np.testing.assert_allclose(found[4:], 0.4 * (0.1 + 0.9 * height), rtol=1e-5)
    assert schedule.notes(5) == []


def test_a_share_is_taken_as_it_is_and_an_old_schedule_is_what_it_was() -> None:
    assert Schedule(length=100, unit="steps", drops=(), warmup_share=0.25).warmup(7) == 25
    assert Schedule(length=100, unit="steps", drops=(), warmup_share=0.0).warmup(7) == 0
    assert Schedule(length=100, unit="steps", decay="linear").warmup(7) == 33
    old = Schedule(length=10, unit="steps", drops=(4, 8), warmup_steps=2, warmup_ratio=0.5)
    np.testing.assert_allclose(rates(old, 10), [0.2, 0.3, *[0.4] * 2, *[0.04] * 4, *[0.004] * 2], rtol=1e-6)


def test_a_decay_follows_the_place_and_not_the_step() -> None:
    schedule = Schedule(length=20, unit="steps", decay="linear", warmup_steps=0)
    optimizer = Optimizer(lr=0.4, base_batch=None, schedule=schedule)
    moved, plain = learning_rate(optimizer, 4, 5, shift=6), learning_rate(optimizer, 4, 5)
    assert moved(jnp.int32(3)) == plain(jnp.int32(9))


@pytest.mark.parametrize("rule", ["sgd", "adamw", "muon"])
def test_three_batches_are_one_of_their_mean(rule: Any) -> None:
    draw = np.random.default_rng(0)
    params = {"head": draw.normal(size=(4, 3)).astype(np.float32), "stem": np.ones(2, np.float32)}
    gradients = [jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), params) for _ in range(6)]
    one = Optimizer(rule=rule, clip_norm=1.0, weight_decay=0.1)
    three = Optimizer(rule=rule, clip_norm=1.0, weight_decay=0.1, accumulate=3)
    frozen = lambda path: path[0] == "stem"  # noqa: E731
    small, large = update_direction(three, frozen), update_direction(one, frozen)
    small_state, large_state = small.init(params), large.init(params)
    for step in range(6):
        updates, small_state = small.update(gradients[step], small_state, params)
        if step % 3 < 2:
            assert all(not leaf.any() for leaf in jax.tree.leaves(updates))
            continue
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *gradients[step - 2 : step + 1])
        expected, large_state = large.update(jax.tree.map(np.float32, mean), large_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), updates, expected)
    assert three.scaled_lr(8) == 3 * one.scaled_lr(8)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_follows_its_formula_and_a_bad_step_leaves_it(decay: float) -> None:
    direction = update_direction(OPTIMIZER, STUB.is_frozen)
    rate = learning_rate(OPTIMIZER, 8, 10)
    mesh = data_mesh()
    step = make_train_step(STUB, direction, rate, mesh, skip_nonfinite=True, ema=decay)
    variables = STUB.init(jax.random.key(0), batch_of(0), method="predict")
    state = init_state(variables, direction, averaged=True)
    average = np.float64(variables["params"]["head"]["kernel"])
    for t in range(4):
        state, _ = step(state, batch_of(t), KEY)
        forget = min(decay, (1 + t) / (10 + t))
        average = forget * average + (1 - forget) * np.float64(state.params["head"]["kernel"])
        np.testing.assert_allclose(state.average["head"]["kernel"], average, rtol=1e-5)
    assert not np.allclose(average, state.params["head"]["kernel"], rtol=1e-4)
    np.testing.assert_array_equal(state.result["params"]["head"]["kernel"], state.average["head"]["kernel"])
    before = np.array(state.average["head"]["kernel"])
    broken = batch_of(5).replace(image=np.full((8, 16, 16, 3), np.nan, np.float32))
    state, _ = step(state, broken, KEY)
    np.testing.assert_array_equal(state.average["head"]["kernel"], before)
