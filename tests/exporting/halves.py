"""A detector that costs nothing: what it finds follows from the size and the colour of an image alone."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdet.data import Category, Data
from jaxdet.structures import Batch, Detections, Masks
from jaxdet.trained import Trained

DATA = Data(short_side=32, long_side=64, workers=0)


class Halves:
    """Label 1 in the left half of every image, the more surely the redder it is, and label 0 in the right half.

    A third slot is never valid, a fourth has a box that is no number, and a fifth one without area.
    """

    num_classes = 2

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        height, width = jnp.asarray(batch.true_hw).T
        none = jnp.zeros_like(width)
        left, right = jnp.stack([none, none, width / 2, height], -1), jnp.stack([width / 2, none, width, height], -1)
        outside = jnp.stack([width, none, width, height], -1)
        boxes = jnp.stack([left, right, left, left * jnp.nan, outside], 1)
        red = jnp.asarray(batch.image)[:, 0, 0, 0] / 255.0
        scores = jnp.stack([red, 0.4 + none, *[1.0 + none] * 3], 1) * variables["params"]["confidence"]
        labels = jnp.tile(jnp.array([1, 0, 0, 0, 0]), (len(red), 1))
        valid = jnp.tile(jnp.array([True, True, False, True, True]), (len(red), 1))
        masks = Masks(jnp.ones((len(red), 5, 28, 28)), boxes)
        return Detections(boxes, scores, labels, valid, labels, masks, mask_scores=scores / 2)


def halves(data: Data = DATA, categories: tuple[Category, ...] = (Category(3, "dog"), Category(90, "cat"))) -> Trained:
    experiment: Any = SimpleNamespace(model=Halves(), data=data)
    return Trained(experiment, {"params": {"confidence": np.array(1.0, np.float32)}}, categories, 1)


def grey(red: int, hw: tuple[int, int] = (32, 64)) -> np.ndarray:
    """An image of one colour."""
    return np.full((*hw, 3), (red, 120, 120), np.uint8)
