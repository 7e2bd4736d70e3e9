"""Whole models side by side: inference of an image, and loss with gradient, in milliseconds and multiples of the first.

    python -m benchmarks.model_speed                                    # Mask R-CNN, R3-CNN, SBR-CNN at 1333x800
    python -m benchmarks.model_speed --image 800 1088 --configs r3_cnn sbr_cnn
    python -m benchmarks.model_speed --dtype bfloat16 --batch 4         # an accelerator

Weights are random.  The heads get proposals around twenty objects, as those of a trained RPN would be, so that the
samplers find their positives and boxes have the sizes of objects.  The RPN runs too.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.loop import make_targets
from benchmarks.relative_time import make_batch
from benchmarks.timing import compiled, machine, milliseconds
from jaxdet.config import load_config
from jaxdet.structures import Batch, Proposals


def losses(net: Any, batch: Batch, proposals: Proposals) -> jax.Array:
    """All losses; the heads train on the proposals given."""
    features, key = net.features(batch), jax.random.key(0)
    terms, _ = net.rpn.losses(features, batch.true_hw, batch.targets, key)
    more, _ = net.head_losses(features, proposals, batch.targets, batch.true_hw, key)
    return sum((terms | more).values())


def detect(net: Any, batch: Batch, proposals: Proposals) -> Any:
    """Detections; the heads look at the proposals given, the RPN's are only made."""
    features = net.features(batch)
    made = net.rpn.proposals(features, batch.true_hw)
    # Adding nothing of them keeps the compiler from leaving the RPN out.
    nothing = 0.0 * jnp.nan_to_num(made.boxes).sum()
    return net.detect(features, proposals.replace(boxes=proposals.boxes + nothing), batch.true_hw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=("mask_rcnn_r50_fpn", "r3_cnn", "sbr_cnn"))
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--unroll", choices=("yes", "no"), help="write steps out, or roll them; else as the model likes"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--inference-only", action="store_true")
    args = parser.parse_args()
    targets, proposals = make_targets(args.batch, tuple(args.image))
    batch = jax.tree.map(jnp.asarray, make_batch(*args.image, args.batch).replace(targets=targets))
    unroll = None if args.unroll is None else args.unroll == "yes"
    works, compile_seconds = [], []
    for name in args.configs:
        net = load_config(f"configs/{name}.py").model.clone(dtype=args.dtype, unroll=unroll)
        weights = jax.jit(partial(net.init, method="predict"))(jax.random.key(0), make_batch(64, 64))

        def train(params: Any, rest: Any, batch: Batch, proposals: Proposals, net: Any = net) -> Any:
            return jax.grad(lambda p: net.apply({**rest, "params": p}, batch, proposals, method=losses))(params)

        def test(weights: Any, batch: Batch, proposals: Proposals, net: Any = net) -> Any:
            return net.apply(weights, batch, proposals, method=detect)

        inference, seconds, _ = compiled(test, weights, batch, proposals)
        works.append(partial(inference, weights, batch, proposals))
        compile_seconds.append(seconds)
        if not args.inference_only:
            step, seconds, _ = compiled(train, weights["params"], weights, batch, proposals)
            works.append(partial(step, weights["params"], weights, batch, proposals))
            compile_seconds.append(seconds)
        print(f"{name}: compiled in {sum(compile_seconds):.0f} s so far", flush=True)
    times = milliseconds(*works, repeats=args.repeats)
    table = Table(title=f"{args.batch} x {args.image[0]}x{args.image[1]}, {args.dtype}; {machine()}")
    kinds = ("inference",) if args.inference_only else ("inference", "loss and gradient")
    for column in ("config", *(c for kind in kinds for c in (f"{kind} ms", "times the first", "compile s"))):
        table.add_column(column, justify="right")
    for i, name in enumerate(args.configs):
        cells = []
        for k in range(len(kinds)):
            at = i * len(kinds) + k
            cells += [f"{times[at]:.0f}", f"{times[at] / times[k]:.2f}", f"{compile_seconds[at]:.1f}"]
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
