"""How the programs of R3-CNN grow from one stage, rolled into a scan, to several: lines, seconds to compile.

    python -m benchmarks.models.loop_compile --repeats 5

Programs of one and of several stages are traced and compiled in turns.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from benchmarks import programs
from benchmarks.measure import Compiled, compiled, compiled_in_turns, machine, markdown
from benchmarks.models.loop import loss_of, make_inputs, make_model


def makers(args: Namespace, number: int) -> dict[str, Callable[[], Compiled]]:
    """What compiles the programs of that many stages."""
    model = make_model(number, args.samples, unroll=False)
    loss, weights = loss_of(model, make_inputs(args.batch, tuple(args.image)))
    inputs, whole = programs.make_inputs(tuple(args.image), args.batch), programs.make_weights(model)
    return {
        "inference": lambda: programs.inference(model, whole, inputs)[0],
        "training step": lambda: programs.training(model, whole, inputs)[0],
        "heads alone, forward": partial(compiled, loss, weights),
        "heads alone, with gradient": partial(compiled, jax.value_and_grad(loss), weights),
    }


def line(name: str, one: Compiled, more: Compiled) -> list[Any]:
    """A line of the table: each number of several stages by that of one."""
    ratios = [more.lines / one.lines, more.seconds / one.seconds, more.compile_seconds / one.compile_seconds]
    seconds = f"{more.seconds:.1f} by {one.seconds:.1f}"
    return [name, *(f"{ratio:.2f}" for ratio in ratios), seconds]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=3, help="beside one")
    parser.add_argument("--samples", type=int, default=64, help="boxes a stage and image")
    parser.add_argument("--image", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    pair = [makers(args, number) for number in (1, args.stages)]
    found = {name: compiled_in_turns(*(its[name] for its in pair), repeats=args.repeats) for name in pair[0]}
    head = [f"{args.stages} stages by one, rolled", "lines", "to trace and compile", "XLA alone", "seconds"]
    rows = [line(name, *its) for name, its in found.items()]
    setting = f"{args.batch} x {args.image[0]} x {args.image[1]}, {args.samples} boxes a stage and image"
    print(f"{machine()}; {setting}\n\n{markdown(head, rows)}")


if __name__ == "__main__":
    main()
