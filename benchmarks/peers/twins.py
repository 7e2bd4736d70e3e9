"""The torch sides of the benchmarks, where torch is importable: ``benchmarks/peers/torch_NAME.py``.

torch is no dependency of jaxdet.  For the comparison: ``pip install torch==2.13.0``, and torchvision beside it for its
compiled RoIAlign and NMS.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.measure import Peak, beside_peak


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


@functools.cache
def torchvision_ops() -> Any | None:
    """torchvision's operators if its compiled ones can be loaded; else None, and a line that says so."""
    try:
        torchvision = importlib.import_module("torchvision")
        loaded = bool(torchvision.extension._has_ops())
    except (ImportError, RuntimeError, OSError):  # a torchvision built for another torch raises RuntimeError
        loaded = False
    if not loaded:
        print("torchvision's operators cannot be loaded: plain torch stands in their place", file=sys.stderr)
        return None
    return torchvision.ops


def in_turn(
    ours: Sequence[Callable[[], Any]], theirs: Sequence[Callable[[], Any]], repeats: int, dtype: str = "float32"
) -> list[tuple[Peak, float, float | None]]:
    """The machine's peak, and median milliseconds of each of ours and of its twin, all in turn; no twins: None."""
    ms, peak = beside_peak(*ours, *theirs, repeats=repeats, dtype=dtype)
    twins: list[float | None] = [*ms[len(ours) :]] if theirs else [None] * len(ours)
    return [(peak, mine, twin) for mine, twin in zip(ms[: len(ours)], twins, strict=True)]


def apart(torch_results: Any, jax_results: Any) -> str:
    """Largest absolute difference of arrays in the same layout, and the largest value for scale."""
    pairs = [(np.asarray(t.detach()), np.asarray(j)) for t, j in zip(torch_results, jax_results, strict=True)]
    worst = max(float(np.abs(t - j).max()) for t, j in pairs)
    return f"apart by {worst:.1e} of {max(float(np.abs(t).max()) for t, _ in pairs):.1e}"
