"""Seconds from a config to programs that run: traced, compiled, and compiled in a second start from the cache.

    python -m benchmarks.compile_time --repeats 3

The floor of compiling is to find the program in the persistent cache (``JAX_COMPILATION_CACHE_DIR``): reading it is all
that a second start of the same run does beside tracing.
"""

import argparse
import tempfile
from typing import Any

from benchmarks.programs import inference, make_inputs, make_weights, training
from benchmarks.table import markdown
from benchmarks.timing import machine
from jaxdet.config import load_config


def lines(name: str, hw: tuple[int, int], repeats: int) -> list[list[Any]]:
    """A line of the table for inference and one for training."""
    net, inputs = load_config(f"configs/{name}.py").model, make_inputs(hw, 1)
    weights, found = make_weights(net), []
    for kind, make in {"inference": inference, "training step": training}.items():
        program, _ = make(net, weights, inputs, repeats=repeats)
        with tempfile.TemporaryDirectory() as folder:
            make(net, weights, inputs, cache=folder)
            cached = make(net, weights, inputs, cache=folder, repeats=repeats)[0].compile_seconds
        seconds = [program.trace_seconds, program.compile_seconds, cached]
        found.append([f"{name}, {kind}", program.lines, *seconds, f"{cached / program.compile_seconds:.1%}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=("mask_rcnn_r50_fpn", "r3_cnn"))
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    head = ["", "lines of the program", "trace s", "compile s", "from the cache s", "share of floor"]
    table = [line for name in args.configs for line in lines(name, tuple(args.image), args.repeats)]
    print(f"{machine()}\n\n{markdown(head, table)}")


if __name__ == "__main__":
    main()
