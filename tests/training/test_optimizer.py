"""SGD and the learning rate against their definition, written out in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.experiment import Optimizer, Schedule
from jaxdet.training.optimizer import descend, learning_rate, trained_norm, update_direction


def is_frozen(path: tuple[str, ...]) -> bool:
    return path[0] == "stem"


def torch_sgd(params: Any, gradients: list[Any], rates: list[float], momentum: float, decay: float, clip: float | None):
    """The loop of torch.optim.SGD (dampening 0, no Nesterov) after clip_grad_norm_, over the trained parameters."""
    params = {k: np.float64(v) for k, v in params.items()}
    velocity: dict[str, Any] = {}
    for gradient, lr in zip(gradients, rates, strict=True):
        norm = np.sqrt(sum((np.float64(gradient[k]) ** 2).sum() for k in params))
        scale = 1.0 if clip is None else min(clip / norm, 1.0)
        for name in params:
            d = np.float64(gradient[name]) * scale + decay * params[name]
            velocity[name] = d if name not in velocity else momentum * velocity[name] + d
            params[name] = params[name] - lr * velocity[name]
    return params


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_steps_equal_torch_sgd(clip: float | None) -> None:
    draw = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": ()}
    trained = {k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    stem = {"kernel": np.ones(3, np.float32)}
    gradients = [{k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(5)]
    rates = [0.1, 0.1, 0.01, 0.3, 0.05]  # changes at once: momentum holds gradients, not steps
    direction = update_direction(Optimizer(momentum=0.9, weight_decay=0.1, clip_norm=clip), is_frozen)
    params = {"head": trained, "stem": stem}
    state = direction.init(params)
    for gradient, lr in zip(gradients, rates, strict=True):
        updates, state = direction.update({"head": gradient, "stem": {"kernel": 100 * np.ones(3)}}, state, params)
        params = descend(params, updates, lr, is_frozen)
    expected = torch_sgd(trained, gradients, rates, 0.9, 0.1, clip)
    for name, value in expected.items():
        np.testing.assert_allclose(params["head"][name], value, rtol=2e-6, atol=1e-7)
    assert params["stem"]["kernel"] is stem["kernel"]  # neither update nor decay, nor a copy


def test_steps_equal_torch_adamw() -> None:
    """The loop of torch.optim.AdamW with betas 0.9, 0.999 and eps 1e-8."""
    draw = np.random.default_rng(1)
    start = draw.normal(size=(3, 4)).astype(np.float32)
    gradients = [draw.normal(size=(3, 4)).astype(np.float32) for _ in range(4)]
    optimizer = Optimizer(rule="adamw", weight_decay=0.1)
    direction = update_direction(optimizer, is_frozen)
    params: Any = {"head": start, "stem": np.ones(2, np.float32)}
    state = direction.init(params)
    expected, m, v = np.float64(start), 0.0, 0.0
    for t, (gradient, lr) in enumerate(zip(gradients, (0.1, 0.1, 0.01, 0.2), strict=True), 1):
        updates, state = direction.update({"head": gradient, "stem": np.ones(2)}, state, params)
        params = jax.tree.map(lambda p, u, lr=lr: p - lr * u, params, updates)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * np.float64(gradient) ** 2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected = expected * (1 - lr * 0.1) - lr * step
    np.testing.assert_allclose(params["head"], expected, rtol=1e-5)
    np.testing.assert_array_equal(params["stem"], 1)


def test_muon_evens_out_the_directions_of_a_kernel() -> None:
    draw = np.random.default_rng(2)
    scales = np.geomspace(1, 1e-2, 8)  # a gradient that is a hundred times longer in some directions than in others
    gradient = (draw.normal(size=(45, 8)) * scales).reshape(3, 3, 5, 8).astype(np.float32)
    params = {"head": {"kernel": jnp.zeros((3, 3, 5, 8)), "bias": jnp.zeros(8)}, "stem": jnp.ones(2)}
    direction = update_direction(Optimizer(rule="muon", weight_decay=0.1), is_frozen)
    bias = draw.normal(size=8).astype(np.float32)

    def first(factor: float) -> Any:
        given = {"head": {"kernel": factor * gradient, "bias": factor * bias}, "stem": np.ones(2)}
        return direction.update(given, direction.init(params), params)[0]

    update = np.asarray(first(1.0)["head"]["kernel"]).reshape(45, 8)
    u, _, vt = np.linalg.svd(gradient.reshape(45, 8), full_matrices=False)
    lengths = np.linalg.svd(update, compute_uv=False)
    assert lengths.max() < 2 * lengths.min()
    assert np.sum(update * (u @ vt)) > 0.95 * np.linalg.norm(update) * np.sqrt(8)  # the polar factor
    assert np.sqrt(np.mean(update**2)) == pytest.approx(0.2, rel=0.25)
    np.testing.assert_allclose(first(100.0)["head"]["kernel"], first(1.0)["head"]["kernel"], rtol=1e-3, atol=1e-4)
    of_bias = np.asarray(first(1.0)["head"]["bias"])  # Adam's first step is as long for a small gradient as for a large
    np.testing.assert_allclose(of_bias, np.sign(bias) * np.abs(of_bias[0]), rtol=1e-4)
    decayed = direction.update(
        jax.tree.map(jnp.zeros_like, params), direction.init(params), jax.tree.map(jnp.ones_like, params)
    )[0]
    np.testing.assert_allclose(decayed["head"]["kernel"], 0.1, rtol=1e-6)
    np.testing.assert_array_equal(decayed["stem"], 0)


def unevenness(inputs: int, outputs: int, longest: float, steps: int, norm: Any = "frobenius") -> float:
    """The longest direction of Muon's update by its shortest; the gradient's is ``longest`` times the shortest."""
    draw = np.random.default_rng(2).normal(size=(inputs, outputs)) * np.geomspace(longest, 1, outputs)
    direction = update_direction(Optimizer(rule="muon", muon_steps=steps, muon_norm=norm), is_frozen)
    gradient = {"head": {"kernel": jnp.asarray(draw, jnp.float32)}}
    lengths = np.linalg.svd(direction.update(gradient, direction.init(gradient), gradient)[0]["head"]["kernel"])[1]
    return float(lengths.max() / lengths.min())


def test_fewer_steps_of_muon_even_out_less() -> None:
    one, three, five = (unevenness(45, 8, 100.0, steps) for steps in (1, 3, 5))
    assert 50 > one > 2 * three > 2 * five


def test_the_schatten_norm_saves_a_step_of_muon() -> None:
    three, four = unevenness(450, 256, 10.0, 3), unevenness(450, 256, 10.0, 4)
    assert unevenness(450, 256, 10.0, 3, "schatten") == pytest.approx(four, rel=0.1)
    assert three > 2 * four


def test_muon_needs_a_step() -> None:
    with pytest.raises(ValueError, match=r"Optimizer\.muon_steps: expected a number from 1 to 100, got 0"):
        Optimizer(muon_steps=0)


def test_frozen_parameters_have_no_momentum_and_count_in_no_norm() -> None:
    params = {"head": {"w": jnp.ones(2)}, "stem": {"w": jnp.ones(5)}}
    direction = update_direction(Optimizer(), is_frozen)
    assert sum(leaf.size for leaf in jax.tree.leaves(direction.init(params))) == 2
    gradients = {"head": {"w": jnp.array([3.0, 4.0])}, "stem": {"w": 7 * jnp.ones(5)}}
    assert trained_norm(gradients, is_frozen) == 5
    assert trained_norm(gradients, lambda path: True) == 0


def test_the_1x_schedule() -> None:
    """Values of mmcv's linear warm-up and steps for 16 images, at 7330 steps an epoch."""
    rate = learning_rate(Optimizer(), batch_size=16, steps_per_epoch=7330)
    expected = {
        0: 0.02 * 0.001,
        1: 0.02 * (1 - (1 - 1 / 500) * 0.999),
        250: 0.02 * (1 - 0.5 * 0.999),
        499: 0.02 * (1 - (1 - 499 / 500) * 0.999),
        500: 0.02,
        8 * 7330 - 1: 0.02,
        8 * 7330: 0.002,
        11 * 7330 - 1: 0.002,
        11 * 7330: 0.0002,
        12 * 7330: 0.0002,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(rate(jnp.int32(step)), value, rtol=2e-6, err_msg=str(step))


@pytest.mark.parametrize(("images", "steps"), [(60, 48), (100, 84), (300, 228)])
def test_a_small_data_set_is_trained_at_the_full_rate_most_of_the_time(images: int, steps: int) -> None:
    """The command of the README: 12 epochs in batches of 16, and 500 steps of warm-up."""
    epoch = -(-images // 16)
    rate = learning_rate(Optimizer(), batch_size=16, steps_per_epoch=epoch)
    rates = np.array([float(rate(jnp.int32(step))) for step in range(steps)])
    assert rates[0] == pytest.approx(0.02 * 0.001)
    assert (rates > 0.0199999).sum() >= (8 - 4) * epoch  # of the eight epochs before the first drop
    (note,) = Optimizer().schedule.notes(epoch)
    assert f"takes {steps // 3} steps and not the 500 of optimizer.schedule.warmup_steps" in note


def test_the_full_rate_comes_before_the_first_drop() -> None:
    rate = learning_rate(Optimizer(schedule=Schedule(drops=(1,), warmup_steps=99)), 16, steps_per_epoch=10)
    np.testing.assert_allclose(rate(jnp.int32(9)), 0.02 * (1 - 0.1 * 0.999), rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.int32(10)), 0.002, rtol=1e-6)


def test_drops_that_never_come_are_named() -> None:
    (note,) = Schedule(length=8, drops=(4, 8, 11), warmup_steps=0).notes(100)
    assert "does not drop at 8, 11 epochs, since the run ends after 8 (optimizer.schedule.length)" in note
    assert Schedule().notes(7330) == []


def test_the_rate_scales_with_the_batch() -> None:
    plain = Schedule(warmup_steps=0, drops=())
    for batch, base, expected in ((16, 16, 0.02), (4, 16, 0.005), (64, 16, 0.08), (2, None, 0.02)):
        rate = learning_rate(Optimizer(base_batch=base, schedule=plain), batch, 10)
        np.testing.assert_allclose(rate(jnp.int32(0)), expected, rtol=1e-6)


def test_drops_in_steps() -> None:
    schedule = Schedule(length=30, drops=(10, 20), unit="steps", warmup_steps=0, drop_factor=0.5)
    rate = learning_rate(Optimizer(lr=1.0, schedule=schedule), 16, steps_per_epoch=999)
    assert [float(rate(jnp.int32(s))) for s in (0, 9, 10, 19, 20, 29)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_the_rate_is_the_same_inside_jit() -> None:
    rate = learning_rate(Optimizer(), 8, 100)
    for step in (0, 123, 500, 900):
        assert jax.jit(rate)(jnp.int32(step)) == pytest.approx(float(rate(jnp.int32(step))), rel=1e-6)


def test_against_optax_sgd_where_they_must_agree() -> None:
    """Without decay, with one rate, and with nothing frozen, optax.sgd is the same thing."""
    direction, other = update_direction(Optimizer(weight_decay=0.0), lambda path: False), optax.sgd(0.1, momentum=0.9)
    params = {"w": jnp.arange(3.0)}
    state, other_state, theirs = direction.init(params), other.init(params), params
    for i in range(3):
        gradient = {"w": jnp.sin(jnp.arange(3.0) + i)}
        updates, state = direction.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
        updates, other_state = other.update(gradient, other_state)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(params["w"], theirs["w"], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Optimizer(lr=0.0),
        lambda: Optimizer(lr=float("nan")),
        lambda: Optimizer(momentum=1.0),
        lambda: Optimizer(weight_decay=-1.0),
        lambda: Optimizer(clip_norm=0.0),
        lambda: Optimizer(base_batch=0),
        lambda: Schedule(length=0),
        lambda: Schedule(drops=(11, 8)),
        lambda: Schedule(drops=(0, 8)),
        lambda: Schedule(warmup_steps=-1),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        wrong()
