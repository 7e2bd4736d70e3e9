"""The least time that a piece of work can take on this machine, and tables that compare with it.

The machine's peaks are measured, not read from a data sheet: a product of large matrices, and a pass over an array that
no cache holds.  A floor is the larger of FLOPs over the first and bytes over the second; the share of it that was
achieved is floor / time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

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
    """Products as XLA counts them in the traced program; loops, of RoIAlign and NMS alone, count as one round.

    Bytes are those of arguments and results: what is between them could stay in a cache that is large enough.
    """
    memory = program.call.memory_analysis()
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Cost(program.lowered.cost_analysis()["flops"], moved)


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
