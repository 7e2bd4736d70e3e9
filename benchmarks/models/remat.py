"""Memory and time of a training step with and without rematerialisation.

    python -m benchmarks.models.remat --image 800 1333
    python -m benchmarks.models.remat --dtype bfloat16 --batch 4       # an accelerator

"kept" is what waits for the backward pass, as the program is traced; "compiled" is the memory that XLA sets aside for
values between arguments and results.
"""

import math
from functools import partial
from typing import Any

import jax

from benchmarks.measure import machine, markdown, milliseconds
from benchmarks.programs import Inputs, OnGiven, make_inputs, make_weights, options, setting, training
from jaxdet.config import load_config, override
from jaxdet.runtime.large_pages import ask_for_large_pages


def kept_bytes(net: Any, weights: Any, inputs: Inputs) -> int:
    """Bytes between forward and backward pass, parameters included."""

    def loss(params: Any, rest: Any) -> jax.Array:
        detector = OnGiven(net, inputs.proposals)
        terms, _ = detector.apply({**rest, "params": params}, inputs.batch, jax.random.key(0), "losses")
        return sum(terms.values())

    residuals = jax.eval_shape(lambda w: jax.vjp(partial(loss, rest=w), w["params"])[1], weights)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


def branches(model: Any) -> list[str]:
    """Places of the box and mask branches in a model, as overrides have them; a model of one stage has none."""
    boxes = [f"heads.{i}" for i in range(len(getattr(model, "heads", ())))]
    return boxes + [
        f"parts.{p}.heads.{i}" for p, part in enumerate(model.parts) for i in range(len(getattr(part, "heads", ())))
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--config", default="mask_rcnn_r50_fpn")
    args = parser.parse_args()
    experiment = load_config(f"configs/{args.config}.py")
    backbone = ["model.backbone.remat=true"]
    heads = [f"model.{branch}.remat=true" for branch in branches(experiment.model)]
    inputs, weights, works, table = make_inputs(tuple(args.image), args.batch), None, [], []
    for what, settings in {"none": [], "backbone": backbone, "heads": heads, "both": backbone + heads}.items():
        net = override(experiment, [f"model.dtype={args.dtype}", *settings]).model
        weights = make_weights(net) if weights is None else weights
        program, call = training(net, weights, inputs)
        memory = program.call.memory_analysis().temp_size_in_bytes
        table.append([what, kept_bytes(net, weights, inputs) / 1e6, memory / 1e6])
        works.append(call)
    times = milliseconds(*works, repeats=args.repeats)
    lines = [[*line, ms, ms / times[0]] for line, ms in zip(table, times, strict=True)]
    head = ["rematerialised", "kept MB", "compiled MB", "ms a step", "times none"]
    print(f"{machine()}; {args.config}, {setting(args)}\n\n{markdown(head, lines)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
