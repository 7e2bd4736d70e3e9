"""Non-local and global context blocks: golden numbers, slow oracles, and what they start as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.nn.blocks.context import GlobalContext, NonLocal
from tests.nn.blocks import KEY, count, random_variables, slow_layer, torch_conv
from tests.ops.golden import compare, normal
from tests.parity.weights import named_weight


@pytest.mark.parametrize(
    ("block", "kernel", "size", "number"), [("nl7_7", 7, 7, 3), ("nl7_14", 7, 14, 2), ("nl1_7", 1, 7, 3)]
)
def test_golden(block: str, kernel: int, size: int, number: int) -> None:
    def conv(name: str, features: int, channels: int) -> dict[str, np.ndarray]:
        return torch_conv(f"blocks.{block}.{name}.conv", (features, channels, kernel, kernel))

    params = {name: conv(name, 128, 256) for name in ("g", "theta", "phi")} | {"out": conv("conv_out", 256, 128)}
    x = normal(f"ops/x{size}", (number, 256, size, size)).astype(np.float32).transpose(0, 2, 3, 1)
    out = jax.jit(NonLocal(kernel).apply)({"params": params}, x)
    compare(f"blocks.{block}/out", np.moveaxis(out, -1, 1))


def test_against_loops() -> None:
    block, x = NonLocal(kernel=3, reduction=3), np.random.default_rng(1).normal(size=(2, 4, 5, 6)).astype(np.float32)
    variables = random_variables(block, x)
    params = variables["params"]
    for crop, out in zip(x, block.apply(variables, x), strict=True):
        g, theta, phi = (slow_layer(crop, params[name], pad=1).reshape(20, 2) for name in ("g", "theta", "phi"))
        y = np.zeros((20, 2))
        for i in range(20):
            weight = np.array([np.exp(theta[i] @ phi[j] / np.sqrt(2)) for j in range(20)])
            y[i] = sum(w * v for w, v in zip(weight / weight.sum(), g, strict=True))
        np.testing.assert_allclose(out, crop + slow_layer(y.reshape(4, 5, 2), params["out"], pad=1), atol=1e-5)


def test_a_fresh_block_changes_nothing() -> None:
    x = jax.random.normal(KEY, (2, 5, 5, 4))
    out, variables = NonLocal(kernel=3).init_with_output(KEY, x)
    np.testing.assert_array_equal(out, x)
    assert set(variables["params"]) == {"g", "theta", "phi", "out"}
    assert all(set(layer) == {"kernel", "bias"} for layer in variables["params"].values())
    assert 0.005 < variables["params"]["theta"]["kernel"].std() < 0.02
    assert not np.array_equal(variables["params"]["theta"]["kernel"], variables["params"]["phi"]["kernel"])


def test_every_parameter_gets_its_gradient() -> None:
    block, x = NonLocal(kernel=3), jax.random.normal(KEY, (2, 4, 4, 4))
    variables = random_variables(block, x)
    value = jax.jit(lambda v: jnp.sin(block.apply(v, x)).sum())
    check_grads(value, (variables,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)
    largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), jax.grad(value)(variables))["params"]
    # phi's bias adds the same to all energies of a query, which the softmax takes out
    assert largest["phi"].pop("bias") < 1e-5
    assert min(jax.tree.leaves(largest)) > 1e-3


def test_bfloat16_stays_close() -> None:
    block, x = NonLocal(kernel=3), jax.random.normal(KEY, (2, 7, 7, 8))
    variables = random_variables(block, x)
    half = block.apply(variables, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), block.apply(variables, x), atol=0.06)


def test_no_crops_and_an_even_kernel() -> None:
    assert NonLocal(1).init_with_output(KEY, jnp.zeros((0, 7, 7, 4)))[0].shape == (0, 7, 7, 4)
    with pytest.raises(ValueError, match=r"NonLocal\.kernel: expected an odd number from 1 to 63, got 4"):
        NonLocal(4).init(KEY, jnp.zeros((1, 7, 7, 4)))


@pytest.mark.parametrize(("kernel", "channels", "expected"), [(7, 256, 6_423_168), (7, 64, 401_568), (1, 256, 131_712)])
def test_counts_of_the_reference(kernel: int, channels: int, expected: int) -> None:
    assert count(NonLocal(kernel), jnp.zeros((1, 7, 7, channels))) == expected


@pytest.mark.parametrize("reduction", [4, 16])
def test_golden_global_context(reduction: int) -> None:
    name, inner = f"blocks.gcb_r{reduction}", 64 // reduction
    norm = {"scale": (inner, 1, 1), "bias": (inner, 1, 1)}
    params = {
        "mask": torch_conv(f"{name}.conv_mask", (1, 64, 1, 1)),
        "reduce": torch_conv(f"{name}.channel_add_conv.0", (inner, 64, 1, 1)),
        "norm": {
            ours: named_weight(f"{name}.channel_add_conv.1.{theirs}", norm[ours]).reshape(-1)
            for ours, theirs in (("scale", "weight"), ("bias", "bias"))
        },
        "expand": torch_conv(f"{name}.channel_add_conv.3", (64, inner, 1, 1)),
    }
    x = normal("ops/xs", (2, 64, 9, 11)).astype(np.float32).transpose(0, 2, 3, 1)
    out = jax.jit(GlobalContext(reduction).apply)({"params": params}, x)
    compare(f"{name}/out", np.moveaxis(out, -1, 1))


def test_global_context_against_loops() -> None:
    block, x = GlobalContext(2), np.random.default_rng(1).normal(size=(2, 3, 4, 6)).astype(np.float32)
    variables = random_variables(block, x)
    params = jax.tree.map(np.float64, variables["params"])
    for crop, out in zip(x.reshape(2, 12, 6), block.apply(variables, x).reshape(2, 12, 6), strict=True):
        weights = np.exp(crop @ params["mask"]["kernel"].reshape(6, 1) + params["mask"]["bias"])
        context = sum(weight * pixel for weight, pixel in zip(weights / weights.sum(), crop, strict=True))
        hidden = context @ params["reduce"]["kernel"].reshape(6, 3) + params["reduce"]["bias"]
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        hidden = np.maximum(hidden * params["norm"]["scale"] + params["norm"]["bias"], 0)
        added = hidden @ params["expand"]["kernel"].reshape(3, 6) + params["expand"]["bias"]
        np.testing.assert_allclose(out, crop + added, atol=1e-5)


def test_a_fresh_global_context_changes_nothing_and_keeps_the_dtype() -> None:
    x = jax.random.normal(KEY, (2, 5, 4, 8), jnp.bfloat16)
    out, variables = GlobalContext(4).init_with_output(KEY, x)
    np.testing.assert_array_equal(out, x)
    assert out.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, variables["params"]["norm"]) == {"scale": (2,), "bias": (2,)}


def test_every_parameter_of_a_global_context_gets_its_gradient() -> None:
    block, x = GlobalContext(2), jax.random.normal(KEY, (2, 4, 3, 8))
    variables = random_variables(block, x)
    value = jax.jit(lambda v: jnp.sin(block.apply(v, x)).sum())
    check_grads(value, (variables,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)
    largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), jax.grad(value)(variables))["params"]
    assert largest["mask"].pop("bias") < 1e-5  # the same at every position: the softmax takes it out
    assert min(jax.tree.leaves(largest)) > 1e-4
