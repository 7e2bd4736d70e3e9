"""How the axes of a torch module's arrays are ordered, and how ours are.

torch keeps convolutions as (out, in, kh, kw), linear layers as (out, in) and transposed convolutions as
(in, out, kh, kw) ([torch.nn docs](https://docs.pytorch.org/docs/stable/nn.html)); jaxdet keeps [kh, kw, in, out]
for both convolutions and [in, out] for linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxdet.checkpoints.tree import Array


@dataclass(frozen=True)
class Layout:
    """A pair of inverse maps between the two orders of one array's axes."""

    torch_ndim: int
    from_torch: Callable[[Array], Array]
    to_torch: Callable[[Array], Array]


@dataclass(frozen=True)
class Leaf:
    """One array of a module: where it lives here, what torch calls it, and how its axes move."""

    collection: str  #: ``params`` or ``batch_stats``
    ours: str
    theirs: str
    layout: Layout


def axes(*order: int) -> Layout:
    """The layout whose array here is the torch array transposed to ``order``."""
    # The inverse of a permutation is what sorts it.
    back = tuple(int(i) for i in np.argsort(order))
    return Layout(len(order), lambda a: a.transpose(order), lambda a: a.transpose(back))


def _flattened_map(size: int) -> Layout:
    """A linear layer over a flattened [size, size] map: torch flattens (C, y, x), we flatten (y, x, C)."""

    def from_torch(weight: Array) -> Array:
        out, features = weight.shape
        if features % (size * size):
            raise ValueError(f"{features} input features are no multiple of a {size}x{size} map")
        # (out, C, y, x) -> [y, x, C, out]
        return weight.reshape(out, -1, size, size).transpose(2, 3, 1, 0).reshape(features, out)

    def to_torch(kernel: Array) -> Array:
        features, out = kernel.shape
        # [y, x, C, out] -> (out, C, y, x)
        return kernel.reshape(size, size, -1, out).transpose(3, 2, 0, 1).reshape(out, features)

    return Layout(2, from_torch, to_torch)


VECTOR = axes(0)
_BIAS = Leaf("params", "bias", "bias", VECTOR)


# One channel in, one out: (1, 1, taps) to [taps].
_KERNEL = Layout(3, lambda weight: weight.reshape(-1), lambda kernel: kernel.reshape(1, 1, -1))


def _weighted(layout: Layout) -> tuple[Leaf, ...]:
    return (Leaf("params", "kernel", "weight", layout), _BIAS)


# What each kind of torch module stores; linear layers behind a 7x7 map depend on how that was flattened.
CONV = _weighted(axes(2, 3, 1, 0))
LINEAR = _weighted(axes(1, 0))
LINEAR_OVER_7X7 = _weighted(_flattened_map(7))
# (in, out, kh, kw) to [kh, kw, in, out]: `Upsample` multiplies pixels with it, where torch slides it; no flip.
TRANSPOSED_CONV = _weighted(axes(2, 3, 0, 1))
BOUNDARIES = (Leaf("params", "weights", "weight", _KERNEL), _BIAS)
# (C, 1, 1), numbers for the channels of a map.
_CHANNELS = Layout(3, lambda weight: weight.reshape(-1), lambda scale: scale.reshape(-1, 1, 1))
CHANNEL_NORM = (Leaf("params", "scale", "weight", _CHANNELS), Leaf("params", "bias", "bias", _CHANNELS))
CHANNEL_SCALE = Leaf("params", "scale", "layer_scale", _CHANNELS)
GROUP_NORM = (Leaf("params", "scale", "weight", VECTOR), _BIAS)
BATCH_NORM = (
    Leaf("params", "scale", "weight", VECTOR),
    _BIAS,
    Leaf("batch_stats", "mean", "running_mean", VECTOR),
    Leaf("batch_stats", "var", "running_var", VECTOR),
)


def scalar(ours: str, theirs: str) -> Leaf:
    """A parameter that is a single number."""
    return Leaf("params", ours, theirs, axes())
