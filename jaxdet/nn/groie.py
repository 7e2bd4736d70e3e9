"""Generic RoI extractor: every box reads all levels of the pyramid (Rossi et al. 2020 and, as part of SBR-CNN, 2022).

    boxes -> RoIAlign on each level -> pre -> combine -> post

``pre`` and ``post`` are any module that keeps a crop's shape: :class:`ConvReLU`, :class:`RectangularReLU`,
``NonLocal``, ``Attention``, or None.  One ``pre`` serves all levels.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.layers import Conv
from jaxdet.ops.roi_align import roi_align
from jaxdet.structures import Features, select_levels


class ConvReLU(nn.Module):
    """A convolution and a ReLU that keep a crop's shape and channels; parameters ``conv``."""

    kernel: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(Conv(x.shape[-1], self.kernel, name="conv")(x))


class RectangularReLU(nn.Module):
    """A tall convolution, then a wide one, each with a ReLU; the crop between them has ``size - long + short`` rows.

    SBR-CNN's "7x3 -> 3x7", padded by 1 and 3 on all sides, as in its detection head.  Parameters ``tall``, ``wide``.
    """

    long: int = 7
    short: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        tall, wide = (self.long, self.short), (self.short, self.long)
        x = nn.relu(Conv(x.shape[-1], tall, padding=self.short // 2, name="tall")(x))
        return nn.relu(Conv(x.shape[-1], wide, padding=self.long // 2, name="wide")(x))


class GRoIE(nn.Module):
    """Crops from all levels, combined (Rossi et al. 2020, section III); parameters ``pre``, ``post``, ``reduce``.

    ``combine``:
      - ``"sum"``: the sum over levels.  "sum+" of the paper's Table II is the sum with ``post=ConvReLU(1)``.
      - ``"concat"``: all levels' channels, reduced to one level's by ``reduce``, a 1x1 convolution and a ReLU.
      - ``"random"``: one level a box.  Extractors have no random key: a hash of the box's coordinates draws it, so a
        box reads the same level whenever it is met, in training and in testing.

    ``relu`` puts a ReLU behind ``pre``, also where that is None: the first release (mmdet 1.x, which made the paper's
    tables) did so, the later ones do not.  Where ``pre`` ends with a ReLU it changes nothing.
    """

    size: int = 7
    pre: nn.Module | None = None
    combine: Literal["sum", "concat", "random"] = "sum"
    post: nn.Module | None = None
    sampling_ratio: int = 2
    aligned: bool = True
    levels: tuple[int, ...] = (2, 3, 4, 5)
    relu: bool = False

    @nn.compact
    def __call__(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        """Crops ``[B, N, size, size, C]`` of ``boxes [B, N, 4]``; invalid ones are 0."""
        crops = self._pool(features, boxes, valid)
        b, reads, n, h, w, c = crops.shape
        x = crops.reshape(b * reads * n, h, w, c)
        x = x if self.pre is None else self.pre(x)
        x = (nn.relu(x) if self.relu else x).reshape(crops.shape)
        if self.combine == "concat":
            x = jnp.moveaxis(x, 1, -2).reshape(b * n, h, w, reads * c)
            x = nn.relu(Conv(c, 1, name="reduce")(x))
        else:
            x = x.sum(1).reshape(b * n, h, w, c)
        x = x if self.post is None else self.post(x)
        # A crop of zeros does not stay one: convolutions have biases.
        return jnp.where(valid[..., None, None, None], x.reshape(b, n, h, w, c), 0)

    def _pool(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        """Crops ``[B, R, N, size, size, C]``, where R is the number of levels that each box reads."""
        level = self.read_levels(boxes)
        b, reads, n = level.shape
        crops = roi_align(
            select_levels(features, self.levels, "the extractor"),
            [2.0**-level for level in self.levels],
            jnp.broadcast_to(boxes[:, None], (b, reads, n, 4)).reshape(b, reads * n, 4),
            level.reshape(b, reads * n),
            jnp.broadcast_to(valid[:, None], level.shape).reshape(b, reads * n),
            size=(self.size, self.size),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )
        return crops.reshape(b, reads, n, *crops.shape[2:])

    def read_levels(self, boxes: jax.Array) -> jax.Array:
        """Positions in ``levels`` that boxes ``[B, N, 4]`` read: ``[B, R, N]`` int32, R one or all of them."""
        if self.combine not in ("sum", "concat", "random"):
            raise ValueError(f'combine is "sum", "concat" or "random", got {self.combine!r}')
        number = len(self.levels)
        if self.combine == "random":
            return hashed(boxes, number)[:, None]
        every = jnp.arange(number, dtype=jnp.int32)[:, None]
        return jnp.broadcast_to(every, (boxes.shape[0], number, boxes.shape[1]))


def hashed(boxes: jax.Array, number: int) -> jax.Array:
    """A number ``[...]`` int32 in ``0 .. number - 1`` for ``boxes [..., 4]``: equal boxes, equal numbers.

    The bits of the four coordinates go through the finaliser of MurmurHash3 one after the other.
    """
    state = jnp.zeros(boxes.shape[:-1], jnp.uint32)
    for word in jnp.moveaxis(jax.lax.bitcast_convert_type(boxes.astype(jnp.float32), jnp.uint32), -1, 0):
        state = state ^ word
        state = (state ^ (state >> 16)) * jnp.uint32(0x85EBCA6B)
        state = (state ^ (state >> 13)) * jnp.uint32(0xC2B2AE35)
        state = state ^ (state >> 16)
    return (state % number).astype(jnp.int32)
