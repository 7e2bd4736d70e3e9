"""ConvNeXt (Liu et al. 2022, *A ConvNet for the 2020s*) as a detection backbone.

Letters in shapes: B images, H W canvas, h w a map, C channels.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.blocks.layers import Conv, LayerNorm, Linear
from jaxdet.ops.devices import apply_cast
from jaxdet.ranges import CHANNELS, LAYERS, Range, check_ranges
from jaxdet.structures import Levels

# Both as in the paper (appendix A.1) and the authors' code.
_INIT = nn.initializers.truncated_normal(0.02)
_EPSILON = 1e-6


class _Block(nn.Module):
    """7x7 depthwise convolution, norm, four times the channels and back: ``[B, h, w, C]`` -> the same shape.

    The residual is scaled by a factor for each channel, which starts at 1e-6.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = Conv(channels, 7, kernel_init=_INIT, groups=channels, name="depthwise")(x)
        y = Linear(4 * channels, _INIT, name="expand")(LayerNorm(_EPSILON, name="norm")(y))
        y = Linear(channels, _INIT, name="reduce")(nn.gelu(y, approximate=False))
        scale = self.param("scale", nn.initializers.constant(1e-6), (channels,))
        return x + apply_cast(lambda y, scale: y * scale, y, scale)


class ConvNeXt(nn.Module):
    """Image ``[B, H, W, 3]`` -> ``{2: C2, .., 5: C5}``; H and W are multiples of 32.

    ``depths`` and ``widths`` are blocks and channels of the four stages; the default is ConvNeXt-T.  Each map that
    leaves has a norm of its own, as in the authors' detectors.  The first ``frozen_stages`` stages, the stem with the
    first of them, are not trained.  ``remat``: in training, what is inside blocks is computed again for their
    gradients.  Stochastic depth is left out.
    """

    depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    frozen_stages: int = 0
    remat: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, depths=LAYERS, widths=CHANNELS, frozen_stages=Range(0, 4))
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array) -> Levels:
        block_type = nn.remat(_Block) if self.remat else _Block
        x, features = image, {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            # Patches of 4x4 pixels first, then of 2x2; the stem has its norm behind, the others before.
            norm = LayerNorm(_EPSILON, name=f"down{stage}_norm")
            x = _patches(x, 4, width, "down1_conv") if stage == 1 else _patches(norm(x), 2, width, f"down{stage}_conv")
            x = norm(x) if stage == 1 else x
            for i in range(depth):
                x = block_type(name=f"stage{stage}_{i}")(x)
            if stage <= self.frozen_stages:
                x = jax.lax.stop_gradient(x)
            features[stage + 1] = LayerNorm(_EPSILON, name=f"out{stage + 1}")(x)
        return features

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path below the backbone belongs to a frozen stage."""
        stage = re.match(r"(?:down|stage)(\d)", path[0])
        return stage is not None and int(stage[1]) <= self.frozen_stages


def _patches(x: jax.Array, size: int, features: int, name: str) -> jax.Array:
    """A linear map of each patch: ``[B, h, w, C]`` -> ``[B, h / size, w / size, features]``."""
    return jnp.asarray(Conv(features, size, size, kernel_init=_INIT, padding=0, name=name)(x))
