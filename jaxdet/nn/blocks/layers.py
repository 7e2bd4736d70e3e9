"""Layers with the reference's padding and initialisation.

No layer has a dtype of its own: parameters are float32, computation follows the dtype of the input.

Letters in shapes: B images, N crops, H W or h w rows and columns, C channels in, F channels out, kh kw a kernel.
"""

import math
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxdet.ops.conv.direct import direct_conv
from jaxdet.ops.conv.grouped import grouped_conv
from jaxdet.ops.conv.overlap_save import fourier_conv, predicted_gain
from jaxdet.ops.devices import apply_cast, backend

NormKind: TypeAlias = Literal["batch", "sync_batch", "frozen_batch", "group"]
StillNorm: TypeAlias = Literal["batch", "group"]
"""Norms without statistics of the batch, for heads: what they see are samples, and slots that do not count."""
Method: TypeAlias = Literal["direct", "spectral"]

# The reference's defaults: He et al. 2015 (*Delving Deep into Rectifiers*) for convolutions before a ReLU,
# Glorot and Bengio 2010 for the pyramid and fully connected layers.
kaiming_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform: Initializer = nn.initializers.xavier_uniform()
# torch's kaiming_uniform with a = 1, which fits layers without a ReLU behind them.
kaiming_uniform: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

# Convolutions are spectral where that is predicted to be faster by at least this factor: predictions are
# rough, and a small gain is not worth the longer program.
SPECTRAL_GAIN = 1.2


def gaussian(std: float) -> Initializer:
    """Normal values with mean 0."""
    return nn.initializers.normal(std)


def prior_bias(probability: float) -> Initializer:
    """The bias with which a sigmoid begins at that probability (RetinaNet, Lin et al. 2017, section 4.1)."""
    return nn.initializers.constant(-math.log((1 - probability) / probability))


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, pads: tuple[int, int], method: Method | None = None
) -> jax.Array:
    """Correlation of ``x [B, H, W, C]`` with ``kernel [kh, kw, C, F]``, ``pads`` zeros around (rows, columns).

    A 1x1 kernel is a matrix product, which XLA:CPU runs twice as fast; one with a stride on CPUs alone.  Otherwise
    ``method`` None is :func:`fastest_method`.
    """
    # XLA:GPU aborts where it fuses a slice with a stride into a matrix product (jax 0.10.2, triton_tiling_propagation).
    if kernel.shape[:2] == (1, 1) and pads == (0, 0) and (stride == 1 or backend() == "cpu"):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    # On a torus every output is computed; a stride of 2 would throw three of four away.
    if (method or fastest_method(x, kernel, stride, pads)) == "spectral":
        if stride != 1:
            raise ValueError(f"the spectral method needs stride 1, got {stride}; use method None or 'direct'")
        return fourier_conv(x, kernel, pads)
    return direct_conv(x, kernel, stride, pads)


def fastest_method(x: jax.Array, kernel: jax.Array, stride: int, pads: tuple[int, int]) -> Method:
    """Spectral on CPU, for float32 and stride 1, where the shapes promise a gain; else direct.

    Predictions and measurements: ``benchmarks/ops/small_convs.py``.
    """
    # Accelerators have hardware for direct convolutions, and in bfloat16 the transforms would round digits away.
    if backend() != "cpu" or x.dtype != jnp.float32 or stride != 1:
        return "direct"
    (b, h, w, c), (kh, kw, _, features) = x.shape, kernel.shape
    gain = predicted_gain((b, h, w, c), (kh, kw, c, features), pads)
    return "spectral" if gain >= SPECTRAL_GAIN else "direct"


class Conv(nn.Module):
    """Convolution ``[B, H, W, C] -> [B, H', W', features]``, padded with zeros, symmetrically.

    ``kernel`` is (rows, columns), or one number for both.  ``padding`` is one number for both axes, whatever the
    kernel's shape (7x3 with padding 1 maps 7x7 to 3x7); None is half the kernel of each axis.  ``method`` None is the
    fastest (:func:`convolve`); spectral needs stride 1.  Each of ``groups`` of channels is convolved by itself, always
    by the direct method; their number divides C and ``features``.

    A ``norm`` that is given is applied to the result.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    bias: bool = True
    kernel_init: Initializer = kaiming_fan_out
    padding: int | None = None
    bias_init: Initializer = nn.initializers.zeros
    method: Method | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, norm: nn.Module | None = None) -> jax.Array:
        # The parameters belong to this module's scope, so the tree reads conv1/kernel, not conv1/Conv_0/kernel.
        kh, kw = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        shape = (kh, kw, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        biases = [self.param("bias", self.bias_init, (self.features,))] if self.bias else []
        kernel, biases, norm = folded(kernel, biases, norm)
        pads = (kh // 2, kw // 2) if self.padding is None else (self.padding, self.padding)

        def convolved(x: jax.Array, kernel: jax.Array, *biases: jax.Array) -> jax.Array:
            if self.groups == 1:
                y = convolve(x, kernel, self.stride, pads, self.method)
            else:
                y = grouped_conv(x, kernel, self.stride, pads)
            return y + biases[0] if biases else y

        y = apply_cast(convolved, x, kernel, *biases)
        return y if norm is None else norm(y)


class Linear(nn.Module):
    """Affine map of the last axis: ``[..., C] -> [..., features]``."""

    features: int
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return apply_cast(affine, x, kernel, self.param("bias", nn.initializers.zeros, (self.features,)))


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """``x [..., C]`` times ``kernel [C, F]`` plus ``bias [F]``."""
    return x @ kernel + bias


class Upsample(nn.Module):
    """Transposed convolution with a 2x2 kernel and stride 2, as blocks: ``[N, h, w, C] -> [N, h, w, 2, 2, features]``.

    Strides equal to the kernel never overlap, so each input pixel becomes its own 2x2 block: one matrix product.
    :func:`interleave` makes a map of the blocks; layers that treat each pixel alone are cheaper before that.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kaiming_fan_out, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # i, j: the pixel; a, b: the place inside its 2x2 block.
        return apply_cast(lambda x, k, bias: jnp.einsum("nijc,abcd->nijabd", x, k) + bias, x, kernel, bias)


def interleave(blocks: jax.Array) -> jax.Array:
    """Blocks ``[N, h, w, 2, 2, ...]``, one for each pixel, as a map ``[N, 2h, 2w, ...]``."""
    n, h, w, *_ = blocks.shape
    # [N, h, w, 2, 2, ..] -> [N, h, 2, w, 2, ..]: row of the pixel, row in its block, column of the pixel, column there.
    return blocks.swapaxes(2, 3).reshape(n, 2 * h, 2 * w, *blocks.shape[5:])


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) with running averages in the collection ``batch_stats``.

    ``frozen``, the detection standard: stored statistics, which come with pretrained weights and stay.  From scratch
    they are 0 and 1, which leaves an affine map: use another kind there.  ``constant``: scale and bias stay as well.

    Else, wherever ``batch_stats`` may be changed (in the training step, not in prediction), the statistics of all
    images of the batch, on whatever devices they are, padding included, as torch's SyncBatchNorm takes them; the
    running averages move towards them by the share ``momentum``.
    """

    frozen: bool = True
    scale_init: Initializer = nn.initializers.ones
    epsilon: float = 1e-5
    momentum: float = 0.1
    constant: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        gain, shift = self.line(x.shape[-1], x)
        return apply_cast(lambda x, gain, shift: x * gain + shift, x, gain, shift)

    @property
    def is_line(self) -> bool:
        """Whether it multiplies and adds the same numbers, whatever it reads."""
        # Initialisation sees a made-up input, whose statistics must not enter the running ones.
        return self.frozen or self.is_initializing() or not self.is_mutable_collection("batch_stats")

    @nn.compact
    def line(self, channels: int, x: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """What each channel is multiplied by, and what is added: ``[C]`` float32; of ``x``, unless `is_line`."""
        shape = (channels,)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if x is not None and not self.is_line:
            mean, var = moments(x)
            count = x.size // x.shape[-1]
            unbiased = var * count / max(count - 1, 1)  # what torch stores
            # The running averages leave the step as state; the gradient flows through the normalisation alone.
            running_mean.value += self.momentum * (jax.lax.stop_gradient(mean) - running_mean.value)
            running_var.value += self.momentum * (jax.lax.stop_gradient(unbiased) - running_var.value)
        # Both are folded in float32 for each channel, so that a large map costs one product and one sum.
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", nn.initializers.zeros, shape)
        if self.constant:
            scale, bias = jax.lax.stop_gradient((scale, bias))
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        return gain, bias - mean * gain


def folded(
    kernel: jax.Array, biases: list[jax.Array], norm: nn.Module | None
) -> tuple[jax.Array, list[jax.Array], nn.Module | None]:
    """Kernel ``[.., F]`` and biases of a convolution that does what its norm would, and what is left of the norm.

    A batch norm with stored statistics multiplies each channel and adds to it.  On accelerators its factors are
    multiplied into the kernel, in float32, so that the map before it is neither kept for its gradient nor gone through
    once more.  A CPU gains nothing by it: a product for each number of a kernel costs as much as one for each of a map.
    """
    if backend() == "cpu" or not isinstance(norm, BatchNorm) or not norm.is_line:
        return kernel, biases, norm
    gain, shift = norm.line(kernel.shape[-1])
    return kernel * gain, [sum((bias * gain for bias in biases), shift)], None


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance ``[C]`` of ``x [..., C]`` over all other axes, float32."""
    x = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    mean = x.mean(0)
    return mean, jnp.square(x - mean).mean(0)  # in two passes: E[x^2] - E[x]^2 cancels


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018) of ``[B, H, W, C]``, in float32; needs no pretrained statistics.

    Raises:
        ValueError: channels that are no multiple of ``groups``.
    """

    scale_init: Initializer = nn.initializers.ones
    groups: int = 16
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        if c % self.groups:
            # Heads and branches have a setting for either, a backbone its width alone.
            raise ValueError(
                f"{'/'.join(self.path) or 'GroupNorm'}: channels must be a multiple of groups={self.groups}, got {c}; "
                "change channels or groups of the module, or model.backbone.width where it is the backbone"
            )
        # [B, pixels, groups, channels of a group]: statistics over the second and the last axis.
        grouped = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        mean = grouped.mean((1, 3), keepdims=True)
        var = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        y = ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(b, h, w, c)
        y = y * self.param("scale", self.scale_init, (c,)) + self.param("bias", nn.initializers.zeros, (c,))
        return y.astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of the last axis of ``[..., C]``, in float32."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        values = x.astype(jnp.float32)
        centred = values - values.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        y = y * self.param("scale", nn.initializers.ones, shape) + self.param("bias", nn.initializers.zeros, shape)
        return y.astype(x.dtype)


def make_norm(kind: NormKind, name: str | None = None, scale_init: Initializer = nn.initializers.ones) -> nn.Module:
    """The normalisation layer of that kind: ``batch`` with stored statistics, ``sync_batch`` with the batch's.

    ``frozen_batch`` is ``batch`` with a scale and a bias that are not trained.  ``name`` None is for modules that name
    their parts in ``setup``.
    """
    if kind == "group":
        return GroupNorm(scale_init=scale_init, name=name)
    return BatchNorm(kind != "sync_batch", scale_init, constant=kind == "frozen_batch", name=name)
