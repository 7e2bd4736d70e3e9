"""Images per second of the input pipeline, by number of worker processes, and where the time of an image goes.

python -m benchmarks.peers.pipeline                                                   # built-in scenes of COCO's size
python -m benchmarks.peers.pipeline --images FOLDER --annotations JSON                # COCO at 800 x 1333
python -m benchmarks.peers.pipeline --size 160 --batch_size 16                        # small scenes

The profile is taken on one core, in one process.  Its floor is the time inside the libraries that decode, resize and
rasterise; what the rest costs is ours.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from benchmarks.measure import machine, markdown
from benchmarks.peers.twins import torch_twin
from jaxdet.data import CocoFolder, Data, Scenes, Source, open_source, train_batches
from jaxdet.data.masks import decode_mask
from jaxdet.data.pipeline.batches import stack
from jaxdet.data.pipeline.plans import train_plan
from jaxdet.data.pipeline.transforms import resize_image, target_arrays, view_of

ASPECTS = (1.5, 1.333, 0.75)


def rate(batches: Iterator[Any], ready: int, steps: int) -> tuple[float, float]:
    """Seconds until the first batch, and images per second over ``steps`` batches after those that were ``ready``."""
    begin = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(ready):
        next(batches)
    begin = time.perf_counter()
    images = sum(images_in(next(batches)) for _ in range(steps))
    return first, images / (time.perf_counter() - begin)


def images_in(batch: Any) -> int:
    """Of a batch of either side."""
    return len(batch[0]) if isinstance(batch, tuple) else int(batch.valid.sum())


def rates(source: Source, data: Data, workers: list[int], steps: int) -> str:
    """A line for each number of workers."""
    twin, lines = torch_twin("pipeline"), []
    for number in workers:
        settings = dataclasses.replace(data, workers=number)
        ready = data.prefetch * max(number, 1)
        with train_batches(source, settings, seed=0, start_step=0) as batches:
            first, ours = rate(batches, ready, steps)
        line = [number, first, ours, ours / max(number, 1)]
        if twin:
            with closing(twin.batches(source, settings)) as batches:
                theirs = rate(batches, ready, steps)[1]
            line += [theirs, ours / theirs]
        lines.append(line)
    head = ["workers", "first batch s", "images/s", "images/s a worker", "torch images/s", "jaxdet / torch"]
    return markdown(head[: len(lines[0])], lines)


@dataclasses.dataclass
class Stages:
    """Milliseconds by name."""

    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self, name: str, work: Callable[..., Any], *args: Any) -> Any:
        """What the work gives."""
        begin = time.process_time()
        result = work(*args)
        self.sums[name] = self.sums.get(name, 0.0) + 1e3 * (time.process_time() - begin)
        return result


def profile(source: Source, data: Data, steps: int) -> str:
    """Processor time of one image, by stage, and how much of it is a library's."""
    cv2.setNumThreads(1)  # as workers do
    plan = train_plan(source, data, seed=0)
    names = "read, decode", "resize, canvas", "masks, boxes", "batch"
    whole, library, images = Stages(), Stages(), 0
    for step in range(steps):
        examples = []
        chosen = plan.batch(step)
        for place, index in enumerate(chosen[chosen >= 0].tolist()):
            record = whole.run(names[0], source.__getitem__, index)
            view = view_of(record.image.shape[:2], data, flip=place % 2 == 0)
            pixels = whole.run(names[1], view.image, record.image)
            targets = whole.run(names[2], target_arrays, record, view, data)
            examples.append({"image": pixels, "targets": targets})
            library.run(names[1], resize_image, record.image, view.hw)
            for annotation in record.annotations:
                if not annotation.crowd:
                    library.run(names[2], _drawn, annotation.segmentation, view.original_hw, data.mask_size)
        whole.run(names[3], stack, examples)
        images += len(examples)
    library.sums[names[0]] = whole.sums[names[0]]  # the JPEG's decoder and little else
    costs = {name: (whole.sums[name] / images, library.sums.get(name, 0.0) / images) for name in names}
    total, floor = (sum(cost) for cost in zip(*costs.values(), strict=True))
    lines = [[name, ms, least, f"{least / ms:.0%}"] for name, (ms, least) in {**costs, "all": (total, floor)}.items()]
    table = markdown(["stage", "ms an image", "in libraries ms (floor)", "share of floor"], lines)
    return f"{table}\n\nOne core in one process: {1e3 / total:.0f} images/s."


def _drawn(segmentation: Any, hw: tuple[int, int], size: int) -> Any:
    """What pycocotools does for an instance: polygons are drawn into a small bitmap, all else into one of the image."""
    if not isinstance(segmentation, list):
        return decode_mask(segmentation, hw)
    inside = [np.array(polygon) * (size / max(hw)) for polygon in segmentation]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(inside, size, size)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images")
    parser.add_argument("--annotations")
    parser.add_argument("--size", type=int, default=640, help="of scenes; below 640 they are not enlarged")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if bool(options.images) != bool(options.annotations):
        parser.error("--images and --annotations: expected both or none")
    data = Data(batch_size=options.batch_size)
    if options.images:
        source = open_source(CocoFolder(options.images, options.annotations))
    else:
        source = open_source(Scenes(count=200, size=options.size, aspects=ASPECTS))
        if options.size < 640:
            data = dataclasses.replace(data, short_side=options.size, long_side=options.size, max_boxes=20)
    print(f"{machine()}; {len(source)} images, {data.batch_size} a batch, at {data.short_side} x {data.long_side}\n")
    print(f"{rates(source, data, options.workers, options.steps)}\n")
    print(profile(source, data, options.steps))


if __name__ == "__main__":
    main()
