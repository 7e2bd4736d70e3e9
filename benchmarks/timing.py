"""What the scripts of this folder share: compiling and timing a function apart from each other."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float, int]:
    """The compiled function, seconds to trace and compile it, and lines of the traced program."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    lines = lowered.as_text().count("\n")
    program = lowered.compile()
    return program, time.perf_counter() - start, lines


def milliseconds(*works: Callable[[], Any], repeats: int = 5) -> list[float]:
    """Median milliseconds of each of the works, run in turn so that whatever else goes on hits all of them."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        jax.block_until_ready(work())
    for _ in range(repeats):
        for work, found in zip(works, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(work())
            found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def machine() -> str:
    """Device and versions, for the heading of a table."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}, Python {platform.python_version()}"
