"""How much of a data set's canvases is margin, and which further canvases (``data.canvas_ratios``) save most of it.

    python -m benchmarks.models.canvases --annotations instances_train2017.json
    python -m benchmarks.models.canvases --annotations train.json --ratios 1.333 --ratios 1 1.333

Sizes of images are read from COCO's json; the images are not needed.  An epoch's slots are more than its images: a
batch has one canvas, and the last batch of each is filled up, which counts in small sets.  Without ``--ratios`` those
choices of one, two and three are shown with which these images' canvases have the fewest pixels.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import markdown
from jaxdet.data import Data
from jaxdet.data.pipeline.plans import buckets
from jaxdet.data.pipeline.transforms import canvas_hw, canvas_sides, view_of

HEAD = (
    "canvas_ratios",
    "canvases",
    "margin",
    "MP of the images",
    "of two canvases'",
    "MP of all slots",
    "of two canvases'",
)


def sizes_in(paths: Sequence[str]) -> NDArray[np.int32]:
    """``[N, 2]`` heights and widths of the images of some files, each image once."""
    images = [image for path in paths for image in json.loads(Path(path).read_text())["images"]]
    return np.array(list({image["id"]: (image["height"], image["width"]) for image in images}.values()), np.int32)


def best_ratios(sizes: NDArray[np.int32], data: Data, number: int) -> tuple[float, ...]:
    """So many ratios, with which the canvases of these images have the fewest pixels."""
    short, (*_, widest) = canvas_sides(data)
    longest = np.array([max(view_of((height, width), data).hw) for height, width in sizes.tolist()])

    def pixels(sides: tuple[int, ...]) -> int:
        longs = np.array([*sides, widest])
        return int(longs[np.searchsorted(longs, longest)].sum())

    sides = min(itertools.combinations(range(short, widest, data.pad_multiple), number), key=pixels)
    return tuple(round(side / data.short_side, 3) for side in sides)


def totals(sizes: NDArray[np.int32], data: Data) -> tuple[float, float, float]:
    """Pixels of all images on their canvases, of these canvases, and of all slots of an epoch."""
    images = sum(float(np.prod(view_of((height, width), data).hw)) for height, width in sizes.tolist())
    canvases = slots = 0.0
    for part in buckets(sizes, np.arange(len(sizes)), data):
        height, width = sizes[part[0]].tolist()
        area = float(np.prod(canvas_hw((height, width), data)))
        canvases += len(part) * area
        slots += -(-len(part) // data.batch_size) * data.batch_size * area
    return images, canvases, slots


def table(sizes: NDArray[np.int32], data: Data, choices: Sequence[tuple[float, ...]]) -> str:
    """A line for each choice of ratios, beside none."""
    _, canvases_of_two, slots_of_two = totals(sizes, data)
    lines: list[list[Any]] = []
    for ratios in ((), *choices):
        chosen = dataclasses.replace(data, canvas_ratios=ratios)
        images, canvases, slots = totals(sizes, chosen)
        name = ", ".join(map(str, ratios)) or "none"
        number = 2 * len(canvas_sides(chosen)[1])
        shares = [f"{canvases / canvases_of_two:.1%}", slots / 1e6, f"{slots / slots_of_two:.1%}"]
        lines.append([name, number, f"{1 - images / canvases:.1%}", canvases / 1e6, *shares])
    return markdown(HEAD, lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", nargs="+", required=True, metavar="JSON")
    parser.add_argument("--ratios", type=float, nargs="+", action="append")
    parser.add_argument("--short_side", type=int, default=800)
    parser.add_argument("--long_side", type=int, default=1333)
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    data = Data(short_side=options.short_side, long_side=options.long_side, batch_size=options.batch_size)
    sizes = sizes_in(options.annotations)
    choices = [tuple(ratios) for ratios in options.ratios or ()] or [best_ratios(sizes, data, n) for n in (1, 2, 3)]
    print(f"{len(sizes)} images at {data.short_side} x {data.long_side}, {data.batch_size} a batch\n")
    print(table(sizes, data, choices))


if __name__ == "__main__":
    main()
