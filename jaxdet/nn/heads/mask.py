"""Mask heads: a bitmap for each class of a crop.  N crops, h w their rows and columns, C channels, K classes."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, StillNorm, Upsample, affine, interleave, kaiming_fan_out, make_norm
from jaxdet.ops.devices import apply_cast
from jaxdet.ranges import CHANNELS, LAYERS, check_ranges


class _Link(nn.Module):
    """Adds the features of an earlier pass to crops, both ``[N, h, w, C]``: ``crops + relu(1x1(previous))``.

    The mask information flow of HTC (Chen et al. 2019, eq. 5) and the inner loop of R3-CNN (Rossi et al. 2021).
    Without ``relu`` the 1x1 convolution is added as it is; with ``zeros`` it starts as no link at all.
    """

    relu: bool = True
    zeros: bool = False

    @nn.compact
    def __call__(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        conv = Conv(crops.shape[-1], 1, kernel_init=nn.initializers.zeros if self.zeros else kaiming_fan_out)
        nn.share_scope(self, conv)  # the tree reads link/kernel, not link/Conv_0/kernel
        return crops + (nn.relu(conv(previous)) if self.relu else conv(previous))


class _ByClass(nn.Module):
    """A logit for each of K classes and each pixel: ``[N, ..., C] -> [N, ..., K]``, a 1x1 convolution.

    With ``labels [N]``, that of one class alone, ``[N, ...]``: a Kth of the products, and no array of all classes.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        kernel = self.param("kernel", kaiming_fan_out, (1, 1, x.shape[-1], self.num_classes))[0, 0]
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        if labels is None:
            return apply_cast(affine, x, kernel, bias)
        return apply_cast(_of_labels, (x, labels), kernel, bias)


def _of_labels(crops: tuple[jax.Array, jax.Array], kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Pixels ``[N, ..., C]`` of crops with labels ``[N]``, as one logit each: that of the crop's class."""
    x, labels = crops
    # n crops, p pixels, c channels: each crop has a kernel of its own, that of its class.
    pixels = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
    own = jnp.einsum("npc,nc->np", pixels, kernel.T[labels]) + bias[labels, None]
    return own.reshape(x.shape[:-1])


class FCN(nn.Module):
    """Convolutions, a 2x upsampling and a 1x1 classifier (Mask R-CNN, He et al. 2017, fig. 4 right).

    A ``linked`` head also reads the features of an earlier pass, over the same crops or over those of other boxes; its
    link has a ReLU (``link_relu``), and ``link_start`` says whether it begins with random weights or with none.  With
    ``norm`` a normalisation follows each of the ``convs`` convolutions, which then have no bias.  With
    ``class_agnostic`` there is one mask for all classes, K = 1 (section 4.3 of the paper).
    """

    channels: int = 256
    convs: int = 4
    linked: bool = False
    link_relu: bool = True
    link_start: Literal["kaiming", "zeros"] = "kaiming"
    norm: StillNorm | None = None
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, convs=LAYERS)
        super().__post_init__()

    def setup(self) -> None:
        if self.linked:
            # Only linked heads own the parameters: trees without them are those of Mask R-CNN.
            self.link = _Link(self.link_relu, self.link_start == "zeros")
        for i in range(1, self.convs + 1):
            setattr(self, f"conv{i}", Conv(self.channels, 3, bias=self.norm is None))
            if self.norm is not None:
                setattr(self, f"norm{i}", make_norm(self.norm))

    def __call__(self, crops: jax.Array, num_classes: int) -> jax.Array:
        """Crops ``[N, 14, 14, C]`` -> logits ``[N, 28, 28, K]`` of an only pass, K = ``num_classes`` or 1."""
        return self.classify(self.features(crops, self.empty_features(crops)), num_classes)

    def empty_features(self, crops: jax.Array) -> jax.Array:
        """What the first pass gets in place of earlier features: zeros ``[N, 14, 14, channels]``."""
        return jnp.zeros((*crops.shape[:-1], self.channels), crops.dtype)

    def features(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        """Features ``[N, 14, 14, channels]`` of crops ``[N, 14, 14, C]`` and of the features of the pass before."""
        x = self.join(crops, previous)
        for i in range(1, self.convs + 1):
            x = nn.relu(getattr(self, f"conv{i}")(x, None if self.norm is None else getattr(self, f"norm{i}")))
        return x

    def join(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        """What the first convolution reads, ``[N, 14, 14, C]``: the crops, and what the link adds to them."""
        # In a first pass ``previous`` is 0, and the link adds relu(its bias), as in R3-CNN's code.
        return self.link(crops, previous) if self.linked else crops

    @nn.compact
    def classify(self, features: jax.Array, num_classes: int, labels: jax.Array | None = None) -> jax.Array:
        """Logits of features ``[N, 14, 14, channels]``: ``[N, 28, 28, K]``; with ``labels [N]`` ``[N, 28, 28]``."""
        # As 2x2 blocks up to the logits: interleaving one number a pixel moves less than its 256 channels.
        x = nn.relu(Upsample(self.channels, name="upsample")(features))
        if not self.class_agnostic:
            return interleave(_ByClass(num_classes, name="logits")(x, labels))
        only = _ByClass(1, name="logits")(x)
        return interleave(only if labels is None else only[..., 0])
