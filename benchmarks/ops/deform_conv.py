"""Deformable convolutions beside ordinary ones of the same size: time, memory, share of the floor.

    python -m benchmarks.ops.deform_conv                    # the 3x3 convolutions of ResNet-50 at 800x1333
    python -m benchmarks.ops.deform_conv --only C4 --repeats 9
    python -m tools.zoo --time dcn_mask_rcnn_r50_fpn        # the whole model, in multiples of the one without

Offsets are normal, of one pixel.  "plain" is the convolution without offsets, "factor" how many times its time the
deformable one takes; "memory" is what the compiled program takes beside arguments and results.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.measure import Compiled, beside_peak, compiled, machine, markdown, program_cost
from jaxdet.ops.conv.deform import deform_conv
from jaxdet.ops.conv.direct import direct_conv
from jaxdet.runtime.large_pages import ask_for_large_pages

CASES = {"C3": (100, 168, 128), "C4": (50, 84, 256), "C5": (25, 42, 512)}
"""Rows, columns and channels of the 3x3 convolutions of a stage, for an image of 800x1333."""

HEAD = ("stage", "of", "work", "ms plain", "v1", "v2", "factor v1", "v2", "floor / v1", "MB plain", "v1", "v2")


def programs(rows: int, columns: int, channels: int, gradients: bool) -> list[tuple[Compiled, tuple[Any, ...]]]:
    """The plain convolution, v1 and v2, forward or with the gradients of everything that goes in."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (1, rows, columns, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, channels)) / channels
    offsets = jax.random.normal(keys[2], (1, rows, columns, 18))
    mask = jax.random.uniform(keys[3], (1, rows, columns, 9))
    upstream = jax.random.normal(keys[4], x.shape)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return direct_conv(x, kernel, 1, (1, 1))

    def with_gradients(forward: Callable[..., jax.Array]) -> Callable[..., Any]:
        def run(*args: jax.Array) -> Any:
            y, pull = jax.vjp(forward, *args)
            return y, pull(upstream)

        return run

    works: list[tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]] = [
        (plain, (x, kernel)),
        (deform_conv, (x, kernel, offsets)),
        (deform_conv, (x, kernel, offsets, mask)),
    ]
    return [(compiled(with_gradients(work) if gradients else work, *args), args) for work, args in works]


def row(stage: str, gradients: bool, repeats: int) -> list[Any]:
    """One line of the table."""
    made = programs(*CASES[stage], gradients)
    ms, peak = beside_peak(*(lambda p=p, args=args: p.call(*args) for p, args in made), repeats=repeats)
    memory = [program.call.memory_analysis().temp_size_in_bytes / 1e6 for program, _ in made]
    floor = program_cost(made[1][0]).floor_ms(peak)
    work = "with gradient" if gradients else "forward"
    size = "{}x{}, {} channels".format(*CASES[stage])
    return [stage, size, work, *ms, ms[1] / ms[0], ms[2] / ms[0], floor / ms[1], *memory]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    stages = [args.only] if args.only else list(CASES)
    rows = [row(stage, gradients, args.repeats) for stage in stages for gradients in (False, True)]
    print(f"{machine()}\n\n{markdown(HEAD, rows)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
