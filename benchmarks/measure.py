"""What scripts measure with: compiling and timing apart from each other, the machine's floor, and tables.

A floor is the least time that a piece of work can take on this machine: the larger of its FLOPs over the FLOPs a second
of a product of large matrices, and its bytes over the bytes a second of a pass over an array that no cache holds.  Both
speeds are measured in turn with the work, not read from a data sheet.  The share of it that is reached is floor / time.
"""

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_core: Any = jax.extend.core  # whose types do not show what it exports


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
    peers = "".join(
        f", {peer} {sys.modules[peer].__version__}" for peer in ("torch", "torchvision") if peer in sys.modules
    )
    return f"{name}, jax {jax.__version__}{peers}, Python {platform.python_version()}"


def _processor() -> str:
    """As Linux names it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(": ")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


@dataclass(frozen=True)
class Peak:
    """What the machine reached."""

    flops: float  #: per second
    bytes: float  #: per second, read and written


@dataclass(frozen=True)
class Cost:
    """The least that a piece of work has to do: every product once, every argument and result through memory once."""

    flops: float
    bytes: float

    def floor_ms(self, peak: Peak) -> float:
        """Milliseconds."""
        return 1e3 * max(self.flops / peak.flops, self.bytes / peak.bytes)


@dataclass(frozen=True)
class Row:
    """A measurement: what, its least cost, milliseconds here and in torch, and what more there is to say."""

    what: str
    cost: Cost
    peak: Peak  #: measured in turn with it
    ms: float
    torch_ms: float | None = None
    note: str = ""


def program_cost(program: Compiled) -> Cost:
    """Products as XLA counts them in the traced program, and what it leaves out of them: later rounds of loops.

    Loops whose rounds depend on the data, which those of RoIAlign and NMS alone do, count as one round.  Bytes are
    those of arguments and results: what is between them could stay in a cache that is large enough.
    """
    memory = program.call.memory_analysis()
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    counted: float = program.traced.lower().cost_analysis()["flops"]
    return Cost(counted + later_rounds(program.traced.jaxpr.jaxpr), moved)


def later_rounds(jaxpr: Any) -> float:
    """FLOPs of matrix products and convolutions in all rounds but the first of the scans in a program."""
    return products(jaxpr) - products(jaxpr, whole=False)


def products(jaxpr: Any, *, whole: bool = True) -> float:
    """FLOPs of matrix products and convolutions over all devices, scans taken ``whole`` or for one round."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(result) * math.prod(kernel) / features
        rounds = equation.params["length"] if whole and equation.primitive.name == "scan" else 1
        if equation.primitive.name == "shard_map":  # inside it are the shapes of one device
            rounds = equation.params["mesh"].size
        total += rounds * sum(products(inner, whole=whole) for inner in _programs_in(equation.params))
    return total


def _programs_in(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, _core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, _core.Jaxpr):
                yield each


def beside_peak(*works: Callable[[], Any], repeats: int, dtype: str = "float32") -> tuple[list[float], Peak]:
    """Median milliseconds of each of the works, and what the machine reached in the same turns.

    Measured before or after them, the machine may have been at another speed, and a share of the floor above 1.
    """
    cpu = jax.default_backend() == "cpu"
    side, length = (2048, 2**26) if cpu else (8192, 2**30)
    square = jnp.ones((side, side), dtype)
    line = jnp.ones(length, jnp.float32)
    product, move = partial(jax.jit(jnp.matmul), square, square), partial(jax.jit(lambda x: x + 1), line)
    *ms, product_ms, move_ms = milliseconds(*works, product, move, repeats=repeats)
    return ms, Peak(1e3 * 2 * side**3 / product_ms, 1e3 * 2 * line.nbytes / move_ms)


def floor_table(rows: Sequence[Row], more: str = "") -> str:
    """Heading with machine and peaks, and a line for each row; columns of torch and notes where there are any."""
    with_torch, with_notes = any(row.torch_ms for row in rows), any(row.note for row in rows)
    head = ["", "GFLOP", "MB", "floor ms", "ms", "share of floor"]
    head += ["torch ms", "torch / jaxdet"] * with_torch + [""] * with_notes
    lines = []
    for row in rows:
        floor = row.cost.floor_ms(row.peak)
        line = [row.what, row.cost.flops / 1e9, row.cost.bytes / 1e6, floor, row.ms, f"{floor / row.ms:.1%}"]
        ratio = None if row.torch_ms is None else row.torch_ms / row.ms
        lines.append(line + [row.torch_ms, ratio] * with_torch + [row.note] * with_notes)
    flops = _range([f"{row.peak.flops / 1e9:,.0f}" for row in sorted(rows, key=lambda row: row.peak.flops)])
    moved = _range([f"{row.peak.bytes / 1e9:.1f}" for row in sorted(rows, key=lambda row: row.peak.bytes)])
    return f"{machine()}; {flops} GFLOP/s and {moved} GB/s measured{more}\n\n{markdown(head, lines)}"


def _range(ascending: Sequence[str]) -> str:
    """The first and the last; one where they are equal."""
    return " to ".join(dict.fromkeys((ascending[0], ascending[-1])))


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns whose cells are numbers are aligned to the right."""
    aligned = ["---:" if rows and all(_is_number(row[i]) for row in rows) else "---" for i in range(len(head))]
    lines = [list(head), aligned, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_and_spread(values: Iterable[float]) -> str:
    """The mean and, of more than one value, the standard deviation, as a cell of a table."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _is_number(cell: Any) -> bool:
    text = _cell(cell).replace(",", "").rstrip("%")
    return text in ("", "-") or text.replace(".", "", 1).replace("e-", "", 1).isdigit()


def _cell(cell: Any) -> str:
    """Numbers with three digits or more, none as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
