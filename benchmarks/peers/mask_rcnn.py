"""Mask R-CNN R50-FPN as a whole, inference and a training step of one image, beside the same network in plain torch.

    python -m benchmarks.peers.mask_rcnn --image 800 1333
    python -m benchmarks.peers.mask_rcnn --image 256 320

Both sides have the same weights and get the same proposals (`benchmarks.programs`), and samplers that take the first
boxes in place of random ones, so that detections and loss can be compared.  The torch side has RoIAlign and NMS in
plain torch; torchvision's compiled ones are in `benchmarks.peers.torchvision_maskrcnn`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.measure import Row, floor_table, program_cost
from benchmarks.peers.twins import apart, in_turn, torch_twin
from benchmarks.programs import inference, make_inputs, make_weights, training
from jaxdet.config import load_config, override
from jaxdet.runtime.large_pages import ask_for_large_pages

FIRST = ["model.rpn.sampler.order=first", "model.stages.0.sampler.order=first"]


def rows(hw: tuple[int, int], repeats: int) -> list[Row]:
    """Inference and training step."""
    net = override(load_config("configs/mask_rcnn_r50_fpn.py"), FIRST).model
    inputs = make_inputs(hw, 1)
    weights = with_opinions(make_weights(net))
    programs = [make(net, weights, inputs) for make in (inference, training)]
    calls = [call for _, call in programs]
    theirs: list[Callable[[], Any]] = []
    notes = ["", ""]
    twin = torch_twin("mask_rcnn")
    if twin:
        theirs = list(twin.works(net, weights, *inputs, rate=1e-6))
        notes = [detections(theirs[0](), calls[0]()), losses(theirs[1](), calls[1]())]
    times = in_turn(calls, theirs, repeats)
    return [
        Row(f"1 x {hw[0]} x {hw[1]}, {what}", program_cost(program), *its, note)
        for what, (program, _), its, note in zip(("inference", "training step"), programs, times, notes, strict=True)
    ]


def with_opinions(weights: Any) -> Any:
    """Fresh weights find all classes equally likely, and so nothing; these find something."""

    def louder(path: Any, leaf: jax.Array) -> jax.Array:
        named = jax.tree_util.keystr(path, simple=True, separator="/")
        return 12 * leaf if named == "params/heads_0/head/logits/kernel" else leaf

    return jax.tree_util.tree_map_with_path(louder, weights)


def detections(theirs: list[Any], ours: Any) -> str:
    """How far boxes, scores and masks of both sides are apart, best first."""
    valid = np.asarray(ours.valid)[0]
    if len(theirs[0]) != valid.sum():
        return f"{len(theirs[0])} and {valid.sum()} detections"
    found = [np.asarray(x)[0][valid] for x in (ours.boxes, ours.scores, ours.masks.values)]
    boxes, scores, _, masks = theirs
    return f"{len(boxes)} detections; " + "; ".join(
        f"{name} {apart([a], [b])}"
        for name, a, b in zip(("boxes", "scores", "masks"), (boxes, scores, masks), found, strict=True)
    )


def losses(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """How far the terms are apart; that of masks by itself, as each side draws the objects' masks in its own way."""
    gaps = {name: abs(float(term) - float(ours[f"loss/{name}"])) for name, term in theirs.items()}
    masks = gaps.pop("mask")
    return f"losses apart by {max(gaps.values()):.1e} of {float(ours['loss']):.2g}, that of masks by {masks:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(floor_table(rows(tuple(args.image), args.repeats)))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
