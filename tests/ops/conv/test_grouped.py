"""Grouped convolutions in dense blocks: XLA's own, by another road, and their gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.conv import grouped
from jaxdet.ops.conv.direct import CHANNELS_LAST
from jaxdet.ops.conv.grouped import conv_in_blocks, dense_blocks, depthwise_conv, grouped_conv
from tests.nn.blocks import slow_conv
from tests.programs import equations


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def by_xla(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=CHANNELS_LAST, feature_group_count=groups
    )


@pytest.mark.parametrize(("members", "groups", "each"), [(4, 16, 4), (16, 3, 8), (40, 2, 20), (2, 4, 6), (1, 5, 2)])
def test_values_and_gradients_are_those_of_xla(members: int, groups: int, each: int) -> None:
    """Groups of few channels, joined by eight, two (which do not divide three) or all, of many, and of one."""
    x, kernel = normal(0, 1, 6, 5, members * groups), normal(1, 3, 3, members, groups * each)
    out = jax.eval_shape(lambda x, k: by_xla(x, k, 2, groups), x, kernel)
    upstream = normal(2, *out.shape)

    def run(conv: Any) -> Any:
        return jax.jit(lambda x, k: (conv(x, k), jax.vjp(conv, x, k)[1](upstream)))(x, kernel)

    wanted = run(lambda x, k: by_xla(x, k, 2, groups))
    found = run(lambda x, k: conv_in_blocks(x, k, 2, (1, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize(("size", "pads"), [((3, 3), (1, 1)), ((5, 3), (0, 2))])
def test_depthwise_values_and_gradients_are_those_of_xla(size: tuple[int, int], pads: tuple[int, int]) -> None:
    x, kernel = normal(0, 2, 6, 5, 3), normal(1, *size, 1, 3)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = [(pad, pad) for pad in pads]
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=CHANNELS_LAST, feature_group_count=3
        )

    upstream = normal(2, *jax.eval_shape(plain, x, kernel).shape)

    def run(conv: Any) -> Any:
        return jax.jit(lambda x, k: (conv(x, k), jax.vjp(conv, x, k)[1](upstream)))(x, kernel)

    wanted, found = run(plain), run(lambda x, k: depthwise_conv(x, k, pads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


def test_each_group_reads_its_own_channels() -> None:
    x, kernel = normal(0, 1, 4, 4, 6), normal(1, 3, 3, 2, 9)
    found = grouped_conv(x, kernel, 1, (1, 1))[0]
    for group in range(3):
        own, outputs = slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3)
        wanted = slow_conv(np.asarray(x[0, ..., own]), np.asarray(kernel[..., outputs]), 1, (1, 1))
        np.testing.assert_allclose(found[..., outputs], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("members", "groups", "blocks"), [(4, 32, 4), (8, 32, 8), (16, 32, 16), (32, 32, 32), (64, 32, 32), (2, 4, 1)]
)
def test_blocks_have_32_channels_or_what_there_is(members: int, groups: int, blocks: int) -> None:
    kernel = jnp.ones((3, 3, members, members * groups))
    found = dense_blocks(kernel, groups)
    assert found.shape == (blocks, 3, 3, members * groups // blocks, members * groups // blocks)
    assert found.sum() == kernel.sum()


def test_xla_is_asked_where_it_is_good_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel = normal(0, 1, 4, 4, 64), normal(1, 3, 3, 4, 64)

    def convolutions() -> list[int]:
        program = jax.make_jaxpr(lambda x, k: grouped_conv(x, k, 1, (1, 1)))(x, kernel)
        found = [e.params for e, _ in equations(program.jaxpr) if e.primitive.name == "conv_general_dilated"]
        return [params["feature_group_count"] for params in found]

    monkeypatch.setattr(grouped.jax, "default_backend", lambda: "cpu")
    assert convolutions() == [1, 1]
    monkeypatch.setattr(grouped.jax, "default_backend", lambda: "gpu")
    assert convolutions() == [16]


def test_channels_that_make_no_groups_are_named() -> None:
    with pytest.raises(ValueError, match=r"convolution of 6 to 8 channels needs .* kernel has 4 channels of each"):
        grouped_conv(jnp.zeros((1, 4, 4, 6)), jnp.zeros((3, 3, 4, 8)), 1, (1, 1))
    with pytest.raises(ValueError, match="of 6 to 8 channels"):
        grouped_conv(jnp.zeros((1, 4, 4, 6)), jnp.zeros((3, 3, 2, 8)), 1, (1, 1))
