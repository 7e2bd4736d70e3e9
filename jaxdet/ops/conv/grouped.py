"""Grouped convolutions: each group of channels is convolved by itself (ResNeXt, Xie et al. 2017).

XLA:CPU computes one with ``feature_group_count`` four to five times slower than the same as convolutions of its own for
some channels at a time, and its gradients fifty times slower and more (jax 0.10.2,
``benchmarks/ops/grouped_conv.py``).  Groups of few channels are joined into a dense block whose other weights are 0: 16
channels at once cost no more than 8, so that the zeros are free.  Where every channel is a group of its own
(depthwise), it is a sum of the taps, each the map moved and scaled.

Letters in shapes: B images, H W rows and columns, C F channels in and out, kh kw a kernel, n blocks.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.conv.direct import CHANNELS_LAST, Pads, direct_conv
from jaxdet.ops.devices import backend

# Fewer channels in a block leave the vector units of a CPU empty, more are products with zeros.
_BLOCK_CHANNELS = 32


def grouped_conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Correlation of ``x [B, H, W, C]`` with ``kernel [kh, kw, C / groups, F]``, ``pads`` zeros around (rows, columns).

    Output channels ``F / groups`` at a time read ``C / groups`` channels; how many groups there are follows from the
    shapes.  On CPUs in dense blocks, elsewhere as XLA does it.  Errors as `count_groups`.
    """
    groups = count_groups(x, kernel)
    if backend() != "cpu":
        padding = tuple((pad, pad) for pad in pads)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=CHANNELS_LAST,
            feature_group_count=groups,
        )
    if stride == 1 and kernel.shape[2:] == (1, groups):
        return depthwise_conv(x, kernel, pads)
    return conv_in_blocks(x, kernel, stride, pads)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """As :func:`grouped_conv` of a ``kernel [kh, kw, 1, C]`` with stride 1, tap by tap."""
    x = jnp.pad(x, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
    rows, columns = (side - reach + 1 for side, reach in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    taps = [x[:, i : i + rows, j : j + columns] * kernel[i, j, 0] for i, j in np.ndindex(kernel.shape[:2])]
    return jnp.asarray(sum(taps))


_Kept = tuple[jax.Array, jax.Array]


def _forward(x: jax.Array, kernel: jax.Array, pads: Pads) -> tuple[jax.Array, _Kept]:
    return depthwise_conv(x, kernel, pads), (x, kernel)


def _backward(pads: Pads, kept: _Kept, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of the input by the flipped kernel; that of the kernel in a loop, whose program is short."""
    x, kernel = kept
    kh, kw = kernel.shape[:2]
    dx = depthwise_conv(dy, kernel[::-1, ::-1], (kh - 1 - pads[0], kw - 1 - pads[1]))
    padded = jnp.pad(x, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))

    def of_tap(tap: jax.Array) -> jax.Array:
        read = jax.lax.dynamic_slice(padded, (0, tap // kw, tap % kw, 0), dy.shape)
        return (read * dy).sum((0, 1, 2), dtype=jnp.float32)

    return dx, jax.lax.map(of_tap, jnp.arange(kh * kw)).reshape(kernel.shape).astype(kernel.dtype)


depthwise_conv.defvjp(_forward, _backward)


def conv_in_blocks(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """As :func:`grouped_conv`, always in dense blocks."""
    blocks = dense_blocks(kernel, count_groups(x, kernel))
    parts = jnp.split(x, len(blocks), axis=-1)
    convolved = [direct_conv(part, block, stride, pads) for part, block in zip(parts, blocks, strict=True)]
    return jnp.concatenate(convolved, axis=-1)


def count_groups(x: jax.Array, kernel: jax.Array) -> int:
    """The groups of a ``kernel [kh, kw, C / groups, F]`` on ``x [..., C]``.

    Raises:
        ValueError: the channels in, or those out, do not make whole groups.
    """
    channels, (_, _, members, features) = x.shape[-1], kernel.shape
    if channels % members or features % (channels // members):
        raise ValueError(
            f"a grouped convolution of {channels} to {features} channels needs a number of groups that divides both; "
            f"the kernel has {members} channels of each group"
        )
    return channels // members


def dense_blocks(kernel: jax.Array, groups: int) -> jax.Array:
    """Neighbouring groups of ``kernel [kh, kw, C / groups, F]`` as dense kernels ``[n, kh, kw, C / n, F / n]``.

    As few groups are joined as have 32 channels together, or all.
    """
    kh, kw, members, features = kernel.shape
    least = min(_BLOCK_CHANNELS, groups * members)
    joined = next(m for m in range(1, groups + 1) if groups % m == 0 and m * members >= least)
    each = features // groups
    # [kh, kw, members, n, joined, each]: a block's groups, of which each reads its own channels alone.
    parts = kernel.reshape(kh, kw, members, groups // joined, joined, each)
    own = jnp.eye(joined, dtype=kernel.dtype)
    # i, j: the group that is read, and the group that is written.
    blocks = jnp.einsum("hwcnjf,ij->nhwicjf", parts, own)
    return blocks.reshape(groups // joined, kh, kw, joined * members, joined * each)
