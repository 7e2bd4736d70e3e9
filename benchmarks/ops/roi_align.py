"""RoIAlign on a pyramid of 256 channels, 7x7 bins, forward and with gradient.

    python -m benchmarks.ops.roi_align --boxes 512

Floor: a product and a sum for each channel and corner of a sample; crops and maps pass memory once, with gradients the
maps' gradients are written and read too.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inputs import HW, random_boxes
from benchmarks.measure import Cost, Row, floor_table
from benchmarks.peers.twins import apart, in_turn, torch_twin
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.ops.roi_align import roi_align
from jaxdet.runtime.large_pages import ask_for_large_pages

STRIDES = (4, 8, 16, 32)
BINS, CHANNELS = 7, 256


def samples(boxes: np.ndarray, level: np.ndarray, ratio: int) -> int:
    """Number of bilinear samples of all boxes."""
    size = (boxes[:, 2:] - boxes[:, :2]) / np.asarray(STRIDES)[level][:, None] / BINS
    per_bin = np.full_like(size, ratio) if ratio else np.maximum(np.ceil(size), 1)
    return int(BINS**2 * per_bin.prod(1).sum())


def costs(number: int, maps: list[np.ndarray]) -> tuple[int, int]:
    """FLOPs of so many samples, and bytes of the maps: of a forward pass."""
    return 2 * 4 * CHANNELS * number, sum(m.nbytes for m in maps)


def inputs(number: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Maps ``[1, H, W, C]`` of an image, so many boxes ``[N, 4]``, their levels ``[N]``, a gradient of the crops."""
    rng = np.random.default_rng(0)
    pyramid = [rng.standard_normal((1, HW[0] // s, HW[1] // s, CHANNELS), np.float32) for s in STRIDES]
    boxes = random_boxes(rng, number)
    cotangent = rng.standard_normal((number, BINS, BINS, CHANNELS), np.float32)
    return pyramid, boxes, np.asarray(SingleLevel().level_of(jnp.asarray(boxes))), cotangent


def rows(repeats: int, number: int, ratio: int) -> list[Row]:
    """Forward, and forward with backward."""
    pyramid, boxes, level, cotangent = inputs(number)

    def crops(maps: list[Any]) -> Any:
        rois = jnp.asarray(boxes)[None], jnp.asarray(level)[None], jnp.ones((1, number), bool)
        return roi_align(maps, [1 / s for s in STRIDES], *rois, size=(BINS, BINS), sampling_ratio=ratio)[0]

    maps = [jnp.asarray(m) for m in pyramid]
    forward = partial(jax.jit(crops), maps)
    both = partial(jax.jit(jax.value_and_grad(lambda maps: (crops(maps) * cotangent).sum())), maps)
    theirs, notes = [], ["", ""]
    twin = torch_twin("roi_align")
    if twin:
        theirs = twin.works(pyramid, STRIDES, boxes, level, cotangent, ratio)
        notes = [
            apart([theirs[0]()], [np.moveaxis(forward(), -1, 1)]),
            apart(theirs[1](), [np.moveaxis(g, -1, 1) for g in both()[1]]),
        ]
    times = in_turn([forward, both], theirs, repeats)
    flops, map_bytes = costs(samples(boxes, level, ratio), pyramid)
    name = f"{number} boxes, {'adaptive' if ratio == 0 else f'{ratio} x {ratio} samples a bin'}"
    once = Cost(flops, map_bytes + cotangent.nbytes)
    twice = Cost(2 * flops, 3 * map_bytes + 2 * cotangent.nbytes)
    return [
        Row(f"{name}, forward", once, *times[0], notes[0]),
        Row(f"{name}, with gradient", twice, *times[1], notes[1]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found = [row for ratio in (0, 2) for row in rows(args.repeats, args.boxes, ratio)]
    print(floor_table(found))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
