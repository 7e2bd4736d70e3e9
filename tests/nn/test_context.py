"""Non-local block: golden numbers, a slow oracle, and what it starts as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.nn.blocks.context import NonLocal
from tests.nn.blocks import KEY, count, random_variables, slow_layer, torch_conv
from tests.ops.golden import compare, normal


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
