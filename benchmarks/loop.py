"""R3-CNN's loop of one to five steps, rolled into a scan and written out: time to compile and time of a step.

    python -m benchmarks.loop                          # small enough for two CPU cores
    python -m benchmarks.loop --samples 512 --image 832 1344 --batch 4      # an accelerator, full size

Only the heads run, on random features: forward (losses) and forward with gradient.
"""

import argparse
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.inputs import make_targets
from benchmarks.table import markdown
from benchmarks.timing import compiled, machine, milliseconds
from jaxdet.config import load_config
from jaxdet.large_pages import ask_for_large_pages
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.ops.sampling import Sampler

IOUS = (0.5, 0.6, 0.7, 0.75, 0.8)


def make_inputs(batch: int, hw: tuple[int, int]) -> tuple[Any, ...]:
    """Features, proposals, targets, sizes, key."""
    targets, proposals = make_targets(batch, hw)
    features = {
        level: jax.random.normal(jax.random.key(level), (batch, hw[0] >> level, hw[1] >> level, 256))
        for level in (2, 3, 4, 5)
    }
    sizes = jnp.tile(jnp.array(hw, jnp.float32), (batch, 1))
    return features, proposals, jax.tree.map(jnp.asarray, targets), sizes, jax.random.key(0)


def make_model(steps: int, samples: int, unroll: bool) -> TwoStage:
    """R3-CNN, naive, with that many steps."""
    schedule = make_schedule((0,) * steps, IOUS[:steps], (1.0,) * steps, sampler=Sampler(samples, 0.25))
    return dataclasses.replace(load_config("configs/r3_cnn.py").model, schedule=schedule, unroll=unroll)


def lines(args: argparse.Namespace, steps: int, unroll: bool) -> list[Any]:
    """A line of the table."""
    inputs = make_inputs(args.batch, tuple(args.image))
    model = make_model(steps, args.samples, unroll)
    weights = jax.jit(lambda: model.init(jax.random.key(0), *inputs, method="head_losses"))()

    def loss(weights: Any) -> jax.Array:
        return sum(model.apply(weights, *inputs, method="head_losses")[0].values())

    programs = [compiled(f, weights, repeats=args.compilations) for f in (loss, jax.value_and_grad(loss))]
    times = milliseconds(*(partial(program.call, weights) for program in programs), repeats=args.repeats)
    measured = [(program.lines, program.seconds, ms) for program, ms in zip(programs, times, strict=True)]
    return [steps, "written out" if unroll else "rolled", *measured[0], *measured[1]]


def against_one(table: list[list[Any]]) -> str:
    """Program and compile time of the most steps by those of one."""
    found = []
    for way in ("rolled", "written out"):
        its = [line for line in table if line[1] == way]
        first, last = its[0], its[-1]
        ratios = [f"{what} {last[i] / first[i]:.2f}" for i, what in {5: "lines", 6: "compile time"}.items()]
        found.append(f"{way} {', '.join(ratios)}")
    return f"With gradient, {last[0]} steps by {first[0]}: {'; '.join(found)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="boxes a step and image")
    parser.add_argument("--image", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 2, 3, 4, 5))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compilations", type=int, default=3, help="of which the median is shown")
    args = parser.parse_args()
    table = [lines(args, steps, unroll) for steps in args.steps for unroll in (False, True)]
    head = ["steps", "", "lines", "compile s", "forward ms", "lines with gradient", "compile s", "with gradient ms"]
    print(f"{machine()}; {args.batch} x {args.samples} boxes a step\n\n{markdown(head, table)}\n\n{against_one(table)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
