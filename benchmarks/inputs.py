"""What is fed to models and operations whose speed or size is asked for: images of noise, objects at random places."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxdet.structures import Batch, Masks, Proposals, Targets

HW = (800, 1088)
"""Of the image that `random_boxes` lie in, pixels."""


def make_batch(height: int, width: int, number: int = 1) -> Batch:
    """Images of noise, on a canvas whose sides are multiples of 32; NumPy leaves, no targets."""
    canvas = [-(-side // 32) * 32 for side in (height, width)]
    image = np.zeros((number, *canvas, 3), np.uint8)
    image[:, :height, :width] = np.random.default_rng(0).integers(0, 256, (number, height, width, 3))
    return Batch(
        image=image,
        true_hw=np.tile(np.array([height, width], np.float32), (number, 1)),
        scale=np.ones((number, 2), np.float32),
        original_hw=np.tile(np.array([height, width], np.int32), (number, 1)),
        index=np.arange(number, dtype=np.int32),
        valid=np.ones(number, bool),
    )


def make_targets(
    batch: int, hw: tuple[int, int], objects: int = 20, proposals: int = 1000
) -> tuple[Targets, Proposals]:
    """Objects of 20 to 200 pixels, and proposals near them so that the samplers find positives."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(20), np.log(min(200, *hw) - 1), (batch, objects, 2)))
    corner = rng.uniform(0, 1, (batch, objects, 2)) * (np.array(hw[::-1]) - size)
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    near = boxes[:, np.arange(proposals) % objects]
    near = near + rng.normal(0, 0.08, near.shape).astype(np.float32) * np.tile(near[..., 2:] - near[..., :2], 2)
    masks = np.ones((batch, objects, 56, 56), np.uint8)
    real = np.ones((batch, objects), bool)
    targets = Targets(boxes, np.zeros((batch, objects), np.int32), Masks(masks, frames=boxes), ~real, real)
    valid = jnp.ones((batch, proposals), bool)
    return targets, Proposals(jnp.asarray(near), valid.astype(jnp.float32), valid)


def random_boxes(rng: np.random.Generator, number: int) -> NDArray[np.float32]:
    """Boxes ``[number, 4]`` of 16 to 600 pixels, in huddles, partly beyond an image of size `HW`."""
    huddles = number // 20 + 1
    centres = rng.uniform(0, 1, (huddles, 2)) * HW[::-1]
    sizes = np.exp(rng.uniform(np.log(16), np.log(600), (huddles, 2)))
    centre = centres[rng.integers(huddles, size=number)] + rng.normal(0, 10, (number, 2))
    size = sizes[rng.integers(huddles, size=number)] * np.exp(rng.normal(0, 0.1, (number, 2)))
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)
