"""docs/ZOO.md: every model once, with parameters and speed, and the rows of the papers' tables with what they print.

python -m tools.zoo                                                   # writes docs/ZOO.md
python -m tools.zoo --time retinanet_r50_fpn sbr_table11:row_4        # measures these models first
python -m tools.zoo --time missing                                    # all that have no time, an hour on two cores

Times are kept in docs/zoo_times.json with their days and machines, since a ratio that was measured by turns says the
same elsewhere; those of other image sizes or repeats are dropped.
"""

import argparse
import importlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.programs import relative_times
from jaxdet.config import config_names, config_text, load_config
from jaxdet.experiment import Experiment
from jaxdet.models.two_stage import TwoStage
from jaxdet.runtime.files import write_json, write_text
from jaxdet.runtime.large_pages import ask_for_large_pages
from tools.parameters import count_parameters

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "docs" / "ZOO.md"
TIMES = ROOT / "docs" / "zoo_times.json"
BASE = "mask_rcnn_r50_fpn"
SIDE = 800  #: short side of the images of the models that are timed, pixels
MISSING = "missing"

HEAD = """# Model zoo

Made by `python -m tools.zoo` from `configs/`; not edited by hand. A name in the column *config* is what `--config` of
`jaxdet train`, `jaxdet eval` and `jaxdet predict` takes, as `--config sbr_cnn` and `--config sbr_table6:row_3`. Each
model stands once, in one of the first two tables; rows of the papers' tables link to it, and may differ from it in how
it is trained.

- **parameters**, and those of them that are **trained** (stem and first stage of the backbone are frozen), counted in
  this code; trained ones counted in the **authors' code**, and as printed in the **paper**, where they are cut off.
- **box AP** and **mask AP** are published, on COCO val2017: in the first table those that the config's docstring gives
  with their source, in the others those of the paper. Nobody has trained these models on COCO here.
- **time** is that of inference on one image with 1000 proposals around twenty objects (or, of one stage, without), in
  multiples of Mask R-CNN's (ResNet-50), with which each model took turns. {setting}
"""
CONFIGS = ("model", "config", "parameters", "trained", "box AP", "mask AP", "time")
OTHERS = ("model", "config", "parameters", "trained", "time")
ROWS = ("row", "model", "authors' code", "paper", "box AP", "mask AP")
_PUBLISHED = re.compile(r"box AP (\d+\.\d)(?:(?: and|,) mask AP (\d+\.\d))?")


@dataclass(frozen=True)
class Entry:
    """A model of the zoo, by the config or the first row of a table that has it."""

    name: str  #: ``sbr_cnn``, ``sbr_table6:row_3``
    what: str
    experiment: Experiment
    box_ap: float | None = None
    mask_ap: float | None = None

    @property
    def anchor(self) -> str:
        """Where it stands in the document."""
        return self.name.replace(":", "-")

    @property
    def link(self) -> str:
        """To the file of its config."""
        file, _, row = self.name.partition(":")
        return f"[{self.name}](../configs/{'tables/' if row else ''}{file}.py)"


def configs() -> Iterator[Entry]:
    """The configs outside the tables."""
    for name in config_names():
        what, *more = _paragraphs(config_text(name))
        experiment: Experiment = load_config(name)
        yield Entry(name, what.rstrip("."), experiment, *_published(" ".join(more)))


def _published(text: str) -> tuple[float | None, float | None]:
    """Box AP and mask AP in a docstring."""
    found = _PUBLISHED.search(text)
    box_ap, mask_ap = found.groups() if found else (None, None)
    return (None if box_ap is None else float(box_ap)), (None if mask_ap is None else float(mask_ap))


def tables() -> Iterator[tuple[str, Any]]:
    """Name and module of each table file, by paper and number."""
    for name in sorted(config_names("tables"), key=lambda name: (name.split("_")[0], len(name), name)):
        yield name, importlib.import_module(f"jaxdet.configs.tables.{name}")


def models() -> dict[Any, Entry]:
    """Each model once: those of configs, then what else the tables have."""
    found: dict[Any, Entry] = {}
    for entry in configs():
        found.setdefault(_at_test(entry.experiment.model), entry)
    for table, module in tables():
        for name, row in module.ROWS.items():
            found.setdefault(_at_test(row.experiment.model), Entry(f"{table}:{name}", row.what, row.experiment))
    return found


def find(name: str) -> Experiment:
    """The experiment of a config or of ``table:row``."""
    experiment: Experiment = load_config(name)
    return experiment


def zoo(times: Mapping[str, Any]) -> str:
    """The text of docs/ZOO.md."""
    setting, ratios = "None was measured yet.", {}
    if times:
        setting = "Median of {repeats} runs at {height}x{width}, ".format(**times) + _whens(times)
        measured = {name: ratio for some in times["measured"].values() for name, ratio in some.items()}
        ratios = {_at_test(find(name).model): ratio for name, ratio in ({BASE: 1.0} | measured).items()}
    known = models()
    of_configs: list[list[Any]] = []
    of_tables: list[list[Any]] = []
    for model, entry in known.items():
        count = count_parameters(entry.experiment.model)
        line = [f'<a id="{entry.anchor}"></a>{entry.what}', entry.link, count.all, count.trained]
        ratio = ratios.get(model)
        end = [None if ratio is None else f"{ratio:.2f}"]
        if ":" in entry.name:
            of_tables.append(line + end)
        else:
            of_configs.append([*line, entry.box_ap, entry.mask_ap, *end])
    parts = [HEAD.format(setting=setting), "## Models with a config of their own\n", _table(CONFIGS, of_configs)]
    parts += ["\n## Models that only the papers' tables have\n", _table(OTHERS, of_tables)]
    for name, module in tables():
        title, *more = _paragraphs(module.__doc__)
        parts += [f"\n## {title.rstrip('.')}\n", *(f"{text}\n" for text in more)]
        parts.append(_rows(name, module.ROWS, known))
    return "\n".join(parts) + "\n"


def _whens(times: Mapping[str, Any]) -> str:
    """When and where times were measured: what holds for most of them, and the models of other days and machines."""
    first, *others = sorted(times["measured"], key=lambda when: -len(times["measured"][when]))
    more = "".join(f"; on {when}: {', '.join(times['measured'][when])}" for when in sorted(others))
    return f"measured on {first}{more}."


def _rows(table: str, rows: dict[str, Any], known: Mapping[Any, Entry]) -> str:
    """A paper's table."""
    cells: list[list[Any]] = []
    notes: list[str] = []
    for name, row in rows.items():
        what = f"[{row.what}](#{known[_at_test(row.experiment.model)].anchor})"
        if row.note:
            notes += [] if row.note in notes else [row.note]
            what += f" <sup>{notes.index(row.note) + 1}</sup>"
        theirs = None if row.params is None else row.params[1]
        cells.append([name, what, theirs, row.printed, row.box_ap, row.mask_ap])
    lines = [f"Configs `{table}:ROW`.\n", _table(ROWS, cells)]
    extra = sorted({row.background for row in rows.values()} - {0})
    if extra:
        more = " or ".join(f"{number:,}" for number in extra)
        lines.append(f"\nThe authors' code has {more} more, about boxes and masks of the background class.")
    return "\n".join(lines + [f"\n{i}. {note[0].upper()}{note[1:]}." for i, note in enumerate(notes, 1)])


def _table(head: tuple[str, ...], lines: list[list[Any]]) -> str:
    """Columns in which no line has anything are left out; numbers, in all but the first two, stand at the right."""
    kept = [i for i in range(len(head)) if any(line[i] not in (None, "") for line in lines)]
    aligned = f"|{'|'.join('---' if i < 2 else '---:' for i in kept)}|"
    return "\n".join([_line(*(head[i] for i in kept)), aligned, *(_line(*(line[i] for i in kept)) for line in lines)])


def _at_test(model: Any) -> Any:
    """The model without what matters in training alone, by which it is one and the same model in several rows."""
    if not isinstance(model, TwoStage):
        return model
    heads = model.test_heads or tuple(stage.head for stage in model.stages)
    return model.clone(stages=(), test_heads=heads)


def _line(*cells: str | int | float | None) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(cell: str | int | float | None) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.1f}" if isinstance(cell, float) else cell or ""


def _paragraphs(docstring: str | None) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (docstring or "").strip().split("\n\n")]


def join_times(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """New times, and the old ones of other models that were measured in the same way."""
    same = all(old.get(key) == new[key] for key in ("height", "width", "repeats"))
    renewed = {name for some in new["measured"].values() for name in some}
    measured: dict[str, dict[str, float]] = {}
    for when, some in (old["measured"] if same else {}).items():
        if kept := {name: ratio for name, ratio in some.items() if name not in renewed}:
            measured[when] = kept
    for when, some in new["measured"].items():
        measured[when] = measured.get(when, {}) | some
    return {**new, "measured": measured}


def read_times() -> dict[str, Any]:
    """What was measured so far: how, and by day and machine the ratio of each model."""
    times: dict[str, Any] = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    return times


def untimed(times: Mapping[str, Any]) -> list[str]:
    """The models for large images that have no time yet."""
    done = {_at_test(find(name).model) for some in times.get("measured", {}).values() for name in some}
    done.add(_at_test(find(BASE).model))
    large = {model: entry for model, entry in models().items() if entry.experiment.data.short_side == SIDE}
    return [entry.name for model, entry in large.items() if model not in done]


def measure(names: list[str], way: Mapping[str, Any]) -> None:
    """Adds times to those that were measured in the same way; each is kept as soon as it is known."""
    if names == [MISSING]:
        names = untimed(join_times(read_times(), {**way, "measured": {}}))
    chosen = {name: find(name).model for name in names}
    hw = (way["height"], way["width"])
    for name, ratio in relative_times(chosen, find(BASE).model, hw, way["repeats"]):
        measured = {f"{time.strftime('%Y-%m-%d')}, {machine()}": {name: ratio}}
        write_json(TIMES, join_times(read_times(), {**way, "measured": measured}))
        print(f"{time.strftime('%H:%M:%S')}  {name}: {ratio}", flush=True)


def main() -> None:
    """Measure what is asked for, then write docs/ZOO.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", nargs="+", metavar="MODEL", help="configs and rows whose inference to measure")
    parser.add_argument("--image", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.time:
        height, width = args.image
        measure(args.time, {"height": height, "width": width, "repeats": args.repeats})
    write_text(ZOO, zoo(read_times()))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
