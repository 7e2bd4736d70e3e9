"""The curves of a run as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdet.runtime.files import replacing
from jaxdet.training.records import Record


def draw_curves(records: list[Record], path: Path) -> None:
    """Losses, learning rate and AP over steps, as a picture of 1200 x 400 pixels."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # no pyplot: no global state, no display
    losses, rate, quality = figure.subplots(1, 3)
    names = [name for name in _names(records) if name == "loss" or name.startswith("loss/")]
    for name in names:
        _plot(losses, records, name, name.removeprefix("loss/"))
    _plot(rate, records, "lr", "learning rate")
    for name in ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50"):
        _plot(quality, records, name, name, marker="o")
    for axes, title in ((losses, "loss"), (rate, "learning rate"), (quality, "validation")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize="small")
    quality.set_ylim(0, 1)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=100)


def _names(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _plot(axes: Axes, records: list[Record], name: str, label: str, **style: Any) -> None:
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
