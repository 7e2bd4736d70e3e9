"""Inference time of models in multiples of another one's."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.programs import Inputs, inference, make_inputs, make_weights
from benchmarks.timing import milliseconds


def relative_times(
    models: Mapping[str, Any], base: Any, hw: tuple[int, int], repeats: int
) -> Iterator[tuple[str, float]]:
    """Name of each model, and how long it takes for one image of size ``hw``, divided by the time of ``base``.

    Each takes turns with ``base`` alone, and times are medians of ``repeats`` turns.  How models are fed:
    `benchmarks.programs`.
    """
    inputs = make_inputs(hw, 1)
    first = _call(base, inputs)
    for name, model in models.items():
        base_ms, ms = milliseconds(first, _call(model, inputs), repeats=repeats)
        yield name, round(ms / base_ms, 3)


def _call(model: Any, inputs: Inputs) -> Callable[[], Any]:
    return inference(model, make_weights(model), inputs)[1]
