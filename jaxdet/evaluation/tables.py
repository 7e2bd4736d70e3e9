"""Scores as tables for people, and how far a long evaluation is."""

import sys
from collections.abc import Mapping

from rich.table import Table

from jaxdet.evaluation.score import Scores


def summary_table(metrics: Mapping[str, float]) -> Table:
    """COCO's numbers, a column for each kind that ``metrics`` has; a dash where there is no ground truth."""
    kinds = [kind for kind in ("bbox", "segm") if f"{kind}/AP" in metrics]
    table = Table("", *kinds, title="COCO")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in [key.removeprefix("bbox/") for key in metrics if key.startswith("bbox/")]:
        table.add_row(name, *(_number(metrics[f"{kind}/{name}"]) for kind in kinds))
    return table


def per_class_table(scores: Scores) -> Table:
    """A row for each category, in order of category id."""
    keys = list(next(iter(scores.per_class.values()), {}))
    table = Table("category", *(key.replace("/", "\n") for key in keys), title="per class")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in scores.per_class.items():
        table.add_row(name, *(_number(row[key]) for key in keys))
    return table


def show_progress(done: int, count: int, what: str = "images") -> None:
    """Say on one line of a terminal how much is done; nothing where nobody looks."""
    if sys.stderr.isatty():
        print(f"\r{done} / {count} {what}", end="\n" if done == count else "", file=sys.stderr, flush=True)


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
