"""Deformable convolution (Dai et al. 2017, v1; Zhu et al. 2019, v2): every tap reads where an offset moves it.

What the taps of a pixel read is written down as a block of the kernel's size, in a map that is that many times larger;
over it the kernel goes in steps of its own size, an ordinary convolution.  What a tap reads are rows of channels of the
four pixels around, by gathers with bilinear weights as in RoIAlign.  The map of samples is not kept for the backward
pass but made again there, since it is nine times as large as the input and quick to make.

Letters in shapes: B images, H W rows and columns of the input, h w of the output, k those of the kernel, G groups of
channels that move together, C F channels in and out, c = C / G, S any shape.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.bilinear import Taps, corners, taps
from jaxdet.ops.conv.direct import direct_conv
from jaxdet.ops.conv.grouped import grouped_conv

_Weights = tuple[jax.Array, ...]
"""Of the four pixels around each sample, each ``[B, h, k, w, k, G]``: upper left, upper right, lower left and right."""


def deform_conv(
    x: jax.Array,
    kernel: jax.Array,
    offsets: jax.Array,
    mask: jax.Array | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """``[B, h, w, F]`` of ``x [B, H, W, C]`` and ``kernel [k, k, C, F]``, of a grouped one ``[k, k, C / groups, F]``.

    ``offsets [B, h, w, G * k * k * 2]`` are (y, x) in pixels of ``x``, tap by tap, row by row, for each of G groups of
    C / G channels; G follows from their number.  ``mask [B, h, w, G * k * k]`` multiplies what a tap reads (v2); None
    is v1.  Around the map lie zeros: a sample between the map and them is interpolated, one that is a pixel or more
    outside is 0, and its offset has no gradient.  Positions, weights and sums of pixels are float32, whatever the
    dtype of ``x``, which is that of the convolution.

    Raises:
        ValueError: numbers of channels that do not fit each other, maps of another size than the output, a kernel that
            is not square.
    """
    groups = _check(x, kernel, offsets, mask, stride, padding, dilation)
    (batch, high, wide, channels), size = x.shape, kernel.shape[0]
    rows, columns = offsets.shape[1:3]
    # With a border of zeros, what a sample reads beyond the map is in the table like any other pixel.
    table = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, high + 2, wide + 2, groups, -1)

    def by_tap(numbers: jax.Array) -> jax.Array:
        """``[B, h, w, G * k * k * n]`` as float32 ``[B, h, k, w, k, G, n]``: pixel row, tap row, column, column."""
        parts = numbers.astype(jnp.float32).reshape(batch, rows, columns, groups, size, size, -1)
        return parts.transpose(0, 1, 4, 2, 5, 3, 6)

    moves = by_tap(offsets)
    # [h, k, 1, 1, 1] and [1, 1, w, k, 1]: where taps lie without an offset, in pixels of the map.
    reach = np.arange(size) * dilation - padding
    rests = [jnp.asarray(np.arange(number)[:, None] * stride + reach) for number in (rows, columns)]
    down = _bordered(rests[0][:, :, None, None, None] + moves[..., 0], high)
    across = _bordered(rests[1][None, None, :, :, None] + moves[..., 1], wide)
    found = corners(down, across, jnp.int32(wide + 2))
    # The row of the upper left pixel in a table of pixels and groups; the others are one to the right, one below.
    first = found[0][0] * groups + np.arange(groups)
    strength = 1.0 if mask is None else by_tap(mask)[..., 0]
    weights = tuple(weight * strength for _, weight in found)

    @jax.checkpoint
    def convolve(table: jax.Array, kernel: jax.Array, weights: _Weights) -> jax.Array:
        samples = sample(table, first, weights).reshape(batch, rows * size, columns * size, channels)
        conv = direct_conv if kernel.shape[2] == channels else grouped_conv
        return conv(samples, kernel, size, (0, 0))

    return convolve(table, kernel, weights)


@jax.custom_vjp
def sample(table: jax.Array, first: jax.Array, weights: _Weights) -> jax.Array:
    """Weighted sums ``[B, h, k, w, k, G, c]`` of 2x2 pixels of ``table [B, H, W, G, c]``, in its dtype.

    ``first [B, h, k, w, k, G]`` is the upper left one as a row of the flattened ``[H * W * G, c]``; all four lie in the
    table.  Summed in float32; differentiable in table and weights.
    """
    pairs = zip(_four(table, first), weights, strict=True)
    return jnp.asarray(sum(pixels * weight[..., None] for pixels, weight in pairs)).astype(table.dtype)


_Kept = tuple[jax.Array, jax.Array, _Weights]


def _forward(table: jax.Array, first: jax.Array, weights: _Weights) -> tuple[jax.Array, _Kept]:
    return sample(table, first, weights), (table, first, weights)


def _backward(kept: _Kept, grad: jax.Array) -> tuple[jax.Array, None, _Weights]:
    """The gather turned into a scatter-add; the gradient of a weight is the product of its pixels with ``grad``."""
    table, first, weights = kept
    grad = grad.astype(jnp.float32)
    total = jnp.zeros(table.shape, jnp.float32)
    by_weight: list[list[jax.Array]] = [[] for _ in weights]
    # A row of taps after the other: what is read and scattered here is four times as large as the samples.
    for p in range(first.shape[2]):
        given = grad[:, :, p]
        for products, pixels in zip(by_weight, _four(table, first[:, :, p]), strict=True):
            # As products of matrices: XLA:CPU takes six times as long for a sum over the last axis.
            products.append(jnp.einsum("...c,...c->...", pixels.astype(jnp.float32), given))
        squares = jnp.stack([given * weight[:, :, p, ..., None] for weight in weights], -2)
        total = jax.vmap(_add_squares)(total, first[:, :, p], squares)
    return total.astype(table.dtype), None, tuple(jnp.stack(products, 2) for products in by_weight)


sample.defvjp(_forward, _backward)


def _four(table: jax.Array, first: jax.Array) -> list[jax.Array]:
    """Pixels ``[B, *S, c]`` of ``table [B, H, W, G, c]``: at ``first [B, *S]``, right of it, below and right below."""
    _, _, width, groups, _ = table.shape
    rows = table.reshape(len(table), -1, table.shape[-1])

    # All are inside of the table, so that there is nothing to check: "clip" is the cheapest way to read.
    def gather(index: jax.Array) -> jax.Array:
        return jax.vmap(lambda rows, index: jnp.take(rows, index, axis=0, mode="clip"))(rows, index)

    return [gather(first + away * groups) for away in (0, 1, width, width + 1)]


def _add_squares(table: jax.Array, first: jax.Array, squares: jax.Array) -> jax.Array:
    """``table [H, W, G, c]`` with ``squares [*S, 4, c]`` added to the 2x2 pixels from ``first [*S]`` on.

    One update of a scatter for four pixels: on a CPU it takes as long as for one.
    """
    _, width, groups, channels = table.shape
    pixel, group = first.reshape(-1) // groups, first.reshape(-1) % groups
    at = jnp.stack([pixel // width, pixel % width, group], -1)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(2,), scatter_dims_to_operand_dims=(0, 1, 2)
    )
    updates = squares.reshape(-1, 2, 2, channels)
    return jax.lax.scatter_add(table, at, updates, numbers, mode="promise_in_bounds")


def _bordered(position: jax.Array, extent: int) -> Taps:
    """Taps in a map of ``extent`` pixels along this axis that has a border of one pixel of zeros.

    The lower pixel is never the last one, so that the higher one is always the next.
    """
    found = taps(position + 1.0, jnp.int32(extent + 2))
    low = jnp.minimum(found.low, extent)
    # Exactly a pixel outside, where a fresh layer's padding is, the reference has no gradient of the offset.
    inside = (position > -1.0) & (position < extent)
    return dataclasses.replace(found, low=low, high=low + 1, inside=inside)


def _check(
    x: jax.Array,
    kernel: jax.Array,
    offsets: jax.Array,
    mask: jax.Array | None,
    stride: int,
    padding: int,
    dilation: int,
) -> int:
    """The groups of channels that move together; errors as `deform_conv`."""
    size, columns = kernel.shape[:2]
    if size != columns:
        raise ValueError(f"a deformable convolution needs a square kernel, got {size}x{columns}")
    groups, rest = divmod(offsets.shape[-1], 2 * size**2)
    if rest or groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"offsets: expected {2 * size**2} channels, or as many for each of some groups of the input's "
            f"{x.shape[-1]} channels; got {offsets.shape[-1]}"
        )
    reach = dilation * (size - 1) + 1
    hw = tuple((side + 2 * padding - reach) // stride + 1 for side in x.shape[1:3])
    for name, array, each in (("offsets", offsets, 2), ("mask", mask, 1)):
        wanted = (len(x), *hw, groups * size**2 * each)
        if array is not None and array.shape != wanted:
            raise ValueError(f"{name}: expected {wanted}, got {array.shape}")
    return groups
