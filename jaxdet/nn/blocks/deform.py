"""Deformable convolution with the small convolution that says where it reads."""

from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxdet.nn.blocks.layers import Conv, folded, kaiming_fan_out
from jaxdet.ops.conv.deform import deform_conv
from jaxdet.ops.devices import apply_cast

DeformKind: TypeAlias = Literal["v1", "v2"]


class DeformConv(nn.Module):
    """Deformable convolution without bias: ``[B, H, W, C]`` -> ``[B, ceil(H / stride), ceil(W / stride), features]``.

    ``kind`` v1 moves every tap (Dai et al. 2017), v2 also weighs it by a number between 0 and 1 (Zhu et al. 2019).
    Offsets, and the logits of the weights behind them, come from a convolution of the same kernel and stride, which
    starts at zero: a fresh layer reads where an ordinary one does, in v2 by half.  ``deform_groups`` groups of channels
    have offsets of their own; ``groups`` are those of the convolution, as in `Conv`, and so is ``norm``.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    kind: DeformKind = "v1"
    groups: int = 1
    deform_groups: int = 1
    kernel_init: Initializer = kaiming_fan_out

    @nn.compact
    def __call__(self, x: jax.Array, norm: nn.Module | None = None) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel, biases, norm = folded(self.param("kernel", self.kernel_init, shape), [], norm)
        taps = self.deform_groups * self.kernel**2
        numbers = taps * (2 if self.kind == "v1" else 3)
        found = Conv(numbers, self.kernel, self.stride, kernel_init=nn.initializers.zeros, name="offset")(x)
        # Positions need float32: bfloat16 knows no half pixel from 128 pixels on.
        found = found.astype(jnp.float32)

        def convolved(arrays: tuple[jax.Array, jax.Array], kernel: jax.Array, *biases: jax.Array) -> jax.Array:
            x, found = arrays
            offsets, logits = found[..., : 2 * taps], found[..., 2 * taps :]
            mask = None if self.kind == "v1" else nn.sigmoid(logits)
            y = deform_conv(x, kernel, offsets, mask, stride=self.stride, padding=self.kernel // 2)
            return y + biases[0] if biases else y

        y = apply_cast(convolved, (x, found), kernel, *biases)
        return y if norm is None else norm(y)
