"""Overlap-save: cut or whole, the same convolution; and which of them is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.conv.overlap_save import best_tiles, fourier_conv, in_tiles, overlap_save, predicted_gain
from tests.ops.conv.test_spectral import arrays, direct


@pytest.mark.parametrize("tiles", [(1, 1), (2, 2), (3, 1), (1, 2), (6, 4)])
@pytest.mark.parametrize("n", [0, 3])
def test_tiles_change_nothing(tiles: tuple[int, int], n: int) -> None:
    """Rows and columns have different sizes, kernels and padding; output and both gradients are those of the whole."""
    x, k = arrays((6, 6), (3, 5), n)
    y, pull = jax.vjp(lambda x, k: overlap_save(x, k, (1, 1), tiles), x, k)
    expected, reference = jax.vjp(lambda x, k: direct(x, k, (1, 1)), x, k)
    assert y.shape == (n, 6, 4, 4)
    np.testing.assert_allclose(y, expected, atol=3e-5)
    for got, wanted in zip(pull(jnp.cos(y)), reference(jnp.cos(expected)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_a_pixel_reaches_the_tiles_around_it() -> None:
    """One white pixel at a corner of four tiles, a kernel of ones: nine ones, in all four."""
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(1.0)
    y = overlap_save(x, jnp.ones((3, 3, 1, 1)), (1, 1), (2, 2))[0, :, :, 0]
    np.testing.assert_allclose(y, np.pad(np.ones((3, 3)), (0, 1)), atol=1e-6)


def test_choice_of_tiles() -> None:
    """The mask head's 3x3 on some hundred crops in quarters; large kernels, many crops and odd maps whole."""
    head = (3, 3, 256, 256)
    assert best_tiles((100, 14, 14, 256), head, (1, 1)) == (2, 2)
    assert best_tiles((1000, 14, 14, 256), head, (1, 1)) == (1, 1)
    assert best_tiles((100, 14, 14, 256), (7, 7, 256, 256), (3, 3)) == (1, 1)
    assert best_tiles((100, 7, 7, 256), head, (1, 1)) == (1, 1)
    assert in_tiles((100, 14, 14, 256), head, (1, 1), (2, 2)) == ((400, 9, 9, 256), (0, 0))
    assert in_tiles((100, 14, 14, 256), head, (1, 1), (1, 1)) == ((100, 14, 14, 256), (1, 1))


@pytest.mark.parametrize("n", [1, 300])
def test_chosen_convolution_is_the_direct_one(n: int) -> None:
    x, k = arrays((14, 14), (3, 3), n)
    np.testing.assert_allclose(fourier_conv(x, k, (1, 1)), direct(x, k, (1, 1)), atol=1e-4)


def test_predicted_gain() -> None:
    """Ratios measured with the benchmark on one core, and how near the prediction is."""
    for shape, kernel, padding, measured in (
        ((4000, 7, 7, 256), (7, 7, 256, 256), (3, 3), 11.7),
        ((1000, 7, 7, 256), (7, 7, 256, 384), (3, 3), 11.2),
        ((1000, 7, 7, 256), (7, 3, 256, 128), (1, 1), 3.1),
        ((4000, 7, 7, 256), (3, 3, 256, 256), (1, 1), 3.0),
        ((400, 14, 14, 256), (7, 7, 256, 256), (3, 3), 6.7),
        ((100, 14, 14, 256), (3, 3, 256, 256), (1, 1), 1.6),  # in quarters
    ):
        assert predicted_gain(shape, kernel, padding) == pytest.approx(measured, rel=0.12)
    assert predicted_gain((1, 200, 272, 256), (3, 3, 256, 256), (1, 1)) < 0.1


def test_predicted_gain_of_few_crops_is_careful() -> None:
    """Their share of the weights' spectra costs less where memory comes in large pages, which not every machine has."""
    for shape, kernel, padding, measured in (
        ((20, 7, 7, 256), (7, 7, 256, 256), (3, 3), 3.4),
        ((16, 5, 5, 512), (3, 3, 512, 512), (1, 1), 0.9),
    ):
        assert 0.4 * measured < predicted_gain(shape, kernel, padding) < measured


def test_errors() -> None:
    x, k = arrays((6, 6), (3, 3))
    with pytest.raises(ValueError, match="6x6 outputs cannot be cut into 4x2 equal tiles"):
        overlap_save(x, k, (1, 1), (4, 2))
    with pytest.raises(ValueError, match="leaves no output"):
        fourier_conv(x, jnp.zeros((9, 9, *k.shape[2:])), (0, 0))
