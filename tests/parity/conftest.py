"""Which of the full-size models run where there is no time for all: ``PARITY_SHARE=3 make parity``.

A model of each family always does.  Of the other parity tests, one of so many equal shares runs; the commit decides
which, so that all have their turn.  Models that differ from another one by little and take long run on request alone:
``PARITY_LONG=1 make parity``.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

FAMILIES = {
    "Mask R-CNN": "mask_rcnn_r50",
    "RetinaNet": "retinanet_r50",
    "RDSNet": "rdsnet_refine_r50",
    "CondInst": "condinst_r50",
    "YOLACT": "yolact_r50",
    "Hybrid Task Cascade": "htc_semantic_r50",
    "Mask Scoring R-CNN": "ms_rcnn_r50",
    "GRoIE": "groie1_mask",
    "R3-CNN": "r3_naive",
    "SBR-CNN": "sbr_cnn",
    "MR R-CNN": "mr_rcnn_r50",
    "GC-Net": "gcnet_r4",
    "DCN": "mdcn_c3c5",
    "Grid R-CNN": "grid_rcnn_r50",
}
"""The model of each family that `test_model` compares with its golden numbers at every commit."""

LONG = ("dcn_c3c5", "sbr_cnn_dcn", "mask_rcnn_x101_32x8d")
"""Models that `test_model` compares on request: beside mdcn_c3c5, and beside mask_rcnn_x101_32x4d."""

LEFT_OUT = pytest.StashKey[list[str]]()


def choose(names: Sequence[str], shares: int, commit: str) -> list[str]:
    """Those of the tests that run at a commit: one of so many shares, and every family's `test_model`."""
    always = {f"test_model[{model}]" for model in FAMILIES.values()}
    rest = sorted(name for name in names if name not in always)
    share = set(rest[int(commit, 16) % shares :: shares])
    return [name for name in names if name in always | share]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = []


@pytest.hookimpl(trylast=True)  # of what other options have left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shares = int(os.environ.get("PARITY_SHARE", "1"))
    full_size = {item.name: item for item in items if item.get_closest_marker("parity")}
    chosen = list(full_size)
    if os.environ.get("PARITY_LONG", "0") == "0":
        chosen = [name for name in chosen if name not in {f"test_model[{model}]" for model in LONG}]
    if shares > 1:
        git = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
        chosen = choose(chosen, shares, commit)
    left_out = [item for name, item in full_size.items() if name not in chosen]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = sorted(item.name for item in left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # of a process among several: for the one that reports
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if names := config.stash[LEFT_OUT]:
        left_out = f"left out, {len(names)} of full size (PARITY_LONG=1 make parity runs all): {', '.join(names)}"
        terminalreporter.write_line(left_out)
