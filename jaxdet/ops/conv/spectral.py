"""Convolution of many small maps by large kernels, in the Fourier domain.

A 7x7 kernel on a 7x7 map takes 2401 products for each pair of channels.  On a torus of 10x10 points the same outputs
take one complex product for each frequency; the spectrum of real values is Hermitian, so 4 real and 48 complex
frequencies are left, and a complex product is three real ones: 148 products (:func:`products`).

**Length of the torus.**  For output i in 0 .. h + 2p - k, pixel i + j - p meets tap j.  Without a torus, outputs are
nonzero for i in p - k + 1 .. h + p - 1 alone.  A torus of length L adds output i + mL to output i for each integer m;
the wanted ones stay clean as soon as 0 + L > h + p - 1 and h + 2p - k - L < p - k + 1: both say L >= h + p.

**Everything is a dense product.**  With three constant matrices, the transforms, in which the additions of the
three-product rule are folded, an output is ``outputs @ ((maps @ x) * (kernels @ k))`` for one pair of channels; with
all channels the product in the middle is a batch of matrix products, one for each of the 148.

Letters in shapes: N or n crops, h w and h' w' rows and columns of maps and outputs, P positions (h * w or h' * w'),
C and F channels, kh kw a kernel, R real products for each pair of channels.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxdet.ops.devices import devices_of_arrays

# Bytes of transformed input and output of one chunk of crops, which bounds the memory of a large batch.  Each chunk
# reads the weights' spectra anew (39 MB for a 7x7 kernel and 256 channels), products of few crops are slow, and a loop
# over chunks copies: on a CPU, SBR-CNN's prediction takes a seventh less time than with 48 MB (1000 crops are one chunk
# now), and its training step a quarter less, with 6 GB of temporary arrays in place of 14.
CHUNK_BYTES = 400 * 2**20
# Fewer crops than these make thin matrix products, whatever the memory.
MIN_CHUNK = 48


class _Transforms(NamedTuple):
    """The constant matrices, float64: ``maps [R, h*w]``, ``kernels [R, kh*kw]``, ``outputs [h'*w', R]``."""

    maps: NDArray[np.float64]
    kernels: NDArray[np.float64]
    outputs: NDArray[np.float64]


def products(hw: tuple[int, int], padding: tuple[int, int]) -> int:
    """Real products for each pair of channels, R: one for a real frequency, three for a pair of conjugate ones."""
    lengths = [size + pad for size, pad in zip(hw, padding, strict=True)]
    # A frequency is its own conjugate if it is 0 or half the length along both axes; odd lengths have no half.
    real = int(np.prod([2 - length % 2 for length in lengths]))
    return real + 3 * (int(np.prod(lengths)) - real) // 2


def output_hw(shape: Sequence[int], kernel: Sequence[int], padding: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the output for shapes [N, h, w, C] and [kh, kw, C, F]; not above 0 where nothing is left."""
    return shape[1] + 2 * padding[0] - kernel[0] + 1, shape[2] + 2 * padding[1] - kernel[1] + 1


def multiplications(
    shape: tuple[int, int, int, int], kernel: tuple[int, int, int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """What the direct convolution, with the zeros around the map, and the spectral one, with its transforms, take.

    ``shape`` is [N, h, w, C], ``kernel`` [kh, kw, C, F].
    """
    n, h, w, _ = shape
    kh, kw, channels, features = kernel
    outputs = math.prod(output_hw(shape, kernel, padding))
    pairs = channels * features
    transforms = n * (h * w * channels + outputs * features) + kh * kw * pairs
    return n * outputs * kh * kw * pairs, products((h, w), padding) * (n * pairs + transforms)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def spectral_conv(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """Correlation of ``x [N, h, w, C]`` with ``kernel [kh, kw, C, F]``: ``[N, h + 2p - kh + 1, w + 2q - kw + 1, F]``.

    ``padding`` is (p, q) zeros on both sides of (rows, columns), stride 1.  Equal to the direct convolution within
    about 1e-6 of the outputs' spread in float32; sums are float32 whatever the type, products and result are of the
    type of ``x``.  Chunks of crops are treated one after another, so that the spectra take little memory; the spectra
    are not kept for the gradient, they are made again.

    Raises:
        ValueError: channels of map and kernel differ, or no output is left.
    """
    transforms, rows_columns = _transforms_for(x, kernel, padding)
    # Outside the loop over chunks: the kernels are the same in all of them.
    weights = _weights(transforms, kernel, x.dtype)

    def convolved(chunk: jax.Array) -> jax.Array:
        return _from_rows(transforms.outputs, _contract(_to_rows(transforms.maps, chunk), weights), x.dtype)

    def share(x: jax.Array) -> jax.Array:
        size = _chunk(len(x), len(transforms.maps) * sum(kernel.shape[2:]))
        return _joined(jax.lax.map(convolved, _split(x, size)), len(x))

    return _in_shares(share, x).reshape(len(x), *rows_columns, kernel.shape[3])


def _forward(
    x: jax.Array, kernel: jax.Array, padding: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return spectral_conv(x, kernel, padding), (x, kernel)


def _backward(
    padding: tuple[int, int], saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Each product's gradient is a product; the gradients of the weights' spectra are summed over the chunks."""
    x, kernel = saved
    transforms, _ = _transforms_for(x, kernel, padding)
    # [R, F, C]: errors of outputs go back to inputs.  The transforms are transposed in the same way below.
    weights = _weights(transforms, kernel, x.dtype).swapaxes(1, 2)

    def step(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        spectra = _to_rows(transforms.maps, chunk[0])
        errors = _to_rows(transforms.outputs.T, chunk[1])
        back = _from_rows(transforms.maps.T, _contract(errors, weights), x.dtype)
        return total + _contract(spectra.swapaxes(1, 2), errors), back

    def share(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = _chunk(len(x), len(transforms.maps) * sum(kernel.shape[2:]))
        # Summed in the Fourier domain, [R, C, F], and transformed back once.
        total = jnp.zeros((len(weights), *kernel.shape[2:]), jnp.float32)
        total, back = jax.lax.scan(step, total, (_split(x, size), _split(gradient, size)))
        return _joined(back, len(x)), _product(transforms.kernels.T, total.reshape(len(total), -1))

    # Each share has a gradient of the kernel of its own; their sum is where devices talk to each other.
    d_x, d_taps = _in_shares(share, x, gradient)
    return d_x.reshape(x.shape), d_taps.sum(0).reshape(kernel.shape).astype(kernel.dtype)


spectral_conv.defvjp(_forward, _backward)


def _transforms_for(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> tuple[_Transforms, tuple[int, int]]:
    """The matrices, and the output's rows and columns."""
    rows_columns = checked_output_hw(x, kernel, padding)
    return _transforms(x.shape[1:3], kernel.shape[:2], rows_columns, padding), rows_columns


def checked_output_hw(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> tuple[int, int]:
    """:func:`output_hw`; ValueError as in :func:`spectral_conv`."""
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"expected a kernel [kh, kw, {x.shape[-1]}, F] for a map {x.shape}, got {kernel.shape}")
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    outputs = output_hw(x.shape, kernel.shape, padding)
    if min(outputs) < 1:
        raise ValueError(f"a {kh}x{kw} kernel with padding {padding} on a {h}x{w} map leaves no output; pad more")
    return outputs


@lru_cache
def _transforms(
    hw: tuple[int, int], kernel: tuple[int, int], output: tuple[int, int], padding: tuple[int, int]
) -> _Transforms:
    """The three-product rule: (a + ib)(c + id) = m1 - m3 + i(m1 + m2), m1 = c(a + b), m2 = a(d - c), m3 = b(c + d)."""
    lengths = np.add(hw, padding)
    real, paired = _frequencies(lengths)
    # Turns a pixel.  float64 up to the finished matrices: they are constants, and their rounding is all the error.
    frequencies = np.concatenate([real, paired]) / lengths
    # Correlation with taps j is convolution with a kernel that has tap j at p - j.
    x, k = _waves(frequencies, -_grid(hw)), _waves(frequencies, _grid(kernel) - np.array(padding))
    y = _waves(frequencies, _grid(output)).T / lengths.prod()
    # Spectra a + ib of maps and c + id of kernels; the first s frequencies are real, and need m1 alone.
    a, b, c, d, s = x.real, x.imag, k.real, k.imag, len(real)
    p, q = 2 * y.real, -2 * y.imag  # each paired frequency stands for two conjugate ones
    # Rows in the order m0 (real frequencies), m1, m2, m3; outputs are p (m1 - m3) + q (m1 + m2).
    return _Transforms(
        maps=np.concatenate([a[:s], (a + b)[s:], a[s:], b[s:]]),
        kernels=np.concatenate([c[:s], c[s:], (d - c)[s:], (c + d)[s:]]),
        outputs=np.concatenate([y.real[:, :s], (p + q)[:, s:], q[:, s:], -p[:, s:]], 1),
    )


def _grid(hw: NDArray[np.int64] | tuple[int, int]) -> NDArray[np.int64]:
    return np.indices(tuple(hw)).reshape(2, -1).T


def _frequencies(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The frequencies that are their own conjugate, and one of each pair of conjugates, ``[*, 2]``."""
    every = _grid(lengths)
    number, conjugate = (f[:, 0] * lengths[1] + f[:, 1] for f in (every, -every % lengths))
    return every[number == conjugate], every[number < conjugate]


def _waves(frequencies: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.complex128]:
    return np.exp(2j * np.pi * frequencies @ positions.T)


def _product(matrix: NDArray[np.float64], values: jax.Array) -> jax.Array:
    # _Transforms are float32 in every dtype: they add and cancel, and cost little beside the products.
    return jnp.asarray(matrix, jnp.float32) @ values.astype(jnp.float32)


def _weights(transforms: _Transforms, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Spectra of the kernels ``[R, C, F]``."""
    taps = kernel.reshape(-1, kernel.shape[2] * kernel.shape[3])
    return _product(transforms.kernels, taps).reshape(-1, *kernel.shape[2:]).astype(dtype)


def _to_rows(matrix: NDArray[np.float64], chunk: jax.Array) -> jax.Array:
    """``[R, P]`` times ``[n, P, C]``: ``[R, n, C]``, as one matrix product."""
    n, positions, channels = chunk.shape
    rows = _product(matrix, chunk.swapaxes(0, 1).reshape(positions, -1))
    return rows.reshape(-1, n, channels).astype(chunk.dtype)


def _from_rows(matrix: NDArray[np.float64], rows: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``[P, R]`` times ``[R, n, C]``: ``[n, P, C]``."""
    count, n, channels = rows.shape
    return _product(matrix, rows.reshape(count, -1)).reshape(-1, n, channels).swapaxes(0, 1).astype(dtype)


def _contract(left: jax.Array, right: jax.Array) -> jax.Array:
    """A batch of matrix products, summed in float32."""
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _in_shares(apply: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Call ``apply`` with each of D shares ``[N / D, ...]`` of each array ``[N, ...]`` and stack the results.

    D is the number of devices, or 1 where that does not divide N.

    The crops may be split over the devices.  A loop over chunks of all crops would bring each chunk to every device;
    loops over the chunks of each share, run side by side, leave the crops where they are.
    """
    n = len(arrays[0])
    devices = devices_of_arrays()
    shares = devices if n % devices == 0 else 1
    if shares == 1:  # an axis of one would cost the products nearly twice the time on a CPU
        return jax.tree.map(lambda y: y[None], apply(*arrays))
    return jax.vmap(apply)(*(x.reshape(shares, n // shares, *x.shape[1:]) for x in arrays))


def _chunk(n: int, values: int) -> int:
    """Crops in a chunk, ``values`` spectral values each: a divisor of ``n``, about as large as allowed."""
    most = max(MIN_CHUNK, CHUNK_BYTES // (4 * values))
    if n <= most:
        return max(n, 1)
    # A divisor leaves no crops of zeros in the last chunk; one below half the size would double the chunks.
    return next((size for size in range(most, most // 2, -1) if n % size == 0), most)


def _split(x: jax.Array, size: int) -> jax.Array:
    """``[N, h, w, C]`` as ``[chunks, size, h*w, C]``, the last chunk filled up with zeros."""
    n, h, w, channels = x.shape
    x = jnp.pad(x, ((0, -n % size), (0, 0), (0, 0), (0, 0)))
    return x.reshape(-1, size, h * w, channels)


def _joined(chunks: jax.Array, n: int) -> jax.Array:
    """``[chunks, size, h*w, C]`` as ``[N, h*w, C]``, without what filled the last chunk up."""
    return chunks.reshape(-1, *chunks.shape[2:])[:n]
