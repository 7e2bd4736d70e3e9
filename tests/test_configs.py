"""Every config file and every row of the papers' tables is a composition that can be stored, shown and named."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxdet.models.schedule import check_schedule

from jaxdet.config import check, config_name, from_data, load_config, to_data
from jaxdet.experiment import Experiment
from tools import zoo

ROOT = Path(__file__).parents[1]


def names() -> Iterator[str]:
    yield from (str(path.relative_to(ROOT)) for path in zoo.config_files())
    for table, module in zoo.tables():
        yield from (f"configs/tables/{table}.py:{row}" for row in module.ROWS)


@pytest.mark.parametrize("name", list(names()))
def test_config(name: str) -> None:
    experiment = load_config(ROOT / name)
    assert isinstance(experiment, Experiment)
    check(experiment)
    check_schedule(experiment.model.schedule, experiment.model.heads)
    assert from_data(json.loads(json.dumps(to_data(experiment)))) == experiment


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.py")), ids=lambda path: path.stem)
def test_docstring(path: Path) -> None:
    assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 40


def test_named_configs_are_the_rows_of_the_tables() -> None:
    """The file that a reader opens first holds what the table says."""
    for file, row in {
        "mask_rcnn_r50_fpn": "sbr_table2:row_1",
        "htc_r50_fpn": "sbr_table2:row_3",
        "r3_cnn": "sbr_table2:row_4",
        "sbr_cnn": "sbr_table11:row_4",
        "faster_rcnn_r50_fpn": "sbr_table10:baseline",
        "groie_sbr_faster_rcnn_r50_fpn": "sbr_table10:groie",
        "groie_mask_rcnn_r50_fpn": "r3_table4:row_4",
    }.items():
        assert load_config(ROOT / "configs" / f"{file}.py") == zoo.find(row), file


def test_rows_of_a_table_differ() -> None:
    for table, module in zoo.tables():
        experiments = [row.experiment for row in module.ROWS.values()]
        assert len({(e.model, e.optimizer) for e in experiments}) == len(experiments), table


def test_evaluation_loops_are_one_model() -> None:
    for table in ("r3_table2", "sbr_table4"):
        models = [zoo.find(f"{table}:row_{i}").model for i in range(2, 7)]
        assert [model.test_heads for model in models] == [(0,) * n for n in range(1, 6)]
        assert len({model.clone(test_heads=None) for model in models}) == 1


def test_alternations_and_thresholds() -> None:
    def steps(name: str, key: str) -> list[float]:
        return [getattr(step, key) for step in zoo.find(name).model.schedule]

    assert steps("sbr_table5:row_5", "head") == [0, 1, 0]
    assert steps("sbr_table5:row_7", "head") == [0, 1, 0, 1]
    assert steps("sbr_table5:row_7", "weight") == [1.0, 0.75, 0.5, 0.4]
    assert steps("sbr_table6:row_8", "weight") == [1.0, 0.75, 0.5, 0.3]
    assert steps("sbr_table6:row_5", "mask_passes") == [0, 1, 2]
    assert steps("sbr_table6:row_6", "mask_passes") == [0, 0, 0]
    assert [m.positive_iou for m in steps("r3_table1:row_5", "matcher")] == [0.7, 0.6, 0.5]  # type: ignore[attr-defined]
    assert steps("r3_table1:row_4", "mask_passes") == [0, 0, 0]


def test_a_row_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"got 'row_9': row_1, row_2, row_3, row_4, row_5$"):
        load_config("configs/tables/sbr_table2.py:row_9")
    with pytest.raises(ValueError, match=r"as in FILE.py:NAME, got '': row_1"):
        load_config("configs/tables/sbr_table2.py")
    with pytest.raises(ValueError, match=r"takes no name: leave out ':row_1'"):
        load_config("configs/demo.py:row_1")


def test_names_of_runs() -> None:
    assert config_name("configs/demo.py") == "demo"
    assert config_name(Path("configs/tables/sbr_table6.py:row_3")) == "sbr_table6_row_3"


def test_a_table_needs_no_array() -> None:
    """Compositions are values: reading a table computes nothing."""
    assert not [leaf for leaf in jax.tree.leaves(to_data(zoo.find("sbr_table11:row_4"))) if isinstance(leaf, jax.Array)]
