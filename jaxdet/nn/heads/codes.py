"""Codes: what a dense head says of a place beyond its class and box, coefficients or embeddings, for masks.

Of tens of thousands of places a hundred become detections, or are trained on, and with nine places in a cell the
convolution that makes codes is the dearest of a head.  So it is computed where codes are read.

Letters in shapes: B images, h w cells of a level, A places in a cell, C channels, c numbers of a code, k rows and
columns of a kernel, M places of all levels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.nn.initializers import Initializer

from jaxdet.nn.blocks.layers import affine, convolve
from jaxdet.ops.devices import apply_cast


@struct.dataclass
class Codes:
    """Codes of all places of a level, as a convolution that is not computed yet.

    `read_codes` computes it at the places that are read, `everywhere` at all of them.
    """

    maps: jax.Array  #: ``[B, h, w, C]``
    kernel: jax.Array  #: ``[k, k, C, A * c]`` float32, k odd
    bias: jax.Array  #: ``[A * c]`` float32
    places: int = struct.field(pytree_node=False, default=1)  #: A
    bounded: bool = struct.field(pytree_node=False, default=False)  #: a tanh follows

    def everywhere(self) -> jax.Array:
        """``[B, h * w * A, c]`` in the order y, x, place."""
        edge = len(self.kernel) // 2
        codes = apply_cast(
            lambda x, kernel, bias: convolve(x, kernel, 1, (edge, edge)) + bias, self.maps, self.kernel, self.bias
        )
        return self.finish(codes).reshape(len(codes), -1, self.kernel.shape[-1] // self.places)

    def finish(self, codes: jax.Array) -> jax.Array:
        """What follows the convolution: a tanh, or nothing."""
        return jnp.tanh(codes) if self.bounded else codes


def read_codes(levels: Sequence[Codes], index: jax.Array) -> jax.Array:
    """Codes ``[B, M, c]`` of the places ``index [B, M]``, counted over all levels, which have one kernel in common."""
    last = levels[0]
    size, edge = len(last.kernel), len(last.kernel) // 2
    padded = [jnp.pad(level.maps, ((0, 0), (edge, edge), (edge, edge), (0, 0))) for level in levels]
    rows = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in padded], axis=1)
    # Of each cell of each level: the row of its window's first pixel, and how many rows later the pixel below it comes.
    corners, widths, first = [], [], 0
    for level, x in zip(levels, padded, strict=True):
        height, width = level.maps.shape[1:3]
        corners.append((first + np.arange(height)[:, None] * x.shape[2] + np.arange(width)).ravel())
        widths.append(np.full(height * width, x.shape[2]))
        first += x.shape[1] * x.shape[2]
    cells, place = index // last.places, index % last.places
    corner, step = (jnp.asarray(np.concatenate(table), jnp.int32)[cells] for table in (corners, widths))
    down, right = (np.repeat(np.arange(size), size), np.tile(np.arange(size), size))
    # [B, M * k * k], then [B, M, k * k * C]: what the kernel covers.
    window = (corner[..., None] + step[..., None] * down + right).reshape(len(index), -1)
    window = jnp.take_along_axis(rows, window[..., None], axis=1).reshape(*index.shape, -1)
    codes = apply_cast(affine, window, last.kernel.reshape(window.shape[-1], -1), last.bias)
    codes = codes.reshape(*index.shape, last.places, -1)
    return last.finish(jnp.take_along_axis(codes, place[..., None, None], axis=2)[:, :, 0])


class CodeLayer(nn.Module):
    """The convolution that makes ``code`` numbers of each of ``places`` in a cell, and with ``bounded`` its tanh."""

    places: int
    code: int
    kernel_init: Initializer
    bounded: bool = False

    @nn.compact
    def __call__(self, maps: jax.Array) -> Codes:
        shape = (3, 3, maps.shape[-1], self.places * self.code)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        return Codes(maps, kernel, bias, self.places, self.bounded)
