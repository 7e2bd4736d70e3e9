"""Non-maximum suppression of one image's boxes.

    python -m benchmarks.ops.nms --boxes 1000 4000

Floor: twelve FLOPs for the overlap of each box that stays with each one behind it; boxes and scores once.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inputs import random_boxes
from benchmarks.measure import Cost, Row, floor_table
from benchmarks.peers.twins import in_turn, torch_twin
from jaxdet.ops.suppression import nms
from jaxdet.runtime.large_pages import ask_for_large_pages

# Of an overlap: 4 extrema, 2 differences, 2 clamps, a product, a sum and a difference of areas, a comparison.
FLOPS = 12


def chain(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The worst case: each box overlaps its neighbours alone, so that each learns its fate from the one before."""
    starts = np.arange(number, dtype=np.float32)
    boxes = np.stack([starts, np.zeros(number), starts + 8, np.full(number, 8)], axis=1)  # an IoU of 7/9 to the next
    return boxes.astype(np.float32), np.linspace(1, 0.1, number, dtype=np.float32)


def row(repeats: int, number: int, threshold: float = 0.7, limit: int = 1000, chained: bool = False) -> Row:
    """The first ``limit`` boxes that stay."""
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, number), rng.uniform(size=number).astype(np.float32)
    if chained:
        boxes, scores = chain(number)
    suppress = jax.jit(lambda b, s: nms(b, s, jnp.ones(number, bool), threshold=threshold, limit=limit))
    ours = partial(suppress, jnp.asarray(boxes), jnp.asarray(scores))
    found = ours()
    kept = np.asarray(found.index)[np.asarray(found.valid)].tolist()
    note, theirs = "", []
    twin = torch_twin("nms")
    if twin:
        theirs = [partial(twin.nms, *map(twin.torch.from_numpy, (boxes, scores)), threshold, limit)]
        differ = len(set(kept) ^ set(theirs[0]()))
        note = f"{differ} boxes differ" if differ else f"same {len(kept)} boxes"
    (times,) = in_turn([ours], theirs, repeats)
    rank = np.argsort(np.argsort(-scores, kind="stable"), kind="stable")
    behind = (rank[kept].max() - rank[kept]).sum()
    cost = Cost(FLOPS * int(behind), boxes.nbytes + scores.nbytes)
    what = f"{number} boxes{' in one chain' if chained else ''}"
    return Row(f"{what}, IoU {threshold}, first {limit} kept", cost, *times, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=(1000, 4000))
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    found = [row(args.repeats, number) for number in args.boxes]
    found.append(row(args.repeats, max(args.boxes), limit=max(args.boxes), chained=True))
    print(floor_table(found))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
