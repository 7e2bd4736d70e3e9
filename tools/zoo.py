"""docs/ZOO.md: every config and every row of the papers' tables, with its parameters, published AP and speed.

python -m tools.zoo                                                   # writes docs/ZOO.md
python -m tools.zoo --time sbr_table2:row_4 sbr_table11:row_4         # measures these rows first
python -m tools.zoo --time missing                                    # all that have no time, an hour on two cores

Times are kept in docs/zoo_times.json; those measured in another way are dropped.
"""

import argparse
import ast
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.programs import relative_times
from jaxdet.config import load_config
from jaxdet.experiment import Experiment
from jaxdet.runtime.files import write_json, write_text
from jaxdet.runtime.large_pages import ask_for_large_pages
from tools.parameters import count_parameters

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "docs" / "ZOO.md"
TIMES = ROOT / "docs" / "zoo_times.json"
BASE = ROOT / "configs" / "mask_rcnn_r50_fpn.py"
MISSING = "missing"
NO_TABLE = "parts"
"""The file in configs/tables/ that is no table."""

HEAD = """# Model zoo

Made by `python -m tools.zoo` from `configs/`; not edited by hand. Train a row of a table by
`python train.py --config configs/tables/sbr_table6.py:row_3`; `eval.py` and `predict.py` take the same name.

- **parameters**, and those of them that are **trained** (stem and first stage of the backbone are frozen), counted in
  this code; trained ones counted in the **authors' code**, and as printed in the **paper**, where they are cut off.
- **box AP** and **mask AP** are the paper's, on COCO val2017. Nobody has trained these models here: **measured** is
  empty until someone does.
- **time** is that of inference on one image with 1000 proposals around twenty objects, in multiples of Mask R-CNN's
  (ResNet-50), with which each model took turns. {setting}
"""
COLUMNS = ("model", "parameters", "trained", "authors' code", "paper", "box AP", "mask AP")
MEASURED = ("measured box AP", "mask AP", "time")


def config_files() -> list[Path]:
    """The configs outside the tables."""
    return sorted((ROOT / "configs").glob("*.py"))


def tables() -> Iterator[tuple[str, Any]]:
    """Name and module of each table file, by paper and number."""
    names = [path.stem for path in (ROOT / "configs" / "tables").glob("*.py") if path.stem != NO_TABLE]
    for name in sorted(names, key=lambda name: (name.split("_")[0], len(name), name)):
        yield name, importlib.import_module(f"configs.tables.{name}")


def find(name: str) -> Experiment:
    """The experiment of ``table:row``."""
    table, _, row = name.partition(":")
    experiment: Experiment = load_config(f"{ROOT}/configs/tables/{table}.py:{row}")
    return experiment


def zoo(times: dict[str, Any]) -> str:
    """The text of docs/ZOO.md."""
    setting, ratios = "None was measured yet.", {}
    if times:
        setting = "Median of {repeats} runs at {height}x{width}; {machine}.".format(**times)
        ratios = {_at_test(find(name).model): ratio for name, ratio in times["ratios"].items()}
        ratios[_at_test(load_config(BASE).model)] = 1.0
    parts = [HEAD.format(setting=setting), "## Configs\n", _configs()]
    for name, module in tables():
        title, *more = _paragraphs(module.__doc__)
        parts += [f"\n## {title.rstrip('.')}\n", *(f"{text}\n" for text in more)]
        parts.append(_rows(name, module.ROWS, ratios))
    return "\n".join(parts) + "\n"


def _configs() -> str:
    lines = [_line("config", "what", "parameters", "trained"), "|---|---|---:|---:|"]
    for path in config_files():
        what = _paragraphs(ast.get_docstring(ast.parse(path.read_text())))[0]
        count = count_parameters(load_config(path).model)
        lines.append(_line(f"[{path.stem}](../configs/{path.name})", what.rstrip("."), count.all, count.trained))
    return "\n".join(lines)


def _rows(table: str, rows: dict[str, Any], ratios: dict[Any, float]) -> str:
    lines = [_line(f"[{table}](../configs/tables/{table}.py)", *COLUMNS, *MEASURED), "|---|---" + "|---:" * 9 + "|"]
    notes: list[str] = []
    for name, row in rows.items():
        count, what = count_parameters(row.experiment.model), row.what
        if row.note:
            notes += [] if row.note in notes else [row.note]
            what += f" <sup>{notes.index(row.note) + 1}</sup>"
        theirs = None if row.params is None else row.params[1]
        ours = (name, what, count.all, count.trained, theirs, row.printed, row.box_ap, row.mask_ap)
        lines.append(_line(*ours, None, None, _ratio(ratios.get(_at_test(row.experiment.model)))))
    extra = sorted({row.background for row in rows.values()} - {0})
    if extra:
        more = " or ".join(f"{number:,}" for number in extra)
        lines.append(f"\nThe authors' code has {more} more, about boxes and masks of the background class.")
    return "\n".join(lines + [f"\n{i}. {note[0].upper()}{note[1:]}." for i, note in enumerate(notes, 1)])


def _at_test(model: Any) -> Any:
    """The model without what matters in training alone, so that rows which differ in nothing else share a time."""
    heads = model.test_heads or tuple(step.head for step in model.schedule)
    return model.clone(schedule=(), test_heads=heads)


def _line(*cells: str | int | float | None) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _text(cell: str | int | float | None) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.1f}" if isinstance(cell, float) else cell or ""


def _paragraphs(docstring: str | None) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (docstring or "").strip().split("\n\n")]


def join_times(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """New times, and the old ones that were measured in the same way."""
    same = all(old.get(key) == new[key] for key in ("machine", "height", "width", "repeats"))
    return {**new, "ratios": {**(old["ratios"] if same else {}), **new["ratios"]}}


def read_times() -> dict[str, Any]:
    """What was measured so far."""
    times: dict[str, Any] = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    return times


def untimed(times: dict[str, Any]) -> list[str]:
    """A row of each model that has no time yet."""
    done = {_at_test(find(name).model) for name in times.get("ratios", ())} | {_at_test(load_config(BASE).model)}
    found = {_at_test(row.experiment.model): f"{table}:{name}" for table, m in tables() for name, row in m.ROWS.items()}
    return [name for model, name in found.items() if model not in done]


def measure(names: list[str], way: dict[str, Any]) -> None:
    """Adds times to those that were measured in the same way; each is kept as soon as it is known."""
    if names == [MISSING]:
        names = untimed(join_times(read_times(), {**way, "ratios": {}}))
    models = {name: find(name).model for name in names}
    hw = (way["height"], way["width"])
    for name, ratio in relative_times(models, load_config(BASE).model, hw, way["repeats"]):
        write_json(TIMES, join_times(read_times(), {**way, "ratios": {name: ratio}}))
        print(f"{time.strftime('%H:%M:%S')}  {name}: {ratio}", flush=True)


def main() -> None:
    """Measure what is asked for, then write docs/ZOO.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", nargs="+", metavar="TABLE:ROW", help="rows whose inference to measure")
    parser.add_argument("--image", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.time:
        height, width = args.image
        measure(args.time, {"machine": machine(), "height": height, "width": width, "repeats": args.repeats})
    write_text(ZOO, zoo(read_times()))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
