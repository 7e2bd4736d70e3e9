"""Every config file and every row of the papers' tables is a composition that can be stored, shown and named."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxdet.commands.zoo import main as zoo_command
from jaxdet.config import check, config_name, config_names, from_data, load_config, to_data
from jaxdet.experiment import Experiment
from jaxdet.models.dense import DenseDetector
from jaxdet.models.detector import Detector
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.boundaries import BoundaryRefinement
from jaxdet.models.parts.grid import GridBoxes
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.parts.refine import Refine
from jaxdet.models.roi.schedule import check_stages, check_test_heads, check_unshared
from jaxdet.models.two_stage import TwoStage
from tools import zoo

ROOT = Path(__file__).parents[1]


def names() -> Iterator[str]:
    yield from (f"configs/{name}.py" for name in config_names())
    for table, module in zoo.tables():
        yield from (f"configs/tables/{table}.py:{row}" for row in module.ROWS)


def check_model(model: Detector) -> None:
    """What a model would refuse when it is first called; a call of each of these would take minutes in all."""
    assert isinstance(model, Detector)
    if isinstance(model, OneStage):
        check_unshared({"dense": model.dense, "parts": model.parts})
        check_dense(model.dense)
        return
    assert isinstance(model, TwoStage)
    check_stages(model.stages, model.heads)
    check_test_heads(model.test_heads, model.heads)
    check_unshared({"heads": model.heads, "parts": model.parts})
    check_dense(model.rpn)
    kinds = [type(part) for part in model.parts]
    if kinds == [GridBoxes]:
        return
    assert kinds[:1] in ([], [MaskPrediction], [Refine])
    assert kinds[1:] in ([], [MaskScoring], [BoundaryRefinement])
    for masks in model.parts[:1]:
        assert len(masks.heads) == len(model.heads)
        assert all(masks.heads[stage.head].linked for stage in model.stages if stage.mask_passes)


def check_dense(dense: DenseDetector) -> None:
    # FCOS's head has one place in each cell, whatever is set.
    assert getattr(dense.head, "anchors", 1) == dense.places.per_cell
    assert (dense.sampler is None) == (dense.train.suppression.within == "class")


@pytest.mark.parametrize("name", list(names()))
def test_config(name: str) -> None:
    experiment = load_config(ROOT / name)
    assert isinstance(experiment, Experiment)
    check(experiment)
    check_model(experiment.model)
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
        "dcn_mask_rcnn_r50_fpn": "sbr_table11:row_8",
        "faster_rcnn_r50_fpn": "sbr_table10:baseline",
        "groie_sbr_faster_rcnn_r50_fpn": "sbr_table10:groie",
        "groie_mask_rcnn_r50_fpn": "r3_table4:row_4",
    }.items():
        assert load_config(ROOT / "configs" / f"{file}.py") == zoo.find(row), file


def test_rows_of_a_table_differ() -> None:
    for table, module in zoo.tables():
        experiments = [row.experiment for row in module.ROWS.values()]
        assert len({(e.model, e.optimizer, e.data) for e in experiments}) == len(experiments), table


def test_evaluation_loops_are_one_model() -> None:
    for table in ("r3_table2", "sbr_table4"):
        models = [zoo.find(f"{table}:row_{i}").model for i in range(2, 7)]
        assert [model.test_heads for model in models] == [(0,) * n for n in range(1, 6)]
        assert len({model.clone(test_heads=None) for model in models}) == 1


def test_alternations_and_thresholds() -> None:
    def stages(name: str, key: str) -> list[float]:
        return [getattr(stage, key) for stage in zoo.find(name).model.stages]

    assert stages("sbr_table5:row_5", "head") == [0, 1, 0]
    assert stages("sbr_table5:row_7", "head") == [0, 1, 0, 1]
    assert stages("sbr_table5:row_7", "weight") == [1.0, 0.75, 0.5, 0.4]
    assert stages("sbr_table6:row_8", "weight") == [1.0, 0.75, 0.5, 0.3]
    assert stages("sbr_table6:row_5", "mask_passes") == [0, 1, 2]
    assert stages("sbr_table6:row_6", "mask_passes") == [0, 0, 0]
    assert [m.positive_iou for m in stages("r3_table1:row_5", "matcher")] == [0.7, 0.6, 0.5]  # type: ignore[attr-defined]
    assert stages("r3_table1:row_4", "mask_passes") == [0, 0, 0]


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


def test_retinanet_is_its_papers() -> None:
    """Nine anchors of 32 to 813 pixels a cell, on levels 3 to 7; the deeper one differs by its backbone alone."""
    model, deeper = (load_config(f"configs/retinanet_r{depth}_fpn.py").model for depth in (50, 101))
    assert deeper == model.clone(backbone=model.backbone.clone(depth=101))
    sides = [model.dense.places.cell(level)[3:6, 2] * 2 for level in model.dense.places.levels]
    assert [round(float(s)) for s in sides[0]] == [32, 40, 51]
    assert round(float(sides[-1][-1])) == 813
    matcher = model.dense.matcher
    assert (matcher.positive_iou, matcher.negative_iou, matcher.min_positive_iou) == (0.5, 0.4, 0.0)


def test_backbones_of_the_tables_and_of_resnext() -> None:
    """A row differs from its model by the backbone alone, ResNeXt-101 32x8d by norms and colours too."""
    for row, plain, changes in (
        ("sbr_table11:row_7", "sbr_table11:row_4", {"context": 4, "norm": "sync_batch"}),
        ("sbr_table11:row_9", "sbr_table11:row_3", {"deform": "v1"}),
        ("r3_table4:row_11", "r3_table4:row_3", {"deform": "v1"}),
        ("groie_table5:gcnet", "groie_table5:mask", {"context": 4, "norm": "sync_batch"}),
    ):
        model = zoo.find(plain).model
        assert zoo.find(row).model == model.clone(backbone=model.backbone.clone(**changes)), row
    models = {kind: load_config(f"configs/mask_rcnn_x101_{kind}_fpn.py").model for kind in ("32x8d", "32x4d", "64x4d")}
    assert {kind: (m.backbone.groups, m.backbone.group_width) for kind, m in models.items()} == {
        "32x8d": (32, 8),
        "32x4d": (32, 4),
        "64x4d": (64, 4),
    }
    assert [m.normalization.channels for m in models.values()] == ["bgr", "rgb", "rgb"]
    assert [m.backbone.norm for m in models.values()] == ["frozen_batch", "batch", "batch"]


def test_a_table_needs_no_array() -> None:
    """Compositions are values: reading a table computes nothing."""
    assert not [leaf for leaf in jax.tree.leaves(to_data(zoo.find("sbr_table11:row_4"))) if isinstance(leaf, jax.Array)]


def test_the_zoo_is_searched_by_a_word_or_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_command(["yolact"]) == 0
    said = capsys.readouterr().out
    assert "  yolact_r50_fpn " in said
    assert "  yolact_r50_1x8 " in said
    assert zoo_command(["mr_sbr*"]) == 0
    said = capsys.readouterr().out
    assert "  mr_sbr_cnn " in said
    assert "published" not in said  # there are no weights of that name
    assert zoo_command(["mask_rccn"]) == 1
    assert "'mask_rccn'" in capsys.readouterr().err
