"""Deformable convolution: golden numbers, literal loops, finite differences, and offsets that lead anywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.ops.conv.deform import deform_conv
from tests.nn.blocks import slow_conv
from tests.ops.golden import OPS, compare, normal
from tests.parity.weights import named_weight
from tests.programs import ways

rng = np.random.default_rng


def noise(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * rng(seed).normal(size=shape)).astype(np.float32)


def at(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value of ``image [H, W, C]`` between its pixels; zeros lie around it."""
    top, left = int(np.floor(y)), int(np.floor(x))
    total = np.zeros(image.shape[2])
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            total += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * image[row, column]
    return total


def slow_deform(
    x: np.ndarray, kernel: np.ndarray, offsets: np.ndarray, mask: np.ndarray | None, stride: int, pad: int, apart: int
) -> np.ndarray:
    """Of one image, one number after the other."""
    size, (rows, columns, numbers) = kernel.shape[0], offsets.shape
    groups = numbers // (2 * size**2)
    each = x.shape[2] // groups
    out = np.zeros((rows, columns, kernel.shape[3]))
    for i, j, g, p, q in np.ndindex(rows, columns, groups, size, size):
        tap = (g * size + p) * size + q
        dy, dx = offsets[i, j, 2 * tap : 2 * tap + 2]
        own = slice(g * each, (g + 1) * each)
        value = at(x[..., own], i * stride - pad + p * apart + dy, j * stride - pad + q * apart + dx)
        out[i, j] += (1.0 if mask is None else mask[i, j, tap]) * value @ kernel[p, q, own]
    return out


@pytest.mark.parametrize(
    ("stride", "pad", "apart", "groups", "modulated"),
    [(1, 1, 1, 1, False), (2, 1, 1, 1, True), (1, 2, 2, 3, True), (2, 0, 1, 2, False)],
)
def test_against_loops(stride: int, pad: int, apart: int, groups: int, modulated: bool) -> None:
    x, kernel = noise(0, 2, 7, 6, 6), noise(1, 3, 3, 6, 4)
    h, w = ((side + 2 * pad - 2 * apart - 1) // stride + 1 for side in (7, 6))
    # Some samples are far outside of the map, on every side.
    offsets = noise(2, 2, h, w, groups * 18, scale=3.0)
    mask = noise(3, 2, h, w, groups * 9) if modulated else None
    found = jax.jit(deform_conv, static_argnames=("stride", "padding", "dilation"))(
        x, kernel, offsets, mask, stride=stride, padding=pad, dilation=apart
    )
    for i in range(2):
        wanted = slow_deform(x[i], kernel, offsets[i], None if mask is None else mask[i], stride, pad, apart)
        np.testing.assert_allclose(found[i], wanted, atol=1e-4)


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_golden_operator(kind: str) -> None:
    x, offsets = nhwc(normal("ops/xs", (2, 64, 9, 11))), nhwc(6 * normal("ops/dcn_off", (2, 18, 9, 11)))
    mask = nhwc(1 / (1 + np.exp(-normal("ops/dcn_mask", (2, 9, 9, 11))))) if kind == "v2" else None
    kernel = np.float32(normal("ops/dcn_w", (8, 64, 3, 3)) / 24).transpose(2, 3, 1, 0)
    for run in ways(lambda x, kernel, offsets: deform_conv(x, kernel, offsets, mask))[1:]:
        compare(f"dcn_op/{kind}", np.moveaxis(run(x, kernel, offsets), -1, 1))


@pytest.mark.parametrize("kind", ["dcn1", "dcn2"])
@pytest.mark.parametrize(("name", "stride", "apart", "groups"), [("s1", 1, 1, 1), ("s2", 2, 1, 1), ("dg4_d2", 1, 2, 4)])
def test_golden_blocks(kind: str, name: str, stride: int, apart: int, groups: int) -> None:
    """With the convolution that makes the offsets; four groups of channels that move by themselves, taps two apart."""
    block, taps = f"blocks.{kind}_{name}", 9 * groups
    numbers = (3 if kind == "dcn2" else 2) * taps
    x = nhwc(normal("ops/xs", (2, 64, 9, 11)))
    weight = named_weight(f"{block}.conv_offset.weight", (numbers, 64, 3, 3)).transpose(2, 3, 1, 0)
    says = jax.lax.conv_general_dilated(
        x,
        weight,
        (stride, stride),
        [(apart, apart)] * 2,
        rhs_dilation=(apart, apart),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    says = says + named_weight(f"{block}.conv_offset.bias", (numbers,))
    mask = jax.nn.sigmoid(says[..., 2 * taps :]) if kind == "dcn2" else None
    kernel = named_weight(f"{block}.weight", (32, 64, 3, 3)).transpose(2, 3, 1, 0)
    run = jax.jit(lambda *args: deform_conv(*args, stride=stride, padding=apart, dilation=apart))
    out = run(x, kernel, says[..., : 2 * taps], mask)
    assert f"{block}/out" in OPS or f"{block}/out@sub" in OPS
    compare(f"{block}/out", np.moveaxis(out, -1, 1), tolerance=1e-4)


def away_from_pixels(offsets: np.ndarray) -> np.ndarray:
    """Moved so that no sample lies where a side of a pixel's square is, and there is no derivative."""
    return np.floor(offsets) + 0.2 + 0.6 * (offsets - np.floor(offsets))


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_finite_differences(groups: int) -> None:
    """Of the input, the kernel, the offsets and the mask; the convolution has as many groups as move by themselves."""
    x, kernel = noise(0, 1, 5, 4, 4), noise(1, 3, 3, 4 // groups, 4)
    offsets = away_from_pixels(noise(2, 1, 5, 4, 18 * groups, scale=1.5)).astype(np.float32)
    mask = noise(3, 1, 5, 4, 9 * groups)
    value = jax.jit(lambda *args: jnp.sin(0.3 * deform_conv(*args)).sum())
    check_grads(value, (x, kernel, offsets, mask), order=1, modes=["rev"], eps=3e-3, atol=2e-2, rtol=2e-2)


def test_an_offset_of_zero_is_an_ordinary_convolution() -> None:
    x, kernel = noise(0, 1, 6, 5, 3), noise(1, 3, 3, 3, 2)
    zeros = np.zeros((1, 3, 3, 18), np.float32)
    found = jax.jit(lambda x: deform_conv(x, kernel, zeros, stride=2))(x)
    np.testing.assert_allclose(found[0], slow_conv(x[0], kernel, 2, (1, 1)), atol=1e-5)


def test_whole_offsets_move_the_map() -> None:
    """All taps one row down and two columns left: the output of the map that is moved the other way."""
    x, kernel = noise(0, 1, 8, 9, 3), noise(1, 3, 3, 3, 2)
    offsets = np.broadcast_to(np.tile(np.float32([1, -2]), 9), (1, 8, 9, 18))
    moved = np.zeros_like(x)
    moved[:, :-1, 2:] = x[:, 1:, :-2]
    inner = slice(2, -2)
    found, wanted = jax.jit(deform_conv)(x, kernel, offsets)[0], slow_conv(moved[0], kernel, 1, (1, 1))
    np.testing.assert_allclose(found[inner, 3:-2], wanted[inner, 3:-2], atol=1e-5)


def test_what_is_outside_reads_nothing_and_moves_nothing() -> None:
    """A pixel outside, where a fresh layer's padding lies, and a million: no value, no gradient, none of it NaN."""
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 1, 2, 1))

    @jax.jit
    def run(x: jax.Array, offsets: jax.Array) -> Any:
        return jax.value_and_grad(lambda x, offsets: deform_conv(x, kernel, offsets, padding=0).sum(), (0, 1))(
            x, offsets
        )

    for far in (4.0, 1e6, -4.0, -1e6):
        offsets = jnp.full((1, 4, 4, 2), far)
        total, (by_x, by_offset) = run(x, offsets)
        assert total == 0
        assert not by_x.any()
        assert not by_offset.any()
    # At -1 exactly the reference has no gradient either; half a pixel nearer, rows and columns fade in.
    at_border = jnp.zeros((1, 4, 4, 2)).at[0, 0, 0].set(jnp.array([-1.0, 0.0]))
    assert run(x, at_border)[1][1][0, 0, 0, 0] == 0
    total, (_, by_offset) = run(x, at_border.at[0, 0, 0, 0].set(-0.5))
    assert by_offset[0, 0, 0, 0] == 2
    assert total == run(x, jnp.zeros_like(at_border))[0] - 1


def test_bfloat16_keeps_positions() -> None:
    """At pixel 200 a bfloat16 position would be even; the sample half a pixel on is the mean of two."""
    x = jnp.arange(256.0, dtype=jnp.bfloat16).reshape(1, 1, 256, 1) % 4
    offsets = jnp.broadcast_to(jnp.array([0, 0.5], jnp.bfloat16), (1, 1, 256, 2))
    found = jax.jit(lambda x: deform_conv(x, jnp.ones((1, 1, 1, 1), jnp.bfloat16), offsets, padding=0))(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[0, 0, 200:204, 0], [0.5, 1.5, 2.5, 1.5])


def test_images_do_not_see_each_other() -> None:
    x, kernel, offsets = noise(0, 2, 5, 5, 2), noise(1, 3, 3, 2, 2), noise(2, 2, 5, 5, 18)
    other = np.stack([x[0], np.full_like(x[1], np.nan)])
    run = jax.jit(deform_conv)
    np.testing.assert_array_equal(run(other, kernel, offsets)[0], run(x, kernel, offsets)[0])


def test_what_does_not_fit_is_named() -> None:
    x, kernel = np.zeros((1, 4, 4, 6), np.float32), np.zeros((3, 3, 6, 2), np.float32)
    with pytest.raises(ValueError, match=r"offsets: expected 18 channels, or .* 6 channels; got 20"):
        deform_conv(x, kernel, np.zeros((1, 4, 4, 20), np.float32))
    with pytest.raises(ValueError, match=r"groups of the input's 6 channels; got 72"):
        deform_conv(x, kernel, np.zeros((1, 4, 4, 72), np.float32))
    with pytest.raises(ValueError, match=r"offsets: expected \(1, 2, 2, 18\), got \(1, 4, 4, 18\)"):
        deform_conv(x, kernel, np.zeros((1, 4, 4, 18), np.float32), stride=2)
    with pytest.raises(ValueError, match=r"mask: expected \(1, 4, 4, 9\), got \(1, 4, 4, 18\)"):
        deform_conv(x, kernel, *[np.zeros((1, 4, 4, 18), np.float32)] * 2)
    with pytest.raises(ValueError, match="square kernel, got 3x1"):
        deform_conv(x, kernel[:, :1], np.zeros((1, 4, 4, 6), np.float32))
