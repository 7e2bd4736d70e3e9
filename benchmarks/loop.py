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
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.timing import compiled, machine, milliseconds
from jaxdet.config import load_config
from jaxdet.models.schedule import make_schedule
from jaxdet.models.two_stage import TwoStage
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Proposals, Targets

IOUS = (0.5, 0.6, 0.7, 0.75, 0.8)


def make_targets(
    batch: int, hw: tuple[int, int], objects: int = 20, proposals: int = 1000
) -> tuple[Targets, Proposals]:
    """Objects of 20 to 200 pixels, and proposals near them so that the samplers find positives."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(20), np.log(min(200, *hw) - 1), (batch, objects, 2)))
    corner = rng.uniform(0, 1, (batch, objects, 2)) * (np.array(hw[::-1]) - size)
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    near = boxes[:, np.arange(proposals) % objects]
    near = near + rng.normal(0, 0.08, near.shape).astype(np.float32) * np.tile(near[..., 2:] - near[..., :2], 2)
    masks = np.ones((batch, objects, 56, 56), np.uint8)
    real = np.ones((batch, objects), bool)
    targets = Targets(boxes, np.zeros((batch, objects), np.int32), masks, boxes, ~real, real)
    valid = jnp.ones((batch, proposals), bool)
    return targets, Proposals(jnp.asarray(near), valid.astype(jnp.float32), valid)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="boxes a step and image")
    parser.add_argument("--image", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 2, 3, 4, 5))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    inputs = make_inputs(args.batch, tuple(args.image))
    table = Table(title=f"R3-CNN's heads, {args.batch} x {args.samples} boxes a step; {machine()}")
    for column in (
        "steps",
        "",
        "lines",
        "compile s",
        "forward ms",
        "lines with gradient",
        "compile s",
        "with gradient ms",
    ):
        table.add_column(column, justify="right")
    for steps in args.steps:
        for unroll in (False, True):
            model = make_model(steps, args.samples, unroll)
            weights = jax.jit(lambda m=model: m.init(jax.random.key(0), *inputs, method="head_losses"))()

            def loss(weights: Any, model: TwoStage = model) -> jax.Array:
                return sum(model.apply(weights, *inputs, method="head_losses")[0].values())

            forward, compile_forward, lines = compiled(loss, weights)
            backward, compile_backward, more_lines = compiled(jax.value_and_grad(loss), weights)
            times = milliseconds(partial(forward, weights), partial(backward, weights), repeats=args.repeats)
            how = "written out" if unroll else "rolled"
            print(f"{steps} steps {how}: {times[0]:.1f} and {times[1]:.1f} ms", flush=True)
            table.add_row(
                str(steps), how, str(lines), f"{compile_forward:.1f}", f"{times[0]:.0f}",
                str(more_lines), f"{compile_backward:.1f}", f"{times[1]:.0f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
