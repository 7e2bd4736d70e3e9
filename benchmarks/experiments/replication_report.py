"""Table and pictures of what `benchmarks.experiments.replicate` measured, in one call or in several.

python -m benchmarks.experiments.replication_report runs/seeds_0_1 runs/seed_2
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.measure import markdown, mean_and_spread

Run = dict[str, Any]
KINDS = {"bbox/AP": "box AP", "segm/AP": "mask AP"}
LAST = 0.25  # part of a run whose samples the histogram counts
TENTHS = (50, 60, 70, 80, 90)


def write_report(runs: Sequence[Run], out: Path) -> None:
    """``table.md``, ``ap.png`` and ``iou.png`` into ``out``; of no runs nothing."""
    own = [run for run in runs if run["own_steps"]]
    if not own:
        return
    (out / "table.md").write_text(f"{systems_table(own)}\n\n{test_steps_table(runs)}\n")
    draw_scores(own, out / "ap.png")
    draw_overlaps(own, out / "iou.png")


def systems_table(runs: Sequence[Run]) -> str:
    """A row for each system: mean and standard deviation over seeds."""
    head = ["system", "seeds", "box AP", "mask AP", "box AP75", "mask AP75", "parameters", "ms a step", "images seen"]
    rows = []
    for name, its in _by(runs, "system"):
        scores = [
            mean_and_spread(run["ap"][key] for run in its) for key in ("bbox/AP", "segm/AP", "bbox/AP75", "segm/AP75")
        ]
        ms = float(np.median([run["ms_per_step"] for run in its]))
        rows.append([name, len(its), *scores, f"{its[0]['parameters']:,}", f"{ms:.1f}", f"{its[0]['images']:,}"])
    return markdown(head, rows)


def test_steps_table(runs: Sequence[Run]) -> str:
    """Box and mask AP by the number of steps at test (R3-CNN, Table 2), of systems with more than one."""
    rows = []
    for name, its in _by(runs, "system"):
        for steps, some in sorted(_by(its, "test_steps")):
            if its[0]["train_steps"] > 1:
                scores = [mean_and_spread(run["ap"][key] for run in some) for key in KINDS]
                rows.append([name, its[0]["train_steps"], steps, len(some), *scores])
    return markdown(["system", "steps in training", "steps at test", "seeds", *KINDS.values()], rows)


def draw_scores(runs: Sequence[Run], path: Path) -> None:
    """Every run a point, every system a column with its mean."""
    figure, axes = plt.subplots(1, len(KINDS), figsize=(10, 4), layout="constrained")
    for axis, (key, title) in zip(axes, KINDS.items(), strict=True):
        names = []
        for place, (name, its) in enumerate(_by(runs, "system")):
            values = [run["ap"][key] for run in its]
            names.append(name.replace(" + ", "\n+ "))
            axis.plot([place] * len(values), values, "o", color="C0", alpha=0.6)
            axis.hlines(np.mean(values), place - 0.3, place + 0.3, color="C3")
        axis.set_xticks(range(len(names)), names, rotation=20)
        axis.set_title(f"{title}: seeds and their mean")
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_overlaps(runs: Sequence[Run], path: Path) -> None:
    """IoU of positive samples with their objects, by step, a panel a system (R3-CNN, Fig. 2; SBR-CNN, Fig. 3)."""
    groups = _by(runs, "system")
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.4), sharey=True, layout="constrained")
    for axis, (name, its) in zip(np.atleast_1d(axes), groups, strict=True):
        bottom = np.zeros(len(TENTHS))
        for step, counts in enumerate(np.mean([overlaps(run) for run in its], axis=0)):
            axis.bar([t + 5 for t in TENTHS], counts, width=9, bottom=bottom, label=f"step {step + 1}")
            bottom += counts
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("IoU, %")
        axis.legend(fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("positive samples an image")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def overlaps(run: Run) -> np.ndarray:
    """Positives an image ``[steps, 5]`` by IoU from 50 to 100 %, mean over the last part of a run."""
    last = run["metrics"][-max(round(LAST * len(run["metrics"])), 1) :]
    prefixes = [f"s{t}." for t in range(run["train_steps"])] if run["train_steps"] > 1 else [""]
    return np.array([[np.mean([m[f"{p}positives_iou{t}"] for m in last]) for t in TENTHS] for p in prefixes])


def _by(runs: Iterable[Run], key: str) -> list[tuple[Any, list[Run]]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(run[key], []).append(run)
    return list(groups.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="where runs.json lie; the first gets the report")
    folders = parser.parse_args().folders
    write_report([run for folder in folders for run in json.loads((folder / "runs.json").read_text())], folders[0])
    print((folders[0] / "table.md").read_text())


if __name__ == "__main__":
    main()
