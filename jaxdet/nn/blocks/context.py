"""Blocks in which every position of a crop, or of a map, reads all others.

Letters in shapes: N crops, H W its rows and columns, P = H * W positions, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, LayerNorm, convolve, gaussian
from jaxdet.ops.devices import apply_cast
from jaxdet.ranges import CHANNELS, KERNEL, check_ranges

_kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# torch draws a layer that nothing else initialises from +-1 / sqrt(fan in).
_torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


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
        kernel, bias = (jnp.concatenate([e[part] for e in embeddings], axis=-1) for part in ("kernel", "bias"))
        # An odd kernel, padded by half of it, keeps the crop's size.
        pad = self.kernel // 2
        # [N, P, 3, inner]: along the third axis g, theta, phi, in the order of the concatenation.
        y = apply_cast(lambda x, kernel, bias: convolve(x, kernel, 1, (pad, pad)) + bias, x, kernel, bias)
        y = y.reshape(n, h * w, 3, inner)
        # Softmax in float32, then back: the product with g is the large one, and runs in the dtype of the features.
        attention = _attention(y[:, :, 1], y[:, :, 2]).astype(x.dtype)
        y = (attention @ y[:, :, 0]).reshape(n, h, w, inner)
        return x + Conv(channels, self.kernel, kernel_init=nn.initializers.zeros, name="out")(y)

    def _init(self, key: jax.Array, channels: int, inner: int) -> dict[str, jax.Array]:
        # mmcv's NonLocal2d draws g, theta and phi with a standard deviation of 0.01.
        kernel = gaussian(0.01)(key, (self.kernel, self.kernel, channels, inner))
        return {"kernel": kernel, "bias": jnp.zeros(inner)}


class GlobalContext(nn.Module):
    """Global context block (GC-Net, Cao et al. 2019, figure 4d): one sum over the map, the same for every position.

    ``[N, H, W, C]`` -> the same shape.  Positions are weighted by a softmax over all of them, the weighted sum goes
    through two layers with C / ``reduction`` channels between them (ratio 1/4: 4, ratio 1/16: 16), and what comes out
    is added everywhere.  Positions of the padding count like others, as in the reference.  ``expand`` starts at zero,
    so a fresh block changes nothing.  Softmax and sum are float32.
    """

    reduction: int = 4

    def __post_init__(self) -> None:
        check_ranges(self, reduction=CHANNELS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, channels = x.shape
        inner = max(channels // self.reduction, 1)
        # mmcv's ContextBlock draws the mask as before a ReLU, and leaves the first layer to torch.
        energy = Conv(1, 1, kernel_init=_kaiming_fan_in, name="mask")(x).astype(jnp.float32)
        share = jax.nn.softmax(energy.reshape(n, h * w), axis=-1)
        # [N, 1, 1, C]: layers of the map's kind, with a single position.
        context = jnp.einsum("np,npc->nc", share, x.reshape(n, h * w, channels), preferred_element_type=jnp.float32)
        context = context.astype(x.dtype).reshape(n, 1, 1, channels)
        context = LayerNorm(name="norm")(Conv(inner, 1, kernel_init=_torch_default, name="reduce")(context))
        return x + Conv(channels, 1, kernel_init=nn.initializers.zeros, name="expand")(nn.relu(context))


def _attention(theta: jax.Array, phi: jax.Array) -> jax.Array:
    """``[N, P, P]`` float32, rows sum to 1, of queries and keys ``[N, P, C]``."""
    # Summed in float32: in bfloat16 a sum of hundreds of channels keeps two to three digits, and the softmax amplifies
    # what is lost.
    energy = jnp.einsum("nic,njc->nij", theta, phi, preferred_element_type=jnp.float32)
    return jax.nn.softmax(energy / jnp.sqrt(theta.shape[-1]), axis=-1)
