"""Operators on arrays in torch layout, as golden files have them: NCHW, and for each box the number of its image."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops import roi_align as ops

Array = np.ndarray


def sa_roi_align(
    feat: Array, rois: Array, prob: Array, scale: float, size: tuple[int, int], ratio: int, aligned: bool
) -> Array:
    """Crops ``[N, C, *size]`` of ``feat [B, C, H, W]`` by ``rois [N, 5]`` (image, box) and ``prob [N, Hp, Wp]``."""
    return np.asarray(_crops(feat, prob, rois, scale, tuple(size), ratio, aligned))


def _with_gradients(*arguments: Any) -> tuple[Array, Array, Array]:
    """The crops, and the gradients of their product with the last argument with respect to ``feat`` and ``prob``."""
    feat, rois, prob, scale, size, ratio, aligned, cotangent = arguments
    return tuple(map(np.asarray, _gradients(feat, prob, rois, cotangent, scale, tuple(size), ratio, aligned)))


sa_roi_align.vjp = _with_gradients  # type: ignore[attr-defined]


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _crops(
    feat: jax.Array, prob: jax.Array, rois: jax.Array, scale: float, size: tuple[int, int], ratio: int, aligned: bool
) -> jax.Array:
    # Every image gets all boxes, of which those of other images do not count.
    images = len(feat)
    boxes, probs = (jnp.broadcast_to(a, (images, *a.shape)) for a in (rois[:, 1:], prob))
    valid = rois[:, 0] == jnp.arange(images)[:, None]
    level, maps = jnp.zeros(valid.shape, jnp.int32), [jnp.moveaxis(feat, 1, -1)]
    options = {"size": size, "sampling_ratio": ratio, "aligned": aligned}
    return jnp.moveaxis(ops.sa_roi_align(maps, (scale,), boxes, level, valid, probs, **options).sum(0), -1, 1)


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _gradients(feat: jax.Array, prob: jax.Array, rois: jax.Array, cotangent: jax.Array, *settings: Any) -> Any:
    crops, back = jax.vjp(lambda f, p: _crops(f, p, rois, *settings), feat, prob)
    return crops, *back(cotangent)
