"""Long files first, so that when tests run in two processes neither is left with one of them at the end."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONGEST = (
    "training/test_devices.py",
    "models/roi/test_scan.py",
    "training/test_compiled_step.py",
    "models/test_two_stage.py",
    "nn/test_groie.py",
    "training/test_run.py",
    "test_your_code.py",
    "training/test_endurance.py",
    "models/parts/test_instances.py",
    "models/parts/test_masks.py",
    "ops/test_roi_align.py",
    "tools/test_zoo.py",
    "models/test_remat.py",
    "test_prediction.py",
)
"""Those that take half a minute and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {HERE / file: i for i, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))
