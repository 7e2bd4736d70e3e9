"""Boxes as a detector sees them."""

import numpy as np
from numpy.typing import NDArray

HW = (800, 1088)  # pixels


def random_boxes(rng: np.random.Generator, number: int) -> NDArray[np.float32]:
    """Boxes ``[number, 4]`` of 16 to 600 pixels, in huddles, partly beyond an image of size `HW`."""
    huddles = number // 20 + 1
    centres = rng.uniform(0, 1, (huddles, 2)) * HW[::-1]
    sizes = np.exp(rng.uniform(np.log(16), np.log(600), (huddles, 2)))
    centre = centres[rng.integers(huddles, size=number)] + rng.normal(0, 10, (number, 2))
    size = sizes[rng.integers(huddles, size=number)] * np.exp(rng.normal(0, 0.1, (number, 2)))
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)
