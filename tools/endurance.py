"""Kills a run by ``kill -9`` at random moments and continues it; at the end it must equal a run left in peace.

python -m tools.endurance --kills 20 --out runs/endurance

The moments are random but aimed: during a step, while a checkpoint is written, during an evaluation.  The same command
is given again after each kill.  Compared are the weights at the end, the log without times and speeds, bit for bit,
and the scores.  The experiment is the tiny Mask R-CNN of the tests, on one CPU device.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxdet.checkpoints.reading import SUBFOLDER, find_step, load
from jaxdet.training.writers.jsonl import JSONL, LogEntry, read_log

ROOT = Path(__file__).parents[1]
CHECKPOINT, EVALUATE = 4, 8  #: steps between checkpoints, between evaluations
MOMENTS = {"step": 0.1, "save": 0.1, "evaluation": 1.0}  #: what a run may be doing, and about for how many seconds
TIMES = ("time", "images_per_second", "data_wait", "eta_seconds")
PATIENCE = 600  #: seconds until the moment that is waited for


@dataclass(frozen=True)
class Kill:
    """One kill and what came after it."""

    aimed: str
    happened: str  #: what the run was doing; empty: it had ended before
    reached: int  #: the last step in the log
    damage: str  #: empty: every file that the kill left was whole
    resumed: int  #: the step from which the next run went on


@dataclass(frozen=True)
class Outcome:
    """What 20 kills, say, do to a run."""

    kills: tuple[Kill, ...]
    differences: tuple[str, ...]  #: from the run left in peace

    @property
    def survived(self) -> bool:
        return not self.differences and all(kill.happened and not kill.damage for kill in self.kills)


def endure(out: Path, aims: Sequence[str], seed: int = 0) -> Outcome:
    """A run in ``out/whole``, and one in ``out/killed`` that is killed once for each of ``aims`` (of `MOMENTS`)."""
    steps, draw = EVALUATE * (len(aims) + 1), random.Random(seed)
    whole, killed = Job(out / "whole", steps), Job(out / "killed", steps)
    whole.finish()
    kills: list[tuple[str, str, int, str]] = []
    starts = []
    for aim in aims:
        happened = killed.kill(aim, draw.randint(1, CHECKPOINT), draw.uniform(0, MOMENTS[aim]))
        kills.append((aim, happened, last_step(killed.workdir), damage(killed.workdir)))
        starts.append(killed.started())
    killed.finish()
    resumed = [*starts[1:], killed.started()]
    found = [Kill(*kill, start) for kill, start in zip(kills, resumed, strict=True)]
    return Outcome(tuple(found), tuple(differences(whole.workdir, killed.workdir)))


@dataclass(frozen=True)
class Job:
    """The command that trains in ``workdir``; generated images and compiled programs lie beside it."""

    workdir: Path
    steps: int

    def begin(self) -> subprocess.Popen[bytes]:
        beside = self.workdir.parent
        beside.mkdir(parents=True, exist_ok=True)
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(beside / "cache"),
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        settings = [
            *(f"data.{split}.directory={beside / 'scenes'}" for split in ("train", "val")),
            f"optimizer.schedule.length={self.steps}",
            f"run.checkpoint_every={CHECKPOINT}",
            f"run.eval_every={EVALUATE}",
        ]
        where = ["--config", "tests/training/tiny.py", "--workdir", str(self.workdir)]
        command = [sys.executable, "train.py", *where, *settings]
        with self._said.open("wb") as said:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)

    def finish(self) -> None:
        """Run to the end."""
        if code := self.begin().wait():
            raise RuntimeError(f"the run ended with code {code}: {self._said.read_text()[-2000:]}")

    def kill(self, aim: str, ahead: int, delay: float) -> str:
        """Run some steps beyond those of the last run, to a moment of that kind, and wait a little; then kill.

        Returns what it was doing then, several of `MOMENTS` with a plus; empty if it had ended before.
        """
        after = last_step(self.workdir) + ahead
        process, end = self.begin(), time.monotonic() + PATIENCE
        while process.poll() is None and not (last_step(self.workdir) >= after and doing(self.workdir, aim)):
            if time.monotonic() > end:
                process.kill()
                raise RuntimeError(f"no {aim} after step {after} in {PATIENCE} s: {self._said.read_text()[-2000:]}")
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        if process.wait() != -9:
            return ""
        return "+".join(kind for kind in ("evaluation", "save") if doing(self.workdir, kind)) or "step"

    def started(self) -> int:
        """The step from which the last run went on."""
        said = re.search(r"steps, of which (\d+) are done", self._said.read_text())
        return int(said.group(1)) if said else 0

    @property
    def _said(self) -> Path:
        return self.workdir.with_suffix(".txt")


def doing(workdir: Path, kind: str) -> bool:
    """Whether the run in the folder is at it, by its files."""
    if kind == "save":
        return any(".orbax-checkpoint-tmp" in entry.name for entry in (workdir / SUBFOLDER).glob("*"))
    if kind == "evaluation":
        last = (read_log(workdir) or [{"step": 1}])[-1]
        return last["step"] % EVALUATE == 0 and "loss" in last
    return True


def last_step(workdir: Path) -> int:
    """The last step in the log."""
    return max((record["step"] for record in read_log(workdir)), default=0)


def damage(workdir: Path) -> str:
    """What is wrong with the files of a run that was killed; empty where nothing is."""
    try:
        for line in (workdir / JSONL).read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                return f"half a line in {JSONL}"
            json.loads(line)
        json.loads((workdir / "config.json").read_text())
        if last_step(workdir) > 2 * CHECKPOINT:  # else it may have none yet
            load(find_step(workdir))
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def differences(whole: Path, killed: Path) -> list[str]:
    """How two finished runs differ in weights, log and scores."""
    wrong = []
    ours, theirs = (jax.tree_util.tree_leaves_with_path(load(folder)[0]) for folder in (whole, killed))
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        if not np.array_equal(a, b):
            wrong.append(f"weights {jax.tree_util.keystr(path)}: up to {np.abs(a - b).max():.3g} apart")
    logs = [[untimed(record) for record in read_log(folder)] for folder in (whole, killed)]
    wrong += [f"log: {a} became {b}" for a, b in zip(*logs, strict=False) if a != b]
    if len(logs[0]) != len(logs[1]):
        wrong.append(f"log: {len(logs[0])} lines became {len(logs[1])}")
    if (whole / "metrics.json").read_text() != (killed / "metrics.json").read_text():
        wrong.append("metrics.json differs")
    return wrong


def untimed(record: LogEntry) -> LogEntry:
    """A record of the log without what the clock says."""
    return {name: value for name, value in record.items() if name not in TIMES}


def show(outcome: Outcome) -> None:
    """Print the table and the verdict."""
    print("kill  aimed at    killed in        step reached  resumed from  files")
    for number, kill in enumerate(outcome.kills, 1):
        print(
            f"{number:4d}  {kill.aimed:10s}  {kill.happened or 'not at all':15s}  {kill.reached:12d}  "
            f"{kill.resumed:12d}  {kill.damage or 'whole'}"
        )
    print("\n".join(outcome.differences) or "weights, log and scores equal those of the run left in peace, bit for bit")


def main() -> int:
    """Do it; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two runs, new")
    options = parser.parse_args()
    outcome = endure(
        options.out.absolute(), random.Random(options.seed).choices(list(MOMENTS), k=options.kills), options.seed
    )
    show(outcome)
    return 0 if outcome.survived else 1


if __name__ == "__main__":
    sys.exit(main())
