"""The least time that a piece of work can take on this machine, and tables that compare with it.

The machine's peaks are measured, not read from a data sheet: a product of large matrices, and a pass over an array that
no cache holds.  A floor is the larger of FLOPs over the first and bytes over the second; the share of it that was
achieved is floor / time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from benchmarks.table import markdown
from benchmarks.timing import Compiled, machine, milliseconds


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
    return _products(jaxpr, whole=True) - _products(jaxpr, whole=False)


def _products(jaxpr: Any, *, whole: bool) -> float:
    """FLOPs of matrix products and convolutions, scans taken ``whole`` or for one round."""
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
        total += rounds * sum(_products(inner, whole=whole) for inner in _programs_in(equation.params))
    return total


def _programs_in(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def measured_peak(dtype: str = "float32", repeats: int = 5) -> Peak:
    """The median of some repetitions, in this process."""
    cpu = jax.default_backend() == "cpu"
    side, length = (2048, 2**26) if cpu else (8192, 2**30)
    square = jnp.ones((side, side), dtype)
    line = jnp.ones(length, jnp.float32)
    product, move = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    ms = milliseconds(partial(product, square, square), partial(move, line), repeats=repeats)
    return Peak(1e3 * 2 * side**3 / ms[0], 1e3 * 2 * line.nbytes / ms[1])


def floor_table(rows: Sequence[Row], peak: Peak, more: str = "") -> str:
    """Heading with machine and peaks, and a line for each row; columns of torch and notes where there are any."""
    with_torch, with_notes = any(row.torch_ms for row in rows), any(row.note for row in rows)
    head = ["", "GFLOP", "MB", "floor ms", "ms", "share of floor"]
    head += ["torch ms", "torch / jaxdet"] * with_torch + [""] * with_notes
    lines = []
    for row in rows:
        floor = row.cost.floor_ms(peak)
        line = [row.what, row.cost.flops / 1e9, row.cost.bytes / 1e6, floor, row.ms, f"{floor / row.ms:.1%}"]
        ratio = None if row.torch_ms is None else row.torch_ms / row.ms
        lines.append(line + [row.torch_ms, ratio] * with_torch + [row.note] * with_notes)
    peaks = f"{peak.flops / 1e9:,.0f} GFLOP/s and {peak.bytes / 1e9:.1f} GB/s measured"
    return f"{machine()}; {peaks}{more}\n\n{markdown(head, lines)}"
