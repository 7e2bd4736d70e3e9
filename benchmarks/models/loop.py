"""R3-CNN's loop of one to five stages, rolled into a scan and written out: time to compile and time of a call.

    python -m benchmarks.models.loop                          # small enough for two CPU cores
    python -m benchmarks.models.loop --samples 512 --image 832 1344 --batch 4      # an accelerator, full size

Only the heads run, on random features: forward (losses) and forward with gradient.  How compiling grows with the
stages: ``benchmarks.models.loop_compile``.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.inputs import make_targets
from benchmarks.measure import compiled, compiled_in_turns, machine, markdown, milliseconds
from jaxdet.config import load_config
from jaxdet.models.roi.schedule import make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.ops.sampling import Sampler
from jaxdet.runtime.large_pages import ask_for_large_pages
from jaxdet.structures import Features

IOUS = (0.5, 0.6, 0.7, 0.75, 0.8)


def make_inputs(batch: int, hw: tuple[int, int]) -> tuple[Any, ...]:
    """Features, proposals, targets, sizes, key."""
    targets, proposals = make_targets(batch, hw)
    levels = {
        level: jax.random.normal(jax.random.key(level), (batch, hw[0] >> level, hw[1] >> level, 256))
        for level in (2, 3, 4, 5)
    }
    sizes = jnp.tile(jnp.array(hw, jnp.float32), (batch, 1))
    return Features(levels), proposals, jax.tree.map(jnp.asarray, targets), sizes, jax.random.key(0)


def make_model(number: int, samples: int, unroll: bool) -> TwoStage:
    """R3-CNN, naive, with that many stages."""
    stages = make_stages((0,) * number, IOUS[:number], (1.0,) * number, sampler=Sampler(samples, 0.25))
    model: TwoStage = load_config("configs/r3_cnn.py").model
    return model.clone(stages=stages, unroll=unroll)


def loss_of(model: TwoStage, inputs: tuple[Any, ...]) -> tuple[Callable[[Any], jax.Array], Any]:
    """The sum of the losses of the stages as a function of their weights, and weights."""
    features, proposals, _, sizes, _ = inputs
    weights = jax.jit(lambda: model.init(jax.random.key(0), features, proposals, sizes, method="detect"))()

    def loss(weights: Any) -> jax.Array:
        return sum(model.apply(weights, *inputs, method="stage_losses")[0].values())

    return loss, weights


def lines(args: argparse.Namespace) -> list[list[Any]]:
    """The lines of the table, whose programs are compiled in turns."""
    inputs = make_inputs(args.batch, tuple(args.image))
    ways = [(number, unroll) for number in args.stages for unroll in (False, True)]
    losses = [loss_of(make_model(number, args.samples, unroll), inputs) for number, unroll in ways]
    makers = [partial(compiled, f, weights) for loss, weights in losses for f in (loss, jax.value_and_grad(loss))]
    programs, table = compiled_in_turns(*makers, repeats=args.compilations), []
    for i, ((number, unroll), (_, weights)) in enumerate(zip(ways, losses, strict=True)):
        pair = programs[2 * i : 2 * i + 2]
        times = milliseconds(*(partial(program.call, weights) for program in pair), repeats=args.repeats)
        cells = [(program.lines, program.seconds, ms) for program, ms in zip(pair, times, strict=True)]
        table.append([number, "written out" if unroll else "rolled", *cells[0], *cells[1]])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="boxes a stage and image")
    parser.add_argument("--image", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--stages", type=int, nargs="*", default=(1, 2, 3, 4, 5))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compilations", type=int, default=3, help="of which the median is shown")
    args = parser.parse_args()
    head = ["stages", "", "lines", "compile s", "forward ms", "lines with gradient", "compile s", "with gradient ms"]
    print(f"{machine()}; {args.batch} x {args.samples} boxes a stage\n\n{markdown(head, lines(args))}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
