"""Grouped 3x3 convolutions: XLA's own, and dense blocks of some groups at a time, forward and with gradients.

    python -m benchmarks.ops.grouped_conv                   # ResNeXt-101 32x8d at 400x667
    python -m benchmarks.ops.grouped_conv --no-gradient     # XLA takes ten seconds for each gradient on a CPU

"factor" is XLA / blocks.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.measure import compiled, machine, markdown, milliseconds
from jaxdet.ops.conv.direct import CHANNELS_LAST
from jaxdet.ops.conv.grouped import conv_in_blocks
from jaxdet.runtime.large_pages import ask_for_large_pages

GROUPS = 32
STAGES = {"C2": (100, 168, 256), "C3": (50, 84, 512), "C4": (25, 42, 1024), "C5": (13, 21, 2048)}
"""Rows, columns and channels of the grouped convolutions of each stage."""

HEAD = ("stage", "of", "work", "ms XLA", "blocks", "factor")


def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """With ``feature_group_count``."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=CHANNELS_LAST, feature_group_count=GROUPS
    )


def in_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As jaxdet does it on a CPU."""
    return conv_in_blocks(x, kernel, 1, (1, 1))


def row(stage: str, gradients: bool, repeats: int) -> list[Any]:
    """One line of the table."""
    rows, columns, channels = STAGES[stage]
    x = jax.random.normal(jax.random.key(0), (1, rows, columns, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels // GROUPS, channels)) / channels

    def work(conv: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[], Any]:
        both = compiled(lambda x, kernel: jax.vjp(conv, x, kernel)[1](x) if gradients else conv(x, kernel), x, kernel)
        return lambda: both.call(x, kernel)

    ms = milliseconds(work(by_xla), work(in_blocks), repeats=repeats)
    size = f"{rows}x{columns}, {channels} channels"
    return [stage, size, "gradients" if gradients else "forward", *ms, ms[0] / ms[1]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-gradient", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    works = (False,) if args.no_gradient else (False, True)
    rows = [row(stage, gradients, args.repeats) for gradients in works for stage in STAGES]
    print(f"{machine()}\n\n{markdown(HEAD, rows)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
