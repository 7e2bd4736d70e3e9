"""Blocks in which every position of a crop reads all others.

Letters in shapes: N crops, H W its rows and columns, P = H * W positions, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, convolve, gaussian
from jaxdet.ranges import CHANNELS, KERNEL, check_ranges


class NonLocal(nn.Module):
    """Non-local block, embedded Gaussian (Wang et al. 2018, section 3; with 7x7 kernels: SBR-CNN, section 3.3).

    ``[N, H, W, C]`` -> the same shape.  ``g``, ``theta`` and ``phi`` are convolutions to C / ``reduction`` channels,
    ``y_i = sum_j softmax_j(theta_i . phi_j / sqrt(C / reduction)) g_j`` over all positions j of the crop, and the
    result is ``x + out(y)``.  ``out`` starts at zero, so a fresh block changes nothing.  The attention is computed in
    float32.

    Raises:
        ValueError: an even ``kernel``, which has no centre.
    """

    kernel: int = 7
    reduction: int = 2

    def __post_init__(self) -> None:
        check_ranges(self, kernel=KERNEL, reduction=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, channels = x.shape
        inner = max(channels // self.reduction, 1)
        # The three read the same input: one convolution with their kernels side by side.
        embeddings = [self.param(name, self._init, channels, inner) for name in ("g", "theta", "phi")]
        kernel, bias = (
            jnp.concatenate([e[part] for e in embeddings], axis=-1).astype(x.dtype) for part in ("kernel", "bias")
        )
        # An odd kernel, padded by half of it, keeps the crop's size.
        pad = self.kernel // 2
        # [N, P, 3, inner]: along the third axis g, theta, phi, in the order of the concatenation.
        y = (convolve(x, kernel, 1, (pad, pad)) + bias).reshape(n, h * w, 3, inner)
        # Softmax in float32, then back: the product with g is the large one, and runs in the dtype of the features.
        attention = _attention(y[:, :, 1], y[:, :, 2]).astype(x.dtype)
        y = (attention @ y[:, :, 0]).reshape(n, h, w, inner)
        return x + Conv(channels, self.kernel, kernel_init=nn.initializers.zeros, name="out")(y)

    def _init(self, key: jax.Array, channels: int, inner: int) -> dict[str, jax.Array]:
        # mmcv's NonLocal2d draws g, theta and phi with a standard deviation of 0.01.
        kernel = gaussian(0.01)(key, (self.kernel, self.kernel, channels, inner))
        return {"kernel": kernel, "bias": jnp.zeros(inner)}


def _attention(theta: jax.Array, phi: jax.Array) -> jax.Array:
    """``[N, P, P]`` float32, rows sum to 1, of queries and keys ``[N, P, C]``."""
    # Summed in float32: in bfloat16 a sum of hundreds of channels keeps two to three digits, and the softmax amplifies
    # what is lost.
    energy = jnp.einsum("nic,njc->nij", theta, phi, preferred_element_type=jnp.float32)
    return jax.nn.softmax(energy / jnp.sqrt(theta.shape[-1]), axis=-1)
