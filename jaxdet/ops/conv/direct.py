"""Convolutions whose weight gradient is a matrix product for each tap of the kernel.

The gradient of a kernel is itself a convolution, whose window is the whole map.  XLA:CPU computes that at a third of
the speed of the forward pass, and inside a loop tens of times slower still (jax 0.10.2).  As products, one for each
place of the kernel, of the map moved there with the gradient of the output, it is nearly as fast as the forward pass,
in a loop too (``benchmarks/ops/weight_gradients.py``).

Letters in shapes: B images, H W and H' W' rows and columns of input and output, C and F channels, kh kw a kernel.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.devices import backend

Pads = tuple[int, int]
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

# Below these XLA's own way is as fast.
_MIN_CHANNELS = 16
_MIN_FLOPS = 2e8
# Bytes that the copies of the input for all taps take at once: they stay in the cache between copy and product.  Those
# of a whole map at stride 4 would be 600 MB.
_COPIES = 2**23


def direct_conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Correlation of ``x [B, H, W, C]`` with ``kernel [kh, kw, C, F]``, ``pads`` zeros around (rows, columns)."""
    # What is slow was measured on CPUs in float32; elsewhere XLA's own gradient stays.
    by_products = backend() == "cpu" and x.dtype == jnp.float32 and _is_large(x, kernel, stride)
    return (conv_with_products if by_products else _conv)(x, kernel, stride, pads)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_with_products(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """As :func:`direct_conv`, always with :func:`weight_gradient` as the gradient of the kernel."""
    return _conv(x, kernel, stride, pads)


def weight_gradient(x: jax.Array, dy: jax.Array, size: tuple[int, ...], stride: int, pads: Pads) -> jax.Array:
    """Gradient ``[kh, kw, C, F]`` of a kernel of ``size``, from the input and the gradient ``dy [B, H', W', F]``."""
    ph, pw = pads
    # Padded here, so that every tap is a slice without a border of its own.
    x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    height = dy.shape[1]
    rows = _rows_at_once(dy, x.shape[-1], size)

    def of_rows(first: jax.Array | int, count: int) -> jax.Array:
        read = jax.lax.dynamic_slice_in_dim(x, first * stride, stride * (count - 1) + size[0], axis=1)
        return _taps(read, jax.lax.dynamic_slice_in_dim(dy, first, count, axis=1), size, stride)

    if rows >= height:
        return _taps(x, dy, size, stride)
    turns, rest = divmod(height, rows)
    total = of_rows(turns * rows, rest) if rest else jnp.zeros((*size, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.lax.fori_loop(0, turns, lambda k, total: total + of_rows(k * rows, rows), total)


def _taps(x: jax.Array, dy: jax.Array, size: tuple[int, ...], stride: int) -> jax.Array:
    """The gradient from all rows of ``dy``, of an ``x`` that is padded."""
    _, height, width, _ = dy.shape
    # From the first pixel that a tap reads to its last one.
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1

    def product(i: int, j: int) -> jax.Array:
        read = x[:, i : i + rows : stride, j : j + columns : stride]
        # XLA:CPU transposes the first factor: that is the same one for all taps.
        return jnp.tensordot(dy, read, axes=((0, 1, 2), (0, 1, 2))).T

    taps = [product(i, j) for i, j in np.ndindex(*size)]
    return jnp.stack(taps).reshape(*size, *taps[0].shape)


def _rows_at_once(dy: jax.Array, channels: int, size: tuple[int, ...]) -> int:
    """Rows of the output whose taps are copied together: XLA makes the copies of all taps before their products."""
    batch, _, width, _ = dy.shape
    return max(_COPIES // (size[0] * size[1] * batch * width * channels * dy.dtype.itemsize), 1)


def _conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    padding = tuple((pad, pad) for pad in pads)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=CHANNELS_LAST)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride, pads), (x, kernel)


def _backward(stride: int, pads: Pads, kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # The convolution is linear in x, so its transpose is the gradient, without a forward pass for it.
    (dx,) = jax.linear_transpose(lambda x: _conv(x, kernel, stride, pads), x)(dy)
    return dx, weight_gradient(x, dy, kernel.shape[:2], stride, pads)


conv_with_products.defvjp(_forward, _backward)


def _is_large(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    pixels = x.shape[0] * x.shape[1] * x.shape[2] / stride**2
    return min(kernel.shape[2:]) >= _MIN_CHANNELS and 2 * pixels * kernel.size >= _MIN_FLOPS
