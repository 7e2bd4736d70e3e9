"""Masks of an image's detections, from the head's 28x28 maps to run lengths, on one core of the host.

    python -m benchmarks.ops.paste --detections 100

Floor: three products and sums for each pixel of a box, bilinear in rows and in columns; the pixels of the boxes pass
memory once as float32.  The torch side paints boxes into an array of the image's size, as detection toolboxes do, and
leaves the run lengths to pycocotools.
"""

import argparse
from functools import partial

import numpy as np

from benchmarks.boxes import HW, random_boxes
from benchmarks.floor import Cost, Row, floor_table, measured_peak
from benchmarks.peers.twins import in_turn, torch_twin
from jaxdet.evaluation.paste import paste_masks
from jaxdet.runtime.large_pages import ask_for_large_pages

FLOPS = 6


def row(repeats: int, number: int) -> Row:
    """Masks of 4 x 4 random blocks."""
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, number)
    coarse = rng.uniform(0, 1, (number, 4, 4)).astype(np.float32)
    masks = np.kron(coarse, np.ones((7, 7), np.float32))
    ours = partial(paste_masks, masks, boxes, HW)
    note, theirs = "", []
    twin = torch_twin("paste")
    if twin:
        theirs = [partial(twin.paste_masks, masks, boxes, HW)]
        differ = sum(a["counts"] != b["counts"] for a, b in zip(ours(), theirs[0](), strict=True))
        note = f"{differ} of {number} masks differ" if differ else f"same {number} masks"
    (ms,) = in_turn([ours], theirs, repeats)
    inside = np.clip(boxes, 0, HW[::-1] * 2)
    pixels = (inside[:, 2:] - inside[:, :2]).prod(1).sum()
    return Row(f"{number} detections, {HW[0]} x {HW[1]}", Cost(FLOPS * pixels, 4 * pixels), *ms, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, nargs="+", default=(10, 100))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(floor_table([row(args.repeats, number) for number in args.detections], measured_peak()))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
