import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.conv import spectral
from jaxdet.ops.conv.spectral import multiplications, products, spectral_conv

CASES = [
    # map, kernel, padding
    ((7, 7), (7, 7), (3, 3)),
    ((7, 7), (7, 3), (1, 1)),
    ((3, 7), (3, 7), (3, 3)),
    ((7, 7), (5, 5), (2, 2)),
    ((14, 14), (3, 3), (1, 1)),
    ((6, 5), (4, 2), (0, 3)),
    ((4, 6), (4, 6), (0, 0)),
    ((3, 4), (7, 7), (3, 3)),
    ((2, 3), (3, 1), (4, 2)),
    ((1, 1), (1, 1), (0, 0)),
    ((5, 4), (1, 2), (1, 0)),
]


def direct(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    pads = [(pad, pad) for pad in padding]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(hw: tuple[int, int], kernel: tuple[int, int], n: int = 3) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(n, *hw, 6)), rng.normal(size=(*kernel, 6, 4))
    return jnp.asarray(x, jnp.float32), jnp.asarray(k, jnp.float32)


def assert_close(got: jax.Array, expected: jax.Array, rounding: float = 1e-6) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    error, spread = np.asarray(got - expected, np.float64), np.std(expected)
    assert np.sqrt(np.mean(error**2)) < rounding * spread
    assert np.abs(error).max() < 1e-5 * spread


@pytest.mark.parametrize(("hw", "kernel", "padding"), CASES)
def test_equals_the_direct_convolution(hw: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int]) -> None:
    x, k = arrays(hw, kernel)
    assert_close(spectral_conv(x, k, padding), direct(x, k, padding))


@pytest.mark.parametrize(("hw", "kernel", "padding"), CASES)
def test_gradients_equal_those_of_the_direct_convolution(
    hw: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    x, k = arrays(hw, kernel)
    y, pull = jax.vjp(lambda x, k: spectral_conv(x, k, padding), x, k)
    _, expected = jax.vjp(lambda x, k: direct(x, k, padding), x, k)
    # Rounding is relative to all that is transformed, gradients of outputs that see nothing but padding included.
    seeing = np.mean(np.asarray(direct(jnp.abs(x), jnp.abs(k), padding)) > 0)
    for got, wanted in zip(pull(jnp.cos(y)), expected(jnp.cos(y)), strict=True):
        assert_close(got, wanted, rounding=1e-6 / np.sqrt(seeing))


@pytest.mark.parametrize("n", [0, 1, 4, 6, 7])
def test_chunks_change_nothing(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "MIN_CHUNK", 4)
    monkeypatch.setattr(spectral, "CHUNK_BYTES", 1)
    x, k = arrays((5, 4), (3, 3), n)
    y, pull = jax.vjp(lambda x, k: spectral_conv(x, k, (1, 1)), x, k)
    reference, expected = jax.vjp(lambda x, k: direct(x, k, (1, 1)), x, k)
    np.testing.assert_allclose(y, reference, atol=3e-5)
    for got, wanted in zip(pull(y), expected(y), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_chunks_divide_the_crops_where_they_can() -> None:
    assert spectral._chunk(4000, 148 * 512) == 1000
    assert spectral._chunk(30, 148 * 512) == 30
    assert spectral._chunk(3001, 148 * 512) == 1383


def test_number_of_products() -> None:
    assert products((7, 7), (3, 3)) == 4 + 3 * 48
    assert products((14, 14), (3, 3)) == 1 + 3 * 144
    assert products((7, 7), (1, 1)) == 4 + 3 * 30
    assert products((3, 7), (3, 3)) == 4 + 3 * 28
    assert products((4, 7), (0, 2)) == 2 + 3 * 17


@pytest.mark.parametrize(("hw", "kernel", "padding"), CASES)
def test_transforms_have_one_row_for_each_product(
    hw: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    x, k = arrays(hw, kernel)
    transforms, _ = spectral._transforms_for(x, k, padding)
    assert {len(transforms.maps), len(transforms.kernels), transforms.outputs.shape[1]} == {products(hw, padding)}


def test_a_shorter_torus_would_mix_outputs() -> None:
    """A single pixel seen by a single tap, at the corners that a torus one point shorter would join."""
    for pixel, tap, output in ((6, 0, 9), (0, 6, -3), (6, 3, 6), (0, 3, 0)):
        x = jnp.zeros((1, 7, 1, 1)).at[0, pixel].set(1.0)
        k = jnp.zeros((7, 1, 1, 1)).at[tap].set(1.0)
        expected = np.zeros(7)
        if 0 <= output < 7:
            expected[output] = 1.0
        np.testing.assert_allclose(spectral_conv(x, k, (3, 0))[0, :, 0, 0], expected, atol=1e-6)


def test_bfloat16() -> None:
    x, k = arrays((7, 7), (7, 7))
    low = spectral_conv(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16), (3, 3))
    exact = direct(x, k, (3, 3))
    assert low.dtype == jnp.bfloat16
    assert np.sqrt(np.mean((np.asarray(low, np.float32) - exact) ** 2)) < 0.02 * np.std(exact)
    gradients = jax.grad(lambda x, k: spectral_conv(x, k, (3, 3)).sum().astype(jnp.float32), (0, 1))(
        x.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    )
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype("bfloat16")}


def test_multiplications() -> None:
    # Two crops of 1x2 pixels, 3 to 5 channels, 1x3 kernel: L = 1x3, one real frequency and one pair.
    assert multiplications((2, 1, 2, 3), (1, 3, 3, 5), (0, 1)) == (
        2 * 2 * 3 * 15,
        4 * (2 * 15 + 2 * (2 * 3 + 2 * 5) + 3 * 15),
    )


def test_errors() -> None:
    x, k = arrays((3, 3), (5, 5))
    with pytest.raises(ValueError, match=r"5x5 kernel with padding \(0, 0\) on a 3x3 map leaves no output"):
        spectral_conv(x, k, (0, 0))
    with pytest.raises(ValueError, match=r"expected a kernel \[kh, kw, 5, F\]"):
        spectral_conv(x[..., :5], k, (2, 2))
