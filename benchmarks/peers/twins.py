"""The torch sides of the benchmarks, where torch is importable: ``benchmarks/peers/torch_NAME.py``.

torch is no dependency of jaxdet.  For the comparison: ``pip install torch==2.13.0``.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.measure import milliseconds


@functools.cache
def torch_twin(name: str) -> ModuleType | None:
    """The module, with torch on as many threads as XLA takes; None, and a line that says so, without torch."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("torch not importable: its columns are left out", file=sys.stderr)
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return importlib.import_module(f"benchmarks.peers.torch_{name}")


def in_turn(
    ours: Sequence[Callable[[], Any]], theirs: Sequence[Callable[[], Any]], repeats: int
) -> list[tuple[float, float | None]]:
    """Median milliseconds of each of ours and of its twin, all in turn; None for the twins if there are none."""
    ms = milliseconds(*ours, *theirs, repeats=repeats)
    twins: list[float | None] = [*ms[len(ours) :]] if theirs else [None] * len(ours)
    return list(zip(ms[: len(ours)], twins, strict=True))


def apart(torch_results: Any, jax_results: Any) -> str:
    """Largest absolute difference of arrays in the same layout, and the largest value for scale."""
    pairs = [(np.asarray(t.detach()), np.asarray(j)) for t, j in zip(torch_results, jax_results, strict=True)]
    worst = max(float(np.abs(t - j).max()) for t, j in pairs)
    return f"apart by {worst:.1e} of {max(float(np.abs(t).max()) for t, _ in pairs):.1e}"
