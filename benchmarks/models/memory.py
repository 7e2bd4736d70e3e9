"""Memory of a training run over its steps: the process, its workers, the arrays on the device.

python -m benchmarks.models.memory --steps 2000 --out runs/memory

The experiment is the tiny Mask R-CNN of the tests, with worker processes and checkpoints on the way.  Linux only.
"""

import argparse
import logging
import multiprocessing
import os
import re
import tempfile
from pathlib import Path

import jax

from jaxdet.config import load_config, override
from jaxdet.runtime.large_pages import ask_for_large_pages
from jaxdet.training import train

TINY = Path(__file__).parents[2] / "tests" / "training" / "tiny.py"


class Sample(logging.Handler):
    """Measures at each progress line of the run: ``(step, MB of this process, of all workers, on the device)``."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float, float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if step := re.match(r"step (\d+)/", record.getMessage()):
            workers = sum(resident(int(child.pid or 0)) for child in multiprocessing.active_children())
            arrays = sum(array.nbytes for array in jax.live_arrays()) / 1e6
            self.rows.append((int(step.group(1)), resident(os.getpid()), workers, arrays))


def resident(process: int | str, field: str = "VmRSS") -> float:
    """Resident memory of a process (its number or "self"), MB, what it shares with others included; "VmHWM": peak."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 / 1e6 if found else 0.0


def measure(out: Path, steps: int, workers: int, every: int) -> list[tuple[int, float, float, float]]:
    """Rows of `Sample` every so many steps of a run in ``out``."""
    sample, log = Sample(), logging.getLogger("jaxdet")
    log.addHandler(sample)
    log.setLevel(logging.INFO)
    settings = [
        *(f"data.{split}.directory={out / 'scenes'}" for split in ("train", "val")),
        f"data.workers={workers}",
        f"optimizer.schedule.length={steps}",
        f"run.log_every={every}",
        f"run.checkpoint_every={2 * every}",
    ]
    train(override(load_config(TINY), settings), out / "run")
    return sample.rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="memory of a training run over its steps")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--out", type=Path, help="folder for the run, new; a temporary one if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(options.out or Path(scratch), options.steps, options.workers, options.every)
    print(" step  process, MB  workers, MB  device arrays, MB")
    for step, process, workers, arrays in rows:
        print(f"{step:5d}  {process:11.1f}  {workers:11.1f}  {arrays:17.2f}")
    middle = next(row for row in rows if row[0] >= options.steps // 2)
    growth = [last - first for first, last in zip(middle[1:], rows[-1][1:], strict=True)]
    print(f"from step {middle[0]} to {rows[-1][0]}: {growth[0]:+.1f}, {growth[1]:+.1f}, {growth[2]:+.2f} MB")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
