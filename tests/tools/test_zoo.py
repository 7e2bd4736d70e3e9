"""The papers' tables: parameters of every row, and docs/ZOO.md."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import pytest

from benchmarks.inputs import make_batch
from jaxdet.config import load_config
from jaxdet.configs.base import best_groie, first_groie, htc
from jaxdet.configs.grid import grid_rcnn
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
    "sbr_table11": 11,
    "rds_table2": 6,
    "rds_table4": 3,
}
"""Tables of which every row has a number to compare with, and how many."""


WAY = {"height": 64, "width": 96, "repeats": 7}


def rows() -> Iterator[tuple[str, Row]]:
    for table, module in zoo.tables():
        for key, row in module.ROWS.items():
            yield f"{table}:{key}", row


ROWS = dict(rows())


def test_tables_are_whole() -> None:
    counted = [name.split(":")[0] for name, row in ROWS.items() if row.params]
    assert {table: counted.count(table) for table in COUNTED} == COUNTED
    # The authors of RDSNet have not released the code of RDSNet_s, nor the sweeps; R3-CNN's of some combinations; those
    # of MR R-CNN none at all.
    without = {name for name, row in ROWS.items() if row.params is None and not name.startswith(("rds", "mr"))}
    assert without == {"r3_table4:row_5", "r3_table4:row_8", "r3_table4:row_11", "groie_table5:gcnet"}


@pytest.mark.parametrize("name", list(ROWS))
def test_parameters_are_those_of_the_authors_code(name: str) -> None:
    row = ROWS[name]
    count = count_parameters(row.experiment.model)
    if row.params is not None:
        assert (count.all + row.background, count.trained + row.background) == row.params
    if row.printed:
        assert (cut_off(count.trained, row.printed) == row.printed) == (name not in PRINTED_OF_OTHERS)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (htc(first_groie).model, (88_837_956, 88_612_612)),
        (htc(best_groie).model, (135_264_318, 135_038_974)),
        (grid_rcnn(best_groie).model, (83_817_577, 83_592_233)),
    ],
)
def test_parameters_of_models_that_no_table_has(model: Detector, params: tuple[int, int]) -> None:
    """But the authors' code does: every head has an extractor of its own."""
    count = count_parameters(model)
    assert (count.all, count.trained) == params


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


@pytest.fixture(scope="module")
def text() -> str:
    measured = {"2026-01-02, abacus": {"sbr_table2:row_4": 3.14}, "2026-03-04, quipu": {"retinanet_r50_fpn": 0.5}}
    return zoo.zoo({**WAY, "measured": measured})


def cells(text: str) -> list[list[list[str]]]:
    """The tables of a document, line by line, heads first, without the lines that align the columns."""
    found: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
            found.append([lines[0], *lines[2:]])
    return found


def test_each_model_stands_once_and_rows_link_to_it(text: str) -> None:
    anchors = re.findall(r'<a id="([^"]+)">', text)
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(set(anchors)) == len(anchors) == len(zoo.models())
    assert len(links) == len(ROWS)
    assert set(links) <= set(anchors)
    own = {entry.anchor for entry in zoo.configs()}
    assert set(anchors) - own <= set(links), "a model of the tables that no row has"


def test_no_column_is_empty(text: str) -> None:
    tables = cells(text)
    assert len(tables) == 2 + len(list(zoo.tables()))
    for head, *lines in tables:
        assert all(len(line) == len(head) for line in lines)
        assert all(any(line[i] for line in lines) for i in range(len(head))), head


def test_configs_have_the_numbers_that_are_published(text: str) -> None:
    head, *lines = cells(text)[0]
    assert head == list(zoo.CONFIGS)
    found = {re.sub(r".*id=\"([^\"]+)\".*", r"\1", line[0]): line[2:] for line in lines}
    assert found["retinanet_r50_fpn"][::2] == ["37,968,692", "36.5", "0.50"]
    assert found["retinanet_r101_fpn"][::2] == ["56,960,820", "38.5", ""]
    assert found["mask_rcnn_r50_fpn"] == ["44,396,336", "44,170,992", "38.2", "34.7", "1.00"]
    assert found["groie_faster_rcnn_r50_fpn"][2:4] == ["", ""], "its docstring speaks of the AP of another config"


def test_a_time_stands_beside_the_model_of_its_row(text: str) -> None:
    assert "Median of 7 runs at 64x96, measured on 2026-01-02, abacus; on 2026-03-04, quipu: retinanet_r50_fpn." in text
    assert [line[0] for line in cells(text)[0] if line[-1] == "3.14"] == [
        '<a id="r3_cnn"></a>R3-CNN, naive (Rossi et al. 2021): one head in a loop of three steps, ResNet-50 and FPN, '
        "1x schedule on COCO"
    ]
    assert text.count("| 1.00 |") == 1, "Mask R-CNN, whatever its schedule"


def test_times_measured_otherwise_are_dropped() -> None:
    old = {**WAY, "measured": {"2026-01-02": {"a": 1.0, "b": 2.0}, "2026-01-03": {"c": 4.0}}}
    new = {**WAY, "measured": {"2026-03-04": {"b": 3.0, "c": 5.0}}}
    assert zoo.join_times(old, new) == {
        **WAY,
        "measured": {"2026-01-02": {"a": 1.0}, "2026-03-04": {"b": 3.0, "c": 5.0}},
    }
    assert zoo.join_times({**old, "width": 640}, new) == new
    assert zoo.join_times({}, new) == new


def test_each_large_model_without_a_time_is_missing_once() -> None:
    names = zoo.untimed({"measured": {"2026-01-02": {"sbr_table2:row_4": 1.3}}})
    known = zoo.models()
    chosen = [zoo._at_test(zoo.find(name).model) for name in names]
    assert len(set(chosen)) == len(chosen)
    assert {"retinanet_r50_fpn", "htc_r50_fpn"} <= set(names)
    small = {"demo", "mask_rcnn_r18_fpn_small", "sbr_cnn_r18_fpn_small", "rdsnet_r18_fpn_small"}
    assert not {"r3_cnn", "mask_rcnn_r50_fpn", *small} & {known[model].name for model in chosen}
    large = [entry for entry in known.values() if entry.experiment.data.short_side == zoo.SIDE]
    assert len(chosen) == len(large) - 2


def test_times_are_kept_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measured(models: Any, *_: Any) -> Iterator[tuple[str, float]]:
        yield next(iter(models)), 2.5
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "TIMES", tmp_path / "times.json")
    monkeypatch.setattr(zoo, "relative_times", measured)
    monkeypatch.setattr(zoo.time, "strftime", lambda form: "today")
    monkeypatch.setattr(zoo, "machine", lambda: "abacus")
    for name in ("groie_table1:sum", "retinanet_r50_fpn"):
        with pytest.raises(KeyboardInterrupt):
            zoo.measure([name, "sbr_table2:row_4"], WAY)
    kept = {"today, abacus": {"groie_table1:sum": 2.5, "retinanet_r50_fpn": 2.5}}
    assert zoo.read_times() == {**WAY, "measured": kept}


def test_a_refining_step_adds_a_box_head_a_mask_head_and_a_link_all_of_them_trained() -> None:
    """14,306,705, 2,643,280 and 65,792 parameters, counted from the shapes of the layers."""
    base, refined = (count_parameters(zoo.find(f"{name}_r50_fpn").model) for name in ("mask_rcnn", "mr_rcnn"))
    assert (refined.all - base.all, refined.trained - base.trained) == (17_015_777, 17_015_777)
