"""Seconds from a config to programs that run: traced, compiled, and compiled in a second start from the cache.

    python -m benchmarks.models.compile_time --repeats 3

The floor of compiling is to find the program in the persistent cache (``JAX_COMPILATION_CACHE_DIR``): reading it is all
that a second start of the same run does beside tracing.
"""

import argparse
import tempfile
from typing import Any

from benchmarks.measure import Compiled, compiled_in_turns, machine, markdown
from benchmarks.programs import inference, make_inputs, make_model, make_weights, options, setting, training


def lines(name: str, args: argparse.Namespace) -> list[list[Any]]:
    """A line of the table for inference and one for training."""
    net = make_model(name, args.dtype)
    inputs = make_inputs(tuple(args.image), args.batch)
    weights, found = make_weights(net), []

    def timed(make: Any, **options: Any) -> Compiled:
        return compiled_in_turns(lambda: make(net, weights, inputs, **options)[0], repeats=args.repeats)[0]

    for kind, make in {"inference": inference, "training step": training}.items():
        program = timed(make)
        with tempfile.TemporaryDirectory() as folder:  # filled by the turn that does not count
            cached = timed(make, cache=folder).compile_seconds
        seconds = [program.trace_seconds, program.compile_seconds, cached]
        found.append([f"{name}, {kind}", program.lines, *seconds, f"{cached / program.compile_seconds:.1%}"])
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--configs", nargs="+", default=("mask_rcnn_r50_fpn", "r3_cnn"))
    args = parser.parse_args()
    head = ["", "lines of the program", "trace s", "compile s", "from the cache s", "share of floor"]
    table = [line for name in args.configs for line in lines(name, args)]
    print(f"{machine()}; {setting(args)}\n\n{markdown(head, table)}")


if __name__ == "__main__":
    main()
