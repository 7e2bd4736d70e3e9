"""The table of published weights: every row has a config, settings that it takes, and a file named by its hash."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxdet.checkpoints.names.torchvision import COCO_IDS
from jaxdet.checkpoints.public import __main__ as listed
from jaxdet.checkpoints.public.table import coco_categories, find_public, near_names, public_weights
from jaxdet.config import to_data
from jaxdet.trained import _config_of, load

ROWS = list(public_weights().values())
PAGE = Path(__file__).parents[2] / "docs" / "WEIGHTS.md"


def test_rows_are_facts_that_fit_each_other() -> None:
    assert len({row.file for row in ROWS}) == len(ROWS) == len(public_weights())
    for row in ROWS:
        kind, _, prefix = row.hash.partition(":")
        assert kind in ("sha256", "md5"), row
        assert re.search(rf"[-_]{prefix}\.(pth|pkl)$", row.file), row
        assert row.url.startswith("https://"), row
        assert row.source.licence, row
        assert all(ap is None or 20 < ap < 60 for ap in (row.box_ap, row.mask_ap)), row
        assert bool(row.config) == bool(row.box_ap or row.mask_ap), row
        assert find_public(row.name) is row


def test_every_detector_has_a_config_that_takes_its_settings_and_differs_by_them() -> None:
    """Two rows of one config and settings would be two weights of one schedule."""
    seen: dict[str, str] = {}
    for row in ROWS:
        if row.config:
            experiment = _config_of(row)
            assert experiment.model.num_classes == 80, row
            assert experiment.data.masks == (row.mask_ap is not None), row
            key = str(to_data(experiment))
            assert seen.setdefault(key, row.name) == row.name or row.source.name == "torchvision", row


def test_cocos_categories() -> None:
    ids, names = zip(*coco_categories(), strict=True)
    assert ids == COCO_IDS
    assert len(set(names)) == 80
    assert (names[0], names[4], names[-1]) == ("person", "airplane", "toothbrush")


def test_a_name_that_is_nearly_right_is_helped() -> None:
    assert find_public("mask_rcnn_r50_fpn_3x") is None
    assert near_names("mask_rcnn_r50_fpn_3x").startswith("; public weights of a similar name: mask_rcnn_r50_fpn_")
    with pytest.raises(FileNotFoundError, match="similar name: mask_rcnn_r50_fpn_"):
        load("mask_rcnn_r50_fpn_3x")
    assert near_names("runs/mine") == ""


def test_a_backbone_is_no_model() -> None:
    with pytest.raises(ValueError, match=r"got a backbone: start from it, as in run\.init_from=resnet50"):
        load("resnet50")


def test_paths_of_other_things(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", a=np.zeros(1))
    assert find_public(tmp_path / "weights.npz") is None
    assert find_public(tmp_path) is None
    assert find_public(3) is None


def test_the_page_has_all_of_it_and_so_has_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    listed.main([])
    lines = [line.rstrip("*") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == len(ROWS)
    assert lines == [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
