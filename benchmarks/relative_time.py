"""Inference time of models in multiples of another one's."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks.inputs import make_batch
from benchmarks.timing import machine, milliseconds
from jaxdet.compiling import compiler_options
from jaxdet.structures import Batch


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
    predict = jax.jit(functools.partial(model.apply, method="predict"), compiler_options=compiler_options())
    return lambda: predict(variables, batch)
