"""The papers' claim at small scale: Mask R-CNN, GRoIE, R3-CNN and SBR-CNN on the built-in scenes, several seeds each.

    python -m benchmarks.experiments.replicate --out runs/replicate        # a GPU: what fits into 8 minutes
    python -m benchmarks.experiments.replicate --out runs/smoke --systems "Mask R-CNN" SBR-CNN --seeds 1 --images 40 \\
        --train 60 --val 8 --batch 2 --loop_share 0                            # does it run?

All systems see equally many images.  Programs are compiled once, all at the same time, and serve all seeds; the data
lies on the device.  ``OUT`` gets ``runs.json``, renewed after each run, and from it ``table.md``, ``ap.png`` and
``iou.png`` (`benchmarks.experiments.replication_report` makes them again).  Configs are compared in the same way,
each for as many steps as its own schedule says:

    python -m benchmarks.experiments.replicate --out OUT --variant "demo: configs/demo.py" \\
        --variant "more: configs/demo.py optimizer.schedule.length=3000" ...
"""

import argparse
import dataclasses
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.experiments.replication_report import write_report
from benchmarks.experiments.resident_data import read_all, shapes
from benchmarks.experiments.seed_runs import System, Trained, compiled
from benchmarks.experiments.small_systems import LOOPED, small_systems
from jaxdet.config import load_config, override
from jaxdet.data import Data, Scenes, Source, open_source
from jaxdet.evaluation import score
from jaxdet.evaluation.results import Result
from jaxdet.experiment import Experiment
from jaxdet.structures import Batch

TEST_STEPS = (1, 2, 3, 4, 5)
TRIAL = 2  # chunks that are timed before the number of images is chosen; the first does not count
SLACK = 1.15  # training gets slower when there is more to find, and an evaluation follows each run


@dataclasses.dataclass(frozen=True)
class Clock:
    """What is left of the time."""

    minutes: float
    began: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.perf_counter() - self.began)

    def say(self, text: str) -> None:
        """Print a line with the seconds since the beginning."""
        print(f"{time.perf_counter() - self.began:5.0f} s  {text}", flush=True)


class Book:
    """Results, written down whenever one comes."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._runs: list[dict[str, Any]] = []
        self._pool = ThreadPoolExecutor(1)  # judges one run while the next one trains
        self._pending: list[Future[None]] = []
        out.mkdir(parents=True, exist_ok=True)

    def judge(self, run: dict[str, Any], val: Source, results: list[Result], clock: Clock) -> None:
        """Score the results in the background and write the run down."""
        self._pending.append(self._pool.submit(self._judge, run, val, results, clock))

    def _judge(self, run: dict[str, Any], val: Source, results: list[Result], clock: Clock) -> None:
        metrics = score(val.ground_truth(), results).metrics
        self._runs.append(run | {"ap": metrics})
        (self._out / "runs.json").write_text(json.dumps(self._runs, indent=1) + "\n")
        clock.say(
            f"{run['system']}, seed {run['seed']}, {run['test_steps']} steps at test: box AP {metrics['bbox/AP']:.3f}, "
            f"mask AP {metrics['segm/AP']:.3f}, {run['ms_per_step']:.1f} ms a step"
        )

    def close(self) -> None:
        """Wait for all, then draw and tabulate."""
        self._pool.shutdown()
        for future in self._pending:
            future.result()
        write_report(self._runs, self._out)


def experiments(args: argparse.Namespace) -> dict[str, Experiment]:
    """Name -> what is trained, all on the same data."""
    if args.variant:
        parts = [text.partition(":") for text in args.variant]
        chosen = {name.strip(): _variant(*settings.split()) for name, _, settings in parts}
    else:
        chosen = {name: e for name, e in small_systems(args.batch, args.dtype).items() if name in args.systems}
    return {name: dataclasses.replace(e, data=_scenes(e.data, args)) for name, e in chosen.items()}


def _variant(config: str, *settings: str) -> Experiment:
    changed: Experiment = override(load_config(config), settings)
    return changed


def _scenes(data: Data, args: argparse.Namespace) -> Data:
    train, val = (Scenes(split, count, data.long_side) for split, count in (("train", args.train), ("val", args.val)))
    return dataclasses.replace(data, train=train, val=val)


def compile_all(
    chosen: dict[str, Experiment], examples: Batch, val: Source, args: argparse.Namespace
) -> dict[str, System]:
    """All programs; side by side, where the memory is not that of a desk."""
    cpu = jax.default_backend() == "cpu"
    chunk, eval_batch = (1, 4) if cpu else (50, 50)

    def one(name: str) -> System:
        system = compiled(chosen[name], examples, args.chunk or chunk, eval_batch)
        system.warm_up(val, None)
        return system

    with ThreadPoolExecutor(1 if cpu else 8) as pool:
        systems = dict(zip(chosen, pool.map(one, chosen), strict=True))
        jobs = [
            (system, n) for name, system in systems.items() if args.loop_share and name in LOOPED for n in TEST_STEPS
        ]
        list(pool.map(lambda job: job[0].warm_up(val, (0,) * job[1]), jobs))
    return systems


def images_that_fit(
    systems: dict[str, System], examples: Batch, args: argparse.Namespace, clock: Clock
) -> dict[str, int]:
    """Images that each run sees: variants as many as they say, systems equally many, so that all runs end in time."""
    cost = 0.0  # seconds an image, over all systems
    for name, system in systems.items():
        seconds = system.train(examples, 0, TRIAL * system.chunk).seconds[-1]
        cost += seconds / (system.chunk * system.experiment.data.batch_size)
        clock.say(f"{name}: {1e3 * seconds / system.chunk:.1f} ms a step, {system.parameters} parameters")
    fits = clock.left * (1 - args.loop_share) / (SLACK * cost * args.seeds)
    images = max(min(args.images, int(fits)), 1)
    own = {name: (s.experiment.optimizer.schedule.length, s.experiment.data.batch_size) for name, s in systems.items()}
    chosen = {name: length * batch if args.variant else images for name, (length, batch) in own.items()}
    clock.say(f"images a run: {', '.join(str(count) for count in chosen.values())}")
    return chosen


def record(name: str, seed: int, system: System, run: Trained, test_steps: int) -> dict[str, Any]:
    """A run as data, without its scores."""
    batch_size = system.experiment.data.batch_size
    steady = run.seconds[1:] or run.seconds
    return {
        "system": name,
        "seed": seed,
        "test_steps": test_steps,
        "own_steps": test_steps == system.test_stages,
        "train_steps": system.stages,
        "parameters": system.parameters,
        "batch_size": batch_size,
        "images": len(run.seconds) * system.chunk * batch_size,
        "ms_per_step": 1e3 * float(np.median(steady)) / system.chunk,
        "metrics": run.metrics,
        "device": jax.devices()[0].device_kind,
    }


def run_all(systems: dict[str, System], examples: Batch, val: Source, args: argparse.Namespace, clock: Clock) -> None:
    """Trains and evaluates, one seed of all systems after the other, as long as there is time."""
    book, kept = Book(args.out), []
    images = images_that_fit(systems, examples, args, clock)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name, system in systems.items():
            if clock.left < 0:
                clock.say(f"no time left for {name}, seed {seed}")
                continue
            run = system.train(examples, seed, images[name] // system.experiment.data.batch_size)
            found = system.detect(run.variables, val)
            book.judge(record(name, seed, system, run, system.test_stages), val, found, clock)
            kept.append((name, seed, system, run))
    for name, seed, system, run in kept if args.loop_share else ():
        for n in TEST_STEPS:
            if name in LOOPED and n != system.test_stages and clock.left > 0:
                found = system.detect(run.variables, val, (0,) * n)
                book.judge(record(name, seed, system, run, n) | {"metrics": []}, val, found, clock)
    book.close()


def main() -> None:
    args = _arguments()
    clock = Clock(args.minutes)
    chosen = experiments(args)
    data = next(iter(chosen.values())).data
    train, val = open_source(data.train), open_source(data.val)
    clock.say(f"{len(train)} + {len(val)} scenes, {', '.join(chosen)} on {jax.devices()[0].device_kind}")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, train, data, args.workers)
        systems = compile_all(chosen, shapes(train, data), val, args)
        examples = jax.device_put(reading.result())
    clock.say("data and programs are ready")
    run_all(systems, examples, val, args, clock)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    names = list(small_systems(1))
    parser.add_argument("--systems", nargs="+", choices=names, default=names)
    parser.add_argument("--variant", action="append", metavar="NAME: CONFIG KEY=VALUE ...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0, help="for the rest of the seeds in another call")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=32000, help="at most so many a run")
    parser.add_argument("--train", type=int, default=2000, help="scenes to train on")
    parser.add_argument("--val", type=int, default=300, help="scenes to evaluate on")
    parser.add_argument("--minutes", type=float, default=8.0, help="no run begins later")
    parser.add_argument("--loop_share", type=float, default=0.12, help="part of the time for other steps at test")
    parser.add_argument("--chunk", type=int, help="steps that run without the host; 1 on a CPU, else 50")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workers", type=int, default=0, help="processes that read the data")
    return parser.parse_args()


if __name__ == "__main__":
    main()
