"""Masks of an image's detections, from the device to run lengths, on one core of the host.

    python -m benchmarks.ops.paste --detections 100
    python -m benchmarks.ops.paste --whole-canvas         # masks of the whole canvas at stride 4, cut to boxes

Floor of the 28x28 maps of mask heads: three products and sums for each pixel of a box, bilinear in rows and in columns;
the pixels of the boxes pass memory once as float32.  The torch side paints boxes into an array of the image's size, as
detection toolboxes do, and leaves the run lengths to pycocotools.

Masks of the whole canvas are measured as evaluation handles them, once in float32 and once in the 8 bits of
`jaxdet.evaluation.inference.for_host`: what travels from the device, how long that takes with the conversion (on a CPU
no copy is made), how long pasting takes, and how many pixels of the masks the 8 bits change.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.inputs import HW, random_boxes
from benchmarks.measure import Cost, Row, floor_table, machine, markdown, milliseconds
from benchmarks.peers.twins import in_turn, torch_twin
from jaxdet.evaluation.inference import for_host
from jaxdet.evaluation.paste import Rle, paste_masks
from jaxdet.runtime.large_pages import ask_for_large_pages
from jaxdet.structures import Detections, Masks

FLOPS = 6
IMAGE = (800, 1333)
STRIDE = 4  #: of masks of the whole canvas, pixels


def row(repeats: int, number: int) -> Row:
    """Masks of 4 x 4 random blocks, as a mask head has them."""
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, number)
    values = random_blocks(rng, (number, 28, 28), 7)
    ours = partial(paste_masks, Masks(values, frames=boxes), HW)
    note, theirs = "", []
    twin = torch_twin("paste")
    if twin:
        theirs = [partial(twin.paste_masks, values, boxes, HW)]
        differ = sum(a["counts"] != b["counts"] for a, b in zip(ours(), theirs[0](), strict=True))
        note = f"{differ} of {number} masks differ" if differ else f"same {number} masks"
    (times,) = in_turn([ours], theirs, repeats)
    inside = np.clip(boxes, 0, HW[::-1] * 2)
    pixels = float((inside[:, 2:] - inside[:, :2]).prod(1).sum())
    return Row(f"{number} detections, {HW[0]} x {HW[1]}", Cost(FLOPS * pixels, 4 * pixels), *times, note)


def random_blocks(rng: np.random.Generator, shape: tuple[int, int, int], side: int) -> NDArray[np.float32]:
    """Maps of random blocks, each of ``side`` x ``side`` pixels, between 0 and 1."""
    number, height, width = shape
    blocks = rng.uniform(0, 1, (number, -(-height // side), -(-width // side))).astype(np.float32)
    return np.kron(blocks, np.ones((side, side), np.float32))[:, :height, :width]


def whole_canvas(number: int) -> Detections:
    """Detections of an image, without the leading axis of a batch, whose masks cover the canvas; on the device."""
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, number)
    height, width = (-(-side // 32) * 32 for side in IMAGE)
    values = random_blocks(rng, (number, height // STRIDE, width // STRIDE), 8)
    frames = np.tile(np.array([0, 0, width, height], np.float32), (number, 1))
    zeros = np.zeros(number, np.int32)
    found = Detections(boxes, zeros.astype(np.float32), zeros, zeros == 0, zeros, Masks(values, frames, crop=boxes))
    on_device: Detections = jax.tree.map(jnp.asarray, found)
    return on_device


def canvas_rows(repeats: int, number: int) -> list[list[Any]]:
    """A line for float32 and one for 8 bits."""
    found = whole_canvas(number)
    convert = jax.jit(for_host)
    ways: dict[str, Callable[[], Detections]] = {
        "float32": lambda: jax.device_get(found),
        "8 bits": lambda: jax.device_get(convert(found)),
    }
    masks = [way().masks for way in ways.values()]
    pasted = [paste_masks(each, IMAGE) for each in masks if each is not None]
    times = milliseconds(
        *ways.values(), *(partial(paste_masks, each, IMAGE) for each in masks if each is not None), repeats=repeats
    )
    lines = []
    for i, (name, each) in enumerate(zip(ways, masks, strict=True)):
        assert each is not None
        megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(each)) / 1e6
        share = pixels_that_differ(pasted[0], pasted[i])
        lines.append([f"{number} masks, {name}", megabytes, times[i], times[i + len(ways)], f"{share:.1e}"])
    return lines


def pixels_that_differ(a: list[Rle], b: list[Rle]) -> float:
    """As a share of the pixels that are in a mask of the first."""
    first, second = (np.concatenate([coco_mask.decode(rle).ravel() for rle in masks]) for masks in (a, b))
    return float((first != second).sum() / first.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole-canvas", action="store_true", help="masks of the whole canvas, and what travels")
    parser.add_argument("--detections", type=int, nargs="+", help="10 and 100, or 100 with --whole-canvas")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.whole_canvas:
        head = ["", "MB that travel", "ms to the host", "ms to paste", "pixels that differ"]
        lines = [line for number in args.detections or (100,) for line in canvas_rows(args.repeats, number)]
        print(f"{machine()}; image {IMAGE[0]} x {IMAGE[1]}, stride {STRIDE}\n\n{markdown(head, lines)}")
    else:
        print(floor_table([row(args.repeats, number) for number in args.detections or (10, 100)]))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
