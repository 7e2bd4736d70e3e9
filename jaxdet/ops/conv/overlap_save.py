"""Convolution of small maps in the Fourier domain, whole or in quarters, whichever takes less.

A torus has to be as long as the map, and the longer it is, the larger are its transforms and the weights' spectra: for
a 3x3 kernel on a 14x14 map it has 15x15 points and 337 products.  Cut into four quarters of 7x7 outputs, which read
9x9 pixels each (*overlap-save*: neighbours share the pixels at the border, and nothing has to be added up), it is 121
products for four times as many maps.

Letters in shapes: N maps, h w their rows and columns, C and F channels, kh kw a kernel, p q its padding.
"""

import math

import jax
import jax.numpy as jnp

from jaxdet.ops.conv.spectral import checked_output_hw, multiplications, output_hw, products, spectral_conv

_Shape4 = tuple[int, int, int, int]

# Multiplications done in the time that one value takes on a CPU, measured: of the weights' spectra to be written and
# read, and of tiles to be cut out or put together.
_SPECTRUM_COST = 150
_COPY_COST = 150


def fourier_conv(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """:func:`~jaxdet.ops.conv.spectral.spectral_conv`, same arguments, result and errors, of the :func:`best_tiles`."""
    (n, h, w, c), (kh, kw, _, f) = x.shape, kernel.shape
    return overlap_save(x, kernel, padding, best_tiles((n, h, w, c), (kh, kw, c, f), padding))


def overlap_save(x: jax.Array, kernel: jax.Array, padding: tuple[int, int], tiles: tuple[int, int]) -> jax.Array:
    """``x [N, h, w, C]`` convolved in ``tiles`` (rows, columns) of equal size, each a map of its own.

    Raises:
        ValueError: ``tiles`` do not divide the output, or what `spectral_conv` raises.
    """
    n, (rows, columns) = len(x), checked_output_hw(x, kernel, padding)
    if rows % tiles[0] or columns % tiles[1]:
        raise ValueError(f"{rows}x{columns} outputs cannot be cut into {tiles[0]}x{tiles[1]} equal tiles")
    if tiles == (1, 1):
        return spectral_conv(x, kernel, padding)
    high, wide = rows // tiles[0], columns // tiles[1]
    (p, q), (kh, kw) = padding, kernel.shape[:2]
    # Tiles get their zeros here: inside the map a tile's border holds pixels of its neighbour, not padding.
    x = jnp.pad(x, ((0, 0), (p, p), (q, q), (0, 0)))
    corners = [(i, j) for i in range(0, rows, high) for j in range(0, columns, wide)]
    # [N, tiles, high + kh - 1, wide + kw - 1, C]: what the outputs of a tile read.
    cut = jnp.stack([x[:, i : i + high + kh - 1, j : j + wide + kw - 1] for i, j in corners], 1)
    y = spectral_conv(cut.reshape(n * len(corners), *cut.shape[2:]), kernel, (0, 0))
    # [N, tile row, tile column, row, column, F] -> [N, tile row, row, tile column, column, F], which is the map.
    y = y.reshape(n, *tiles, *y.shape[1:]).swapaxes(2, 3)
    return y.reshape(n, rows, columns, y.shape[-1])


def best_tiles(shape: _Shape4, kernel: _Shape4, padding: tuple[int, int]) -> tuple[int, int]:
    """(1, 1), the whole map, or (2, 2), quarters, whichever is predicted to take less.

    ``shape`` is [N, h, w, C], ``kernel`` [kh, kw, C, F].
    """
    if any(side % 2 for side in output_hw(shape, kernel, padding)):
        return (1, 1)
    return min((1, 1), (2, 2), key=lambda tiles: _cost(shape, kernel, padding, tiles))


def predicted_gain(shape: _Shape4, kernel: _Shape4, padding: tuple[int, int]) -> float:
    """Time of the direct convolution, divided by that of :func:`fourier_conv`, on a CPU.

    Arguments as :func:`best_tiles`.

    Both run at about the same rate but for what is traffic: the spectra of the weights, which few crops do not pay
    for, and cutting.  On one core gains are as predicted for many crops, half of it for kernels of 3x7 on 3x7 maps, and
    up to twice as much for few crops (``benchmarks/ops/small_convs.py``).
    """
    direct, _ = multiplications(shape, kernel, padding)
    return direct / _cost(shape, kernel, padding, best_tiles(shape, kernel, padding))


def in_tiles(
    shape: _Shape4, kernel: _Shape4, padding: tuple[int, int], tiles: tuple[int, int]
) -> tuple[_Shape4, tuple[int, int]]:
    """Shape of the maps, and the padding, that the spectral convolution gets for these tiles."""
    if tiles == (1, 1):
        return shape, padding
    rows, columns = output_hw(shape, kernel, padding)
    high, wide = rows // tiles[0] + kernel[0] - 1, columns // tiles[1] + kernel[1] - 1
    return (shape[0] * tiles[0] * tiles[1], high, wide, shape[3]), (0, 0)


def _cost(shape: _Shape4, kernel: _Shape4, padding: tuple[int, int], tiles: tuple[int, int]) -> int:
    """Time, in units of one multiplication."""
    maps, padding = in_tiles(shape, kernel, padding, tiles)
    _, spectral = multiplications(maps, kernel, padding)
    spectra = products(maps[1:3], padding) * kernel[2] * kernel[3]
    # What is cut out (the maps of the tiles) and what is put together (their outputs).
    values = math.prod(maps) + maps[0] * math.prod(output_hw(maps, kernel, padding)) * kernel[3]
    copied = 0 if tiles == (1, 1) else values
    return spectral + _SPECTRUM_COST * spectra + _COPY_COST * copied
