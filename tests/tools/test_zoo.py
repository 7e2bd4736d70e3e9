"""The papers' tables: parameters of every row, and docs/ZOO.md."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import pytest

from benchmarks.inputs import make_batch
from jaxdet.config import load_config
from jaxdet.models.detector import Detector
from tools import zoo
from tools.parameters import Count, count_parameters, parameter_sizes

Row = Any

PRINTED_OF_OTHERS = {f"sbr_table7:row_{i}" for i in (3, 4, 6, 7)}
"""Rows beside which the paper prints the parameters of another model."""

COUNTED = {
    "r3_table1": 6,
    "sbr_table2": 5,
    "sbr_table6": 12,
    "sbr_table7": 16,
    "sbr_table8": 7,
    "sbr_table9": 7,
    "sbr_table10": 2,
}
"""Tables of which every row has a number to compare with, and how many."""


def rows() -> Iterator[tuple[str, Row]]:
    for table, module in zoo.tables():
        for key, row in module.ROWS.items():
            yield f"{table}:{key}", row


ROWS = dict(rows())


def test_tables_are_whole() -> None:
    counted = [name.split(":")[0] for name, row in ROWS.items() if row.params]
    assert {table: counted.count(table) for table in COUNTED} == COUNTED
    assert [name for name, row in ROWS.items() if row.params is None] == ["r3_table4:row_5"]


@pytest.mark.parametrize("name", list(ROWS))
def test_parameters_are_those_of_the_authors_code(name: str) -> None:
    row = ROWS[name]
    count = count_parameters(row.experiment.model)
    if row.params is not None:
        assert (count.all + row.background, count.trained + row.background) == row.params
    if row.printed:
        assert (cut_off(count.trained, row.printed) == row.printed) == (name not in PRINTED_OF_OTHERS)


def cut_off(number: int, like: str) -> str:
    """The number in the way of the papers: ``44,170 K`` or ``32.2M``."""
    return f"{number // 1000:,} K" if like.endswith("K") else f"{number // 100_000 / 10:.1f}M"


def test_numbers_are_cut_off_and_not_rounded() -> None:
    assert cut_off(44_170_992, "K") == "44,170 K"
    assert cut_off(32_777_780, "M") == "32.7M"


@pytest.mark.parametrize(
    "config", ["groie_mask_rcnn_r50_fpn", "htc_semantic_r50_fpn", "sbr_cnn", "sbr_cnn_r18_fpn_small"]
)
def test_the_parts_make_the_whole(config: str) -> None:
    """What is counted part by part are the parameters of the model traced in one piece, each at its place."""
    model = load_config(f"configs/{config}.py").model
    init = functools.partial(model.init, method="predict")
    whole = flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0), make_batch(64, 64))["params"])
    assert parameter_sizes(model) == {path: leaf.size for path, leaf in whole.items()}


def test_what_is_counted_as_trained() -> None:
    """All but the stem and the first stage; by hand for ResNet-50: 9,408 + 128 + 215,808."""
    model: Detector = load_config("configs/mask_rcnn_r50_fpn.py").model
    count = count_parameters(model)
    assert count.all - count.trained == 225_344
    everything = model.clone(backbone=model.backbone.clone(frozen_stages=-1))  # type: ignore[attr-defined]
    assert count_parameters(everything) == Count(count.all, count.all)


def test_the_document_is_up_to_date() -> None:
    assert zoo.ZOO.read_text() == zoo.zoo(zoo.read_times()), "run python -m tools.zoo"


def test_a_time_stands_beside_all_rows_of_the_same_model() -> None:
    times = {"repeats": 7, "height": 64, "width": 96, "machine": "abacus", "ratios": {"sbr_table2:row_4": 3.14}}
    text = zoo.zoo(times)
    assert "Median of 7 runs at 64x96; abacus." in text
    timed = [line.split(" |")[1] for line in text.splitlines() if line.endswith("| 3.14 |")]
    naive = [" R3-CNN, naive", " R3-CNN, naive, loops: 3, at test: 3", " R3-CNN, naive, loops: 3"]
    assert timed == [
        naive[0],
        " R3-CNN, naive, falling thresholds",
        naive[1],
        naive[2],
        naive[0],
        naive[2],
        naive[1],
        " R3-CNN",
    ]
    assert text.count("| 1.00 |") == 8, "Mask R-CNN, 1x and 3x schedule"


def test_times_measured_otherwise_are_dropped() -> None:
    way = {"height": 800, "width": 1333, "machine": "a", "repeats": 5}
    old = {**way, "ratios": {"a": 1.0, "b": 2.0}}
    new = {**way, "ratios": {"b": 3.0}}
    assert zoo.join_times(old, new) == {**new, "ratios": {"a": 1.0, "b": 3.0}}
    assert zoo.join_times({**old, "width": 640}, new) == new
    assert zoo.join_times({}, new) == new


def test_each_model_without_a_time_is_missing_once() -> None:
    some = {"ratios": {"sbr_table2:row_4": 1.3}}
    names = zoo.untimed(some)
    models = [zoo._at_test(zoo.find(name).model) for name in names]
    assert len(set(models)) == len(models)
    assert not {zoo._at_test(zoo.find(name).model) for name in ("sbr_table2:row_4", "r3_table1:row_1")} & set(models)
    every = {zoo._at_test(row.experiment.model) for _, module in zoo.tables() for row in module.ROWS.values()}
    assert len(models) == len(every) - 2


def test_times_are_kept_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measured(models: Any, *_: Any) -> Iterator[tuple[str, float]]:
        yield next(iter(models)), 2.5
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "TIMES", tmp_path / "times.json")
    monkeypatch.setattr(zoo, "relative_times", measured)
    way = {"height": 800, "width": 1333, "machine": "a", "repeats": 5}
    for name in ("groie_table1:sum", "groie_table1:random"):
        with pytest.raises(KeyboardInterrupt):
            zoo.measure([name, "sbr_table2:row_4"], way)
    assert zoo.read_times() == {**way, "ratios": {"groie_table1:sum": 2.5, "groie_table1:random": 2.5}}
