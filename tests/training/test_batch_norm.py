"""Batch normalisation that is not frozen, in training: against NumPy, and on eight devices against one."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.experiment import Optimizer, Run
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.blocks.layers import BatchNorm
from jaxdet.runtime.mesh import split_batch
from jaxdet.structures import Batch
from jaxdet.training.optimizer import check_patterns, frozen_parameters, update_direction
from jaxdet.training.state import TrainState
from jaxdet.training.step import make_train_step
from tests.devices import run_on_devices
from tests.training.stub import KEY, BatchesFrom, batch_of, fresh, run_to

STEPS = 3


class Normed(nn.Module):
    """Mean distance of normalised colours from 0, through a linear map."""

    def setup(self) -> None:
        self.norm = BatchNorm(frozen=False)
        self.head = nn.Dense(2)

    def predict(self, batch: Batch) -> jax.Array:
        return self.head(jnp.abs(self.norm(jnp.asarray(batch.image, jnp.float32))).mean((1, 2)))

    def losses(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        return {"loss_fit": jnp.square(self.predict(batch) - 1).mean()}, {}

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        return False


def trained(devices: list[jax.Device] | None = None) -> TrainState:
    return run_to(STEPS, fresh(devices, model=Normed()))


def running_averages() -> tuple[np.ndarray, np.ndarray]:
    """Of the batches of the run, in float64: biased variance to normalise, unbiased to remember, 0.1 of it each."""
    mean, var = np.zeros(3), np.ones(3)
    for step in range(STEPS):
        pixels = batch_of(step).image.reshape(-1, 3).astype(np.float64)
        mean = 0.9 * mean + 0.1 * pixels.mean(0)
        var = 0.9 * var + 0.1 * pixels.var(0, ddof=1)
    return mean, var


def test_running_averages_follow_the_batches() -> None:
    stats = trained().batch_stats["norm"]
    mean, var = running_averages()
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_training_some_parameters_alone_moves_nothing_else() -> None:
    """Neither the other parameters nor the averages: what `run.train_only` asks of the step."""
    model = Normed()
    _, state, mesh = fresh(model=model)
    frozen = frozen_parameters(model, ["^params/head/bias$"])
    direction = update_direction(Optimizer(lr=0.1), frozen)
    state = dataclasses.replace(state, opt_state=direction.init(state.params))
    before = jax.tree.map(np.array, state.variables)
    step = make_train_step(model, direction, lambda step: jnp.float32(0.1), mesh, is_frozen=frozen, statistics=False)
    after, metrics = step(state, split_batch(batch_of(0), mesh), KEY)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.tree.map(np.array, after.variables))
    assert changed["params"] == {
        "head": {"bias": True, "kernel": False},
        "norm": {"bias": False, "scale": False},
    }
    assert not any(jax.tree.leaves(changed["batch_stats"]))
    moved = before["params"]["head"]["bias"] - np.array(after.params["head"]["bias"])
    # The first step of SGD is the rate times the gradient, which alone is in the norm; the decay of a zero is 0.
    np.testing.assert_allclose(np.linalg.norm(moved), 0.1 * metrics["grad_norm"], rtol=1e-4)


def test_patterns_that_train_nothing_are_refused() -> None:
    model, (_, state, _) = Normed(), fresh(model=Normed())
    check_patterns(model, state.params, ["norm", "^params/head/"])
    with pytest.raises(ValueError, match=r"run\.train_only: '\^head' matches none of the 4 parameters"):
        check_patterns(model, state.params, ["norm", "^head"])
    with pytest.raises(ValueError, match=r"Run\.train_only: '\(' is no regular expression"):
        Run(train_only=("(",))


def expected_outputs(variables: Any, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    images = batch_of(0).image.astype(np.float64)
    params = jax.tree.map(np.float64, variables["params"])
    normed = (images - mean) / np.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return np.abs(normed).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def test_training_takes_the_statistics_of_the_batch_and_prediction_those_of_the_run() -> None:
    step, state, mesh = fresh(model=Normed())
    before = jax.tree.map(np.array, state.variables)
    _, metrics = step(state, split_batch(batch_of(0), mesh), KEY)
    pixels = batch_of(0).image.reshape(-1, 3).astype(np.float64)
    outputs = expected_outputs(before, pixels.mean(0), pixels.var(0))
    np.testing.assert_allclose(metrics["loss/fit"], np.square(outputs - 1).mean(), rtol=1e-5)

    state = run_to(STEPS, fresh(model=Normed()), BatchesFrom(0))
    found = Normed().apply(state.variables, batch_of(0), method="predict")
    np.testing.assert_allclose(found, expected_outputs(state.variables, *running_averages()), rtol=1e-4)


def test_statistics_of_frozen_stages_stay() -> None:
    model, images = ResNet(depth=18, width=4, norm="sync_batch"), jax.random.normal(KEY, (2, 64, 64, 3))
    variables = jax.jit(model.init)(KEY, images)
    frozen = ResNet(depth=18, width=4)
    assert jax.tree.structure(jax.eval_shape(frozen.init, KEY, images)) == jax.tree.structure(variables)
    _, changed = jax.jit(lambda v, x: model.apply(v, x, mutable=["batch_stats"]))(variables, images)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), changed["batch_stats"], variables["batch_stats"])
    for path, flag in jax.tree_util.tree_leaves_with_path(moved):
        name = path[0].key
        assert flag == (name[:6] in ("layer2", "layer3", "layer4")), jax.tree_util.keystr(path)


def test_eight_devices_take_the_statistics_of_all() -> None:
    assert run_on_devices(__file__) == ["equal"]


def compare_devices() -> None:
    many, one = trained(), trained(jax.devices()[:1])
    assert len(many.step.sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    print("equal")


if __name__ == "__main__":
    compare_devices()
