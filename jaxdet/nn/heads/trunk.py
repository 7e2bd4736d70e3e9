"""Trunks of box and mask-score heads: crop -> vector, before the last fully connected layers.  N crops, C channels."""

import math
from typing import Literal

import flax.linen as nn
import jax

from jaxdet.nn.blocks.layers import Conv, Linear, StillNorm, make_norm
from jaxdet.ranges import CHANNELS, LAYERS, check_ranges


class FC2(nn.Module):
    """Two fully connected layers (FPN, Lin et al. 2017, section 4.2): crops ``[N, 7, 7, C]`` -> ``[N, channels]``."""

    channels: int = 1024

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, crops: jax.Array) -> jax.Array:
        x = _flatten(crops)
        x = nn.relu(Linear(self.channels, name="fc1")(x))
        return nn.relu(Linear(self.channels, name="fc2")(x))


class ConvFC(nn.Module):
    """Convolutions, then one fully connected layer (Wu and He 2018, section 5.2): crops -> ``[N, features]``.

    Crops are ``[N, 7, 7, C]``.  With ``norm`` a normalisation follows each of the ``convs`` convolutions of
    ``channels`` channels, which then have no bias.
    """

    convs: int = 4
    channels: int = 256
    features: int = 1024
    norm: StillNorm | None = None

    def __post_init__(self) -> None:
        check_ranges(self, convs=LAYERS, channels=CHANNELS, features=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, crops: jax.Array) -> jax.Array:
        x = crops
        for i in range(1, self.convs + 1):
            norm = None if self.norm is None else make_norm(self.norm, f"norm{i}")
            x = nn.relu(Conv(self.channels, 3, bias=norm is None, name=f"conv{i}")(x, norm))
        return nn.relu(Linear(self.features, name="fc1")(_flatten(x)))


class FCC(nn.Module):
    """Large convolutions, not fully connected layers (SBR-CNN, table 1): crops ``[N, 7, 7, C]`` -> ``[N, 3136]``.

    Two convolutions to ``channels``, padded so that the crop keeps its size.  ``kernel="7x3"`` makes each of them a
    pair: 7 rows x 3 columns, which leaves 3x7 of a 7x7 crop, then 3x7, which restores it.  ``reduce`` says which of a
    pair lowers the channels: "last" as in the paper's table (C, 128, 128, 64), "first" as in its best models
    (128, 128, 64, 64).  A context block, such as ``NonLocal``, may stand ``before`` and ``after``.  ReLU follows every
    element, the context blocks included, as in the reference.

    Raises:
        ValueError: unknown ``kernel`` or ``reduce``.
    """

    channels: tuple[int, int] = (128, 64)
    kernel: Literal["7x7", "7x3"] = "7x7"
    reduce: Literal["first", "last"] = "last"
    before: nn.Module | None = None
    after: nn.Module | None = None

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, crops: jax.Array) -> jax.Array:
        if self.kernel not in ("7x7", "7x3") or self.reduce not in ("first", "last"):
            got = f"kernel={self.kernel!r}, reduce={self.reduce!r}"
            raise ValueError(f'FCC has kernel="7x7" or "7x3" and reduce="first" or "last"; got {got}')
        x = crops if self.before is None else nn.relu(self.before(crops))
        for i, channels in enumerate(self.channels, 1):
            x = self._convolve(x, channels, f"conv{i}")
        return _flatten(x if self.after is None else nn.relu(self.after(x)))

    def _convolve(self, x: jax.Array, channels: int, name: str) -> jax.Array:
        if self.kernel == "7x7":
            return nn.relu(Conv(channels, 7, name=name)(x))
        between = channels if self.reduce == "first" else x.shape[-1]
        # The reference has one padding for both axes of a kernel, hence 7x7 -> 3x7 -> 7x7.
        x = nn.relu(Conv(between, (7, 3), padding=1, name=f"{name}a")(x))
        return nn.relu(Conv(channels, (3, 7), padding=3, name=f"{name}b")(x))


def _flatten(x: jax.Array) -> jax.Array:
    # In the order rows, columns, channels; torch flattens channels first (see `checkpoints.names.layouts`).
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
