"""Images per second of the input pipeline, by number of worker processes.

python -m benchmarks.pipeline                                                       # built-in scenes, 160 pixels
python -m benchmarks.pipeline --images FOLDER --annotations JSON --batch_size 8     # COCO at 800 x 1333
"""

import argparse
import dataclasses
import time

from jaxdet.data import CocoFolder, Data, Scenes, Source, open_source, train_batches


def measure(source: Source, data: Data, steps: int) -> tuple[float, float]:
    """Seconds until the first batch, and images per second over the next ``steps`` batches."""
    begin = time.perf_counter()
    with train_batches(source, data, seed=0, start_step=0) as batches:
        next(batches)
        first = time.perf_counter() - begin
        for _ in range(data.prefetch * max(data.workers, 1)):  # what was ready before the clock starts
            next(batches)
        begin = time.perf_counter()
        for _ in range(steps):
            next(batches)
        seconds = time.perf_counter() - begin
    return first, steps * data.batch_size / seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="images per second of the input pipeline")
    parser.add_argument("--images")
    parser.add_argument("--annotations")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.images:
        source, data = open_source(CocoFolder(options.images, options.annotations)), Data()
    else:
        source, data = open_source(Scenes(count=200)), Data(short_side=160, long_side=160, max_boxes=20)
    print("workers  first batch, s  images/s")
    for workers in options.workers:
        settings = dataclasses.replace(data, batch_size=options.batch_size, workers=workers)
        first, rate = measure(source, settings, options.steps)
        print(f"{workers:7d}  {first:14.2f}  {rate:8.1f}")


if __name__ == "__main__":
    main()
