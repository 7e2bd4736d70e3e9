"""What the scripts of this folder share: compiling and timing a function apart from each other."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache


class Compiled(NamedTuple):
    """A compiled function and what compiling it took."""

    call: Any
    traced: Any
    trace_seconds: float
    compile_seconds: float  #: XLA alone

    @property
    def lines(self) -> int:
        """Of the traced program."""
        return int(self.traced.lower().as_text().count("\n"))

    @property
    def seconds(self) -> float:
        """To trace and to compile."""
        return self.trace_seconds + self.compile_seconds


def compiled(
    function: Callable[..., Any],
    *args: Any,
    donate: tuple[int, ...] = (),
    options: dict[str, str] | None = None,
    cache: str | None = None,
) -> Compiled:
    """Traces and compiles a function, from nothing unless ``cache`` is a folder of compiled programs."""
    with _compilation_cache(cache):
        start = time.perf_counter()
        traced = jax.jit(function, donate_argnums=donate, compiler_options=options).trace(*args)
        lowered = traced.lower()
        middle = time.perf_counter()
        program = lowered.compile()
        end = time.perf_counter()
    return Compiled(program, traced, middle - start, end - middle)


def compiled_in_turns(*makers: Callable[[], Compiled], repeats: int) -> list[Compiled]:
    """Programs, each with medians of ``repeats`` compilations, made in turns, with nothing of them left in memory.

    A turn before these does not count: the first program of a process takes longer.  Turns, because the speed of a
    machine changes within minutes.
    """
    programs: list[Compiled] = []
    tracing: list[list[float]] = [[] for _ in makers]
    compiling: list[list[float]] = [[] for _ in makers]
    for _ in range(1 + repeats):
        programs.clear()
        for make, traced, built in zip(makers, tracing, compiling, strict=True):
            jax.clear_caches()
            programs.append(make())
            traced.append(programs[-1].trace_seconds)
            built.append(programs[-1].compile_seconds)
    return [
        program._replace(trace_seconds=statistics.median(traced[1:]), compile_seconds=statistics.median(built[1:]))
        for program, traced, built in zip(programs, tracing, compiling, strict=True)
    ]


@contextmanager
def _compilation_cache(folder: str | None) -> Iterator[None]:
    """Inside, compiled programs are kept in the folder and read from it; None: there is no such folder."""
    settings: dict[str, Any] = {
        "jax_enable_compilation_cache": folder is not None,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    if folder is not None:
        settings["jax_compilation_cache_dir"] = folder
    before = {name: getattr(jax.config, name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()  # jax decides once whether it has a cache


def milliseconds(*works: Callable[[], Any], repeats: int = 5) -> list[float]:
    """Median milliseconds of each of the works, run in turn so that whatever else goes on hits all of them.

    A turn is two runs, of which the second counts: as in a loop over images, memory and caches are its own by then.
    (A machine may take the memory that a program leaves idle for some seconds; to get gigabytes of it back takes as
    long as the work.)
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, found in zip(works, times, strict=True):
            jax.block_until_ready(work())
            start = time.perf_counter()
            jax.block_until_ready(work())
            found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def machine() -> str:
    """Device and versions, for the heading of a table."""
    device = jax.devices()[0]
    name = f"{len(os.sched_getaffinity(0))} cores of {_processor()}" if device.platform == "cpu" else device.device_kind
    torch = f", torch {sys.modules['torch'].__version__}" if "torch" in sys.modules else ""
    return f"{name}, jax {jax.__version__}{torch}, Python {platform.python_version()}"


def _processor() -> str:
    """As Linux names it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(": ")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
