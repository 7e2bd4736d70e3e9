"""What one accelerator does with whole models, in one command of minutes: speed, memory, kernels, tests, the demo.

    python -m benchmarks.accelerator                                     # one GPU, at most 8 minutes
    python -m benchmarks.accelerator --small                             # tiny shapes, on any CPU: whether it runs
    python -m benchmarks.accelerator --parts models torchvision --minutes 5 --out report.md

Parts, in their order:

- ``models``: training step and prediction of Mask R-CNN, R3-CNN, SBR-CNN and RDSNet, in batches of 4 and 16: images a
  second, memory, the share of the floor that is reached, and the kernels that take most of the time;
- ``torchvision``: its Mask R-CNN, with autocast and channels last, in turns with ours, where it is installed;
- ``roi_align``: the methods of RoIAlign in turns, in the training step of Mask R-CNN, where extractors have a choice;
- ``tests``: those of what is computed otherwise on another kind of device;
- ``demo``: a run of the demo's config, for as long as there is time.

Nothing is measured while programs are compiled, all of them at once in threads; what is not ready after half of the
time is left out.  What is left out is listed at the end, with the reason.  Floor: `benchmarks.measure`, though with the
bytes that the compiled program reads and writes; loops whose rounds depend on the data count as one round.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotReady
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import jax

from benchmarks.measure import Compiled, Cost, beside_peak, machine, markdown, milliseconds, program_cost
from benchmarks.peers.torchvision_maskrcnn import torchvision_works
from benchmarks.programs import inference, make_inputs, make_weights, training
from jaxdet.config import flat_settings, load_config, override

ROOT = Path(__file__).parents[1]
MAKERS = {"training step": training, "prediction": inference}
COMPILING = 0.5  #: share of the time in which programs are compiled
KERNELS = 10  #: the largest ones, of each program of the smaller batch
TRACED = 3  #: calls of a program in a trace
#: Seconds without which a part is not begun.  Tests compile their programs anew, and the demo its two.
LEAST = {"torchvision": 20, "roi_align": 10, "tests": 40, "demo": 60}
#: Share of the memory of a GPU that processes get which this one starts; it takes the rest itself.
OTHERS_MEMORY = 0.1
TESTS = (
    *("tests/ops/test_roi_align.py", "tests/ops/test_suppression.py", "tests/ops/test_selection.py"),
    *("tests/nn/test_layers.py", "tests/training/test_compiled_step.py"),
)
#: With ``--small``: a model of 0.3 million parameters.
SMALL = (
    *("model.backbone.width=8", "model.neck.channels=16", "model.rpn.head.channels=16", "model.rpn.*.per_level=50"),
    *(
        "model.rpn.*.max_detections=50",
        "model.heads.0.head.trunk.channels=32",
        "model.parts.0.heads.0.head.channels=16",
    ),
)
METHOD = ".extractor.method"  #: the end of the settings that choose how RoIAlign is computed
METHODS = ("gather", "kernel")

Works: TypeAlias = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """A program of a model."""

    config: str
    kind: str
    batch: int
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((self.config, self.kind, f"batch {self.batch}", *self.settings))


@dataclass(frozen=True)
class Ready:
    """A compiled program, a call of it, and what it has to do at least."""

    program: Compiled
    call: Callable[[], Any]
    cost: Cost

    @property
    def memory(self) -> float:
        """GB that its arguments, results and temporary values take."""
        said = self.program.call.memory_analysis()
        kept = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
        return float(kept + said.temp_size_in_bytes) / 1e9


@dataclass
class Session:
    """A run of this script: its options, what it has compiled and said, and the time that is left."""

    args: argparse.Namespace
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(os.cpu_count()))
    futures: dict[Case, Future[Ready]] = field(default_factory=dict)
    compiled: dict[Case, Ready] = field(default_factory=dict)  #: those that were ready in time
    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def left(self, share: float = 1.0) -> float:
        """Seconds of this share of the whole time that are left."""
        return max(self.began + 60 * share * self.args.minutes - time.monotonic(), 0.0)

    def say(self, text: str) -> None:
        """Print it now, since whatever comes later may end the process."""
        self.lines.append(text)
        print(f"{text}\n", flush=True)

    def leave_out(self, what: object, why: object) -> None:
        """Note what the report is without."""
        self.missing.append(f"- {what}: {why}")

    def has_time(self, part: str) -> bool:
        """Whether a part may begin; else it is noted as missing."""
        enough = self.left() > (1 if self.args.small else LEAST[part])
        if not enough:
            self.leave_out(part, f"{self.left():.0f} s are left of --minutes {self.args.minutes:g}")
        return enough

    def compile(self, cases: Sequence[Case]) -> None:
        """Begin to compile these, the first ones first."""
        for case in cases:
            self.futures.setdefault(case, self.pool.submit(self._made, case))

    def _made(self, case: Case) -> Ready:
        changes = (f"model.dtype={self.args.dtype}", *case.settings, *(SMALL if self.args.small else ()))
        net: Any = override(load_config(case.config), changes).model
        inputs = make_inputs(tuple(self.args.image), case.batch)
        program, call = MAKERS[case.kind](net, make_weights(net), inputs)
        cost, counted = program_cost(program), program.call.cost_analysis()
        return Ready(program, call, replace(cost, bytes=counted.get("bytes accessed", cost.bytes)))

    def wait(self) -> None:
        """Until everything is compiled, or the time for it is over."""
        with contextlib.suppress(NotReady):
            for future in self.futures.values():
                future.exception(self.left(COMPILING))
        for case, future in self.futures.items():
            if not future.done():
                future.cancel()
                self.leave_out(case, f"not compiled in {60 * COMPILING * self.args.minutes:.0f} s")
            elif error := future.exception():
                self.leave_out(case, f"{type(error).__name__}: {str(error)[:300]}")
            else:
                self.compiled[case] = future.result()

    def measured(self, works: Works) -> dict[str, float] | None:
        """Milliseconds of works in turns; None if one of them fails, as a program that does not fit the memory."""
        try:
            return dict(zip(works, milliseconds(*works.values(), repeats=self.args.repeats), strict=True))
        except Exception as error:  # whatever it is, the other parts are to be in the report
            self.leave_out(" and ".join(works), f"{type(error).__name__}: {str(error)[:300]}")
            return None


def models(session: Session) -> None:
    """A table of all programs, and one of the largest kernels of each program of the first batch."""
    # Once for all of them: an accelerator that does nothing else keeps its speed.
    _, peak = beside_peak(repeats=2, dtype=session.args.dtype)
    session.say(f"{peak.flops / 1e12:.1f} TFLOP/s and {peak.bytes / 1e9:,.0f} GB/s measured")
    rows, kernels = [], []
    for case in cases(session.args):
        ready = session.compiled.get(case)
        found = session.measured({str(case): ready.call}) if ready and session.left() else None
        if not ready or not found:
            if ready and not session.left():
                session.leave_out(case, "no time to run it")
            continue
        ms = found[str(case)]
        floor = ready.cost.floor_ms(peak)
        rate = 1e3 * case.batch / ms
        rows.append(
            [str(case), ms, rate, ready.memory, ready.cost.flops / 1e9, ready.cost.bytes / 1e9, f"{floor / ms:.1%}"]
        )
        if case.batch == session.args.batches[0]:
            kernels += [[str(case), *row] for row in largest_kernels(ready.call)]
    heads = ("", "ms", "images/s", "GB of memory", "GFLOP", "GB read and written", "share of floor")
    session.say(f"## Models\n\n{markdown(heads, rows)}")
    session.say(f"## Largest kernels\n\n{markdown(('', 'kernel', 'times a call', 'ms a call', 'share'), kernels)}")


def largest_kernels(call: Callable[[], Any]) -> list[list[Any]]:
    """Name, runs and milliseconds in a call, and share of all kernels' time, of those that take longest.

    On a CPU a loop is a kernel too, beside those inside of it.
    """
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                jax.block_until_ready(call())
        spent: Counter[str] = Counter()
        runs: Counter[str] = Counter()
        for file in Path(folder).rglob("*.xplane.pb"):
            for name, nanoseconds in kernels_in(jax.profiler.ProfileData.from_file(str(file))):
                spent[name] += int(nanoseconds)
                runs[name] += 1
    whole = sum(spent.values())
    return [
        [f"`{name}`", runs[name] / TRACED, nanoseconds / 1e6 / TRACED, f"{nanoseconds / whole:.1%}"]
        for name, nanoseconds in spent.most_common(KERNELS)
    ]


def kernels_in(trace: Any) -> Iterator[tuple[str, float]]:
    """Each kernel that ran, by the name of its operation in the compiled program, and its nanoseconds."""
    planes = [plane for plane in trace.planes if plane.name.startswith("/device:")] or list(trace.planes)
    for plane in planes:
        for line in plane.lines:
            # Of a device there are summaries too: steps, modules, operations of frameworks.
            if plane.name.startswith("/device:") and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and not event.name.startswith("end: "):
                    yield f"{stats['hlo_op']}", event.duration_ns


def torchvision(session: Session) -> None:
    """Its model and ours, of the first config, in turns."""
    if not session.has_time("torchvision"):
        return
    try:
        torch, vision = importlib.import_module("torch"), importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        session.leave_out("torchvision", f"{error}; expected torch and a torchvision built for it")
        return
    rows = []
    for batch in session.args.batches:
        inputs = make_inputs(tuple(session.args.image), batch)
        theirs = torchvision_works(torch, vision, inputs, session.args.dtype, channels_last=True)
        for kind, work in zip(("prediction", "training step"), theirs, strict=True):
            case = Case(session.args.configs[0], kind, batch)
            ready = session.compiled.get(case)
            found = session.measured({str(case): ready.call, f"torchvision, {case}": work}) if ready else None
            if found:
                ours_ms, ms = found.values()
                rows.append([f"{kind}, batch {batch}", 1e3 * batch / ours_ms, 1e3 * batch / ms, ms / ours_ms])
    head = ("", "images/s", "torchvision's images/s", "times as fast")
    session.say(
        f"## Mask R-CNN beside torchvision {vision.__version__}, torch {torch.__version__}\n\n{markdown(head, rows)}"
    )


def roi_align(session: Session) -> None:
    """The training step with each method of RoIAlign."""
    chosen = by_method(session.args)
    if not chosen or not session.has_time("roi_align"):
        return
    works = {str(case): ready.call for case in chosen if (ready := session.compiled.get(case))}
    if found := session.measured(works):
        rows = [[name, ms, ms / min(found.values())] for name, ms in found.items()]
        session.say(f"## Methods of RoIAlign\n\n{markdown(('', 'ms', 'times the fastest'), rows)}")


def tests(session: Session) -> None:
    """How they end on this device."""
    files = TESTS[2:3] if session.args.small else TESTS
    if session.has_time("tests"):
        # The demo comes after them.
        said = in_process(session, "tests", ["-m", "pytest", "-q", "--no-header", *files], session.left() / 2)
        session.say(f"## Tests\n\n```\n{said}\n```")


def demo(session: Session) -> None:
    """Its log's last lines, and its scores if it came to its end."""
    if not session.has_time("demo"):
        return
    with tempfile.TemporaryDirectory() as folder:
        short = ["optimizer.schedule.unit=steps", "optimizer.schedule.length=4", "optimizer.schedule.drops=(3,)"]
        short += ["data.train.count=8", "data.val.count=4", "data.batch_size=4", "run.log_every=2", *SMALL_DEMO]
        changes = [*(short if session.args.small else ()), f"model.dtype={session.args.dtype}"]
        command = ["train.py", "--config", "configs/demo.py", "--workdir", folder, *changes]
        said = in_process(session, "demo", command, session.left())
        session.say(f"## Demo\n\n```\n{said}\n```")
        metrics = Path(folder) / "metrics.json"
        if metrics.exists():
            session.say(f"{ {name: round(value, 4) for name, value in json.loads(metrics.read_text()).items()} }")
        else:
            session.leave_out("demo", "its scores: it did not come to its end")


SMALL_DEMO = ("model.neck.channels=16", "data.workers=0")


def in_process(session: Session, part: str, command: Sequence[str], seconds: float) -> str:
    """The last lines that a Python program writes in the project's folder, which is ended when its time is over."""
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(OTHERS_MEMORY)}
    with tempfile.TemporaryFile("w+") as file:
        try:
            subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | memory,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            session.leave_out(part, f"ended after {seconds:.0f} s")
        file.seek(0)
        return "\n".join(line[:200] for line in file.read().splitlines()[-12:])


def cases(args: argparse.Namespace) -> list[Case]:
    """All programs of the models, the smaller batch first: of what is not compiled in time little is lost."""
    return [Case(config, kind, batch) for batch in args.batches for config in args.configs for kind in MAKERS]


def by_method(args: argparse.Namespace) -> list[Case]:
    """The training step with each method of RoIAlign; none where extractors have no such setting."""
    keys = [key for key in flat_settings(load_config(args.configs[0])) if key.endswith(METHOD)]
    changes = [tuple(f"{key}={method}" for key in keys) for method in METHODS]
    return [Case(args.configs[0], "training step", args.batches[0], each) for each in changes if each]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny images, whatever else is asked for")
    configs = ("mask_rcnn_r50_fpn", "sbr_cnn", "r3_cnn", "rdsnet_r50_fpn")
    parser.add_argument("--configs", nargs="+", default=configs, metavar="NAME[:ROW]", help="Mask R-CNN first")
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=(4, 16))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the report here too")
    args = parser.parse_args()
    if args.small:
        args.configs, args.image, args.batches, args.repeats = ("mask_rcnn_r18_fpn_small",), (64, 64), (1,), 1
    return args


PARTS: tuple[Callable[[Session], None], ...] = (models, torchvision, roi_align, tests, demo)


def main() -> None:
    args = options()
    # Before jax takes the device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(0.9 - OTHERS_MEMORY))
    session = Session(args)
    chosen = [part for part in PARTS if part.__name__ in args.parts]
    if {models, torchvision, roi_align} & {*chosen}:
        session.compile(cases(args) + (by_method(args) if roi_align in chosen else []))
    session.wait()
    session.say(f"{machine()}; {args.image[0]} x {args.image[1]}, {args.dtype}\n")
    for part in chosen:
        part(session)
    session.say("## Left out\n\n" + ("\n".join(session.missing) or "Nothing."))
    if args.out:
        args.out.write_text("\n\n".join(session.lines) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads that still compile cannot be told to stop


if __name__ == "__main__":
    main()
