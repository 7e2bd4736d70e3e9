"""Grid R-CNN's head (Lu et al. 2019, arXiv 1811.12030, section 3.2): a heat map for each point of a grid.

Letters in shapes: N crops, s rows and columns of a crop, h w rows and columns, C channels, c channels of a point, p
points of a side of the grid, P = p * p, E edges.  Points are numbered column by column (`jaxdet.ops.grids`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer

from jaxdet.nn.blocks.layers import Conv, GroupNorm, gaussian, interleave, kaiming_fan_out, prior_bias
from jaxdet.ops.conv.grouped import grouped_conv
from jaxdet.ops.conv.transposed import double
from jaxdet.ops.devices import apply_cast
from jaxdet.ranges import CHANNELS, Range, check_ranges


def neighbours(points: int) -> list[list[int]]:
    """The points beside each point of a grid of ``points`` a side: left, above, below, right, where there are any."""
    grid = np.arange(points**2).reshape(points, points)  # [column, row]
    beside = []
    for column, row in np.ndindex(points, points):
        places = ((column - 1, row), (column, row - 1), (column, row + 1), (column + 1, row))
        beside.append([int(grid[c, r]) for c, r in places if 0 <= c < points and 0 <= r < points])
    return beside


class _Layer(nn.Module):
    """Kernel and bias of a convolution that is computed together with others."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", kaiming_fan_out, self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


class Fusion(nn.Module):
    """Each point adds what its neighbours send: features through a 5x5 depthwise and a 1x1 convolution (eq. 5).

    ``__call__`` takes ``own`` and ``sent [N, h, w, P * c]``.  Every edge has weights of its own; they are computed as
    one depthwise convolution and one product for all edges.
    """

    points: int
    channels: int

    @nn.compact
    def __call__(self, own: jax.Array, sent: jax.Array) -> jax.Array:
        beside, (n, h, w, _) = neighbours(self.points), own.shape
        edges = [(to, e) for to, senders in enumerate(beside) for e in range(len(senders))]
        senders = np.concatenate(beside)
        c = self.channels
        deep, deep_bias = self._layers("depthwise", edges, (5, 5, 1, c))  # [E, 5, 5, 1, c]
        flat, flat_bias = self._layers("pointwise", edges, (1, 1, c, c))
        x = sent.reshape(n, h, w, self.points**2, c)[:, :, :, senders].reshape(n, h, w, len(edges) * c)
        kernel = jnp.moveaxis(deep, 0, 3).reshape(5, 5, 1, len(edges) * c)
        x = apply_cast(lambda x, k, bias: grouped_conv(x, k, 1, (2, 2)) + bias, x, kernel, deep_bias.reshape(-1))
        x = x.reshape(n, h, w, len(edges), c)
        x = apply_cast(lambda x, k, bias: jnp.einsum("nhwec,ecf->nhwef", x, k) + bias, x, flat[:, 0, 0], flat_bias)
        # Edges stand in the order of the points that they lead to.
        of_points = jnp.split(x, np.cumsum([len(senders) for senders in beside])[:-1], axis=3)
        return own + jnp.concatenate([of_point.sum(3) for of_point in of_points], -1)

    def _layers(
        self, name: str, edges: list[tuple[int, int]], shape: tuple[int, int, int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Kernels ``[E, ..]`` and biases ``[E, c]`` of all edges: ``name{point}_{edge}``."""
        layers = [_Layer(shape, name=f"{name}{to}_{e}")() for to, e in edges]
        return jnp.stack([kernel for kernel, _ in layers]), jnp.stack([bias for _, bias in layers])


class _Double(nn.Module):
    """Transposed convolution that doubles a map, with a 4x4 kernel: ``[N, h, w, C] -> [N, 2h, 2w, features]``."""

    features: int
    groups: int
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (4, 4, x.shape[-1], self.features // self.groups)
        kernel = self.param("kernel", gaussian(0.001), shape)
        bias = self.param("bias", self.bias_init, (self.features,))
        return apply_cast(lambda x, k, bias: interleave(double(x, k, self.groups)) + bias, x, kernel, bias)


class GridHead(nn.Module):
    """Crops ``[N, s, s, C]`` -> logits ``[N, 2s, 2s, P]`` of the heat map of each point inside its region.

    ``convs`` convolutions, the first of which halves the crop, give each point ``channels`` channels; group
    normalisation has ``groups``.  Then points send features to their neighbours, in ``fusions`` orders: in the second
    one what was sent in the first (section 3.2).  Two transposed convolutions, a group for each point, draw the maps.
    """

    points: int = 3
    channels: int = 64
    convs: int = 8
    groups: int = 36
    fusions: int = 2

    def __post_init__(self) -> None:
        many = Range(1, 100)
        check_ranges(self, points=Range(2, 31), channels=CHANNELS, convs=many, groups=CHANNELS, fusions=many)
        super().__post_init__()

    def setup(self) -> None:
        count = self.points**2
        for i in range(1, self.convs + 1):
            setattr(self, f"conv{i}", Conv(count * self.channels, 3, stride=2 if i == 1 else 1))
            setattr(self, f"norm{i}", GroupNorm(groups=self.groups))
        for i in range(1, self.fusions + 1):
            setattr(self, f"fusion{i}", Fusion(self.points, self.channels))
        self.upsample1 = _Double(count * self.channels, count)
        self.upsample_norm = GroupNorm(groups=count)
        self.upsample2 = _Double(count, count, prior_bias(0.01))

    def __call__(self, crops: jax.Array) -> jax.Array:
        """Logits from the fused features: what boxes are made of."""
        return self._maps(self._fused(self._features(crops)))

    def both(self, crops: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits from the fused features, and from those before fusion: what is trained."""
        own = self._features(crops)
        return self._maps(self._fused(own)), self._maps(own)

    def _features(self, crops: jax.Array) -> jax.Array:
        """Features ``[N, s / 2, s / 2, P * c]`` of all points."""
        size = crops.shape[1:3]
        if size[0] != size[1] or size[0] % 2:
            raise ValueError(
                f"GridHead halves square crops, whose side must be even, got {size[0]} x {size[1]}: set size of the "
                "extractor beside it, as model.parts.0.extractor.size=14"
            )
        x = crops
        for i in range(1, self.convs + 1):
            x = nn.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
        return x

    def _fused(self, own: jax.Array) -> jax.Array:
        x = own
        for i in range(1, self.fusions + 1):
            x = getattr(self, f"fusion{i}")(own, x)
        return x

    def _maps(self, x: jax.Array) -> jax.Array:
        logits: jax.Array = self.upsample2(nn.relu(self.upsample_norm(self.upsample1(x))))
        return logits
