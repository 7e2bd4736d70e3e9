"""Inference time of models in multiples of another one's."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.timing import machine, milliseconds
from jaxdet.structures import Batch


def make_batch(height: int, width: int, number: int = 1) -> Batch:
    """Images of noise, on a canvas whose sides are multiples of 32."""
    canvas = [-(-side // 32) * 32 for side in (height, width)]
    image = np.zeros((number, *canvas, 3), np.uint8)
    image[:, :height, :width] = np.random.default_rng(0).integers(0, 256, (number, height, width, 3))
    return Batch(
        image=image,
        true_hw=np.tile(np.float32([height, width]), (number, 1)),
        scale=np.ones((number, 2), np.float32),
        original_hw=np.tile(np.int32([height, width]), (number, 1)),
        index=np.arange(number, dtype=np.int32),
        valid=np.ones(number, bool),
    )


def relative_times(models: Mapping[str, Any], base: Any, *, height: int, width: int, repeats: int) -> dict[str, Any]:
    """How long models take for one image, divided by the time of ``base``; and how that was measured.

    Weights are random.  The models take turns; times are medians of ``repeats`` turns.
    """
    batch = make_batch(height, width)
    base_ms, *found = milliseconds(*(_call(model, batch) for model in (base, *models.values())), repeats=repeats)
    return {
        "machine": machine(),
        "height": height,
        "width": width,
        "repeats": repeats,
        "base_ms": round(base_ms, 1),
        "ratios": {name: round(ms / base_ms, 3) for name, ms in zip(models, found, strict=True)},
    }


def _call(model: Any, batch: Batch) -> Callable[[], Any]:
    variables = jax.jit(functools.partial(model.init, method="predict"))(jax.random.key(0), batch)
    predict = jax.jit(functools.partial(model.apply, method="predict"))
    return lambda: predict(variables, batch)
