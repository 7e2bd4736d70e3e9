"""Heads of dense detectors, shared by all levels of the pyramid: class and box of every place of a map.

Letters in shapes: B images, h w cells of a level, A places in a cell, K classes, C channels, c numbers of a code.
Output channels are place-major (place 0's K logits, then those of place 1), as in the reference.
"""

from typing import Protocol

import flax.linen as nn
import jax
from flax import struct

from jaxdet.nn.blocks.layers import Conv, GroupNorm, gaussian, prior_bias, xavier_uniform
from jaxdet.nn.heads.codes import CodeLayer, Codes
from jaxdet.ops.devices import apply_cast
from jaxdet.ranges import CHANNELS, LAYERS, Range, check_ranges

_ANCHORS, _PRIOR, _CODE = Range(1, 1000), Range(0, 1, without=(0, 1)), Range(0, 100_000)


@struct.dataclass
class DenseMaps:
    """What a head predicts for a level: A places in each cell, the channels of each place together."""

    logits: jax.Array  #: ``[B, h, w, A * K]``
    deltas: jax.Array  #: ``[B, h, w, A * 4]``
    codes: Codes | None = None  #: c numbers of each place
    quality: jax.Array | None = None  #: ``[B, h, w, A]``, logits of how well the place fits, which scores are times


class DenseHead(Protocol):
    """The call that heads of dense detectors have."""

    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        """A level ``[B, h, w, C]`` -> maps with K = ``num_classes`` logits, background among them where it has one.

        ``number`` counts the levels of the places from the finest, 0.
        """


class RPNHead(nn.Module):
    """One convolution, then objectness and deltas of A = ``anchors`` in each cell (Ren et al. 2015, section 3.1).

    ``convs``: more convolutions than one (torchvision's second generation has two).
    """

    anchors: int = 3
    channels: int = 256
    convs: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, anchors=_ANCHORS, channels=CHANNELS, convs=Range(1, 100))
        super().__post_init__()

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        # All layers from N(0, 0.01), as Faster R-CNN's new layers (section 3.1.3).
        x = level
        for i in range(1, self.convs + 1):
            # The first has no number, as where it is the only one.
            x = nn.relu(Conv(self.channels, 3, kernel_init=gaussian(0.01), name=f"conv{i}" if i > 1 else "conv")(x))
        logits = Conv(self.anchors * num_classes, 1, kernel_init=gaussian(0.01), name="objectness")(x)
        return DenseMaps(logits, Conv(4 * self.anchors, 1, kernel_init=gaussian(0.01), name="deltas")(x))


class RetinaHead(nn.Module):
    """Towers of ``convs`` convolutions, one for classes and one for boxes (RetinaNet, Lin et al. 2017, section 4).

    ``code`` numbers of each place come from a third tower (RDSNet, Wang et al. 2020, section 3.1).  ``groups`` is that
    of a group normalisation behind each convolution of the towers, which then has no bias; None: no normalisation.  The
    bias of the logits starts so that every place has probability ``prior`` of each class: with thousands of places of
    background, one half would make the first loss, and its gradient, enormous.
    """

    anchors: int = 9
    channels: int = 256
    convs: int = 4
    prior: float = 0.01
    groups: int | None = None
    code: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, anchors=_ANCHORS, channels=CHANNELS, convs=LAYERS, prior=_PRIOR, groups=CHANNELS, code=_CODE)
        super().__post_init__()

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        # Section 4.1 of the paper: N(0, 0.01) for all new layers, and the prior in the last bias of the classes.
        init, bias = gaussian(0.01), self.groups is None
        # Towers without shared weights: classes, boxes and codes read the level alone in common.
        classes = _tower(level, "class", self.channels, self.convs, self.groups, bias)
        boxes = _tower(level, "box", self.channels, self.convs, self.groups, bias)
        prior = prior_bias(self.prior)
        logits = Conv(self.anchors * num_classes, 3, kernel_init=init, bias_init=prior, name="logits")(classes)
        deltas = Conv(4 * self.anchors, 3, kernel_init=init, name="deltas")(boxes)
        if not self.code:
            return DenseMaps(logits, deltas)
        codes = _tower(level, "code", self.channels, self.convs, self.groups, bias)
        return DenseMaps(logits, deltas, CodeLayer(self.anchors, self.code, init, name="codes")(codes))


class FCOSHead(nn.Module):
    """Two towers with group normalisation, for one place in each cell (FCOS, Tian et al. 2019, with its later changes).

    The box tower gives distances, never negative, a map times a factor that each level learns for itself; the
    centerness of the cell; and ``code`` numbers (169 for CondInst's dynamic convolutions).
    """

    channels: int = 256
    convs: int = 4
    groups: int = 32
    prior: float = 0.01
    code: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, convs=LAYERS, prior=_PRIOR, groups=CHANNELS, code=_CODE)
        super().__post_init__()

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        init = gaussian(0.01)
        classes = _tower(level, "class", self.channels, self.convs, self.groups)
        boxes = _tower(level, "box", self.channels, self.convs, self.groups)
        logits = Conv(num_classes, 3, kernel_init=init, bias_init=prior_bias(self.prior), name="logits")(classes)
        distances = Conv(4, 3, kernel_init=init, name="deltas")(boxes)
        factor = self.param(f"factor{number}", nn.initializers.ones, ())
        quality = Conv(1, 3, kernel_init=init, name="centerness")(boxes)
        codes = CodeLayer(1, self.code, init, name="codes")(boxes) if self.code else None
        distances = apply_cast(lambda distances, factor: distances * factor, distances, factor)
        return DenseMaps(logits, nn.relu(distances), codes, quality)


def _tower(x: jax.Array, name: str, channels: int, convs: int, groups: int | None, bias: bool = True) -> jax.Array:
    """Convolutions with ReLU, and before that group normalisation if there are ``groups``, of the calling module."""
    for i in range(1, convs + 1):
        x = Conv(channels, 3, bias=bias, kernel_init=gaussian(0.01), name=f"{name}_conv{i}")(x)
        if groups is not None:
            x = GroupNorm(groups=groups, name=f"{name}_norm{i}")(x)
        x = nn.relu(x)
    return x


class YOLACTHead(nn.Module):
    """One convolution that all branches share, then class, box and mask coefficients (Bolya et al. 2019, section 3.2).

    ``num_classes`` counts the logits, background among them.  Coefficients are between -1 and 1.
    """

    anchors: int = 3
    channels: int = 256
    code: int = 32

    def __post_init__(self) -> None:
        check_ranges(self, anchors=_ANCHORS, channels=CHANNELS, code=_CODE)
        super().__post_init__()

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        init = xavier_uniform
        x = nn.relu(Conv(self.channels, 3, kernel_init=init, name="conv")(level))
        logits = Conv(self.anchors * num_classes, 3, kernel_init=init, name="logits")(x)
        deltas = Conv(4 * self.anchors, 3, kernel_init=init, name="deltas")(x)
        if not self.code:
            return DenseMaps(logits, deltas)
        return DenseMaps(logits, deltas, CodeLayer(self.anchors, self.code, init, bounded=True, name="codes")(x))
