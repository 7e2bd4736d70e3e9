"""Small data sets to test with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import CocoFolder, Data, Source, open_source, write_scenes

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of 13 training and 5 validation scenes, landscape and portrait."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=13, val=5, size=96, seed=3, aspects=(1.5, 0.75))
    return folder


@pytest.fixture(scope="session")
def scenes(scenes_folder: Path) -> Source:
    """Its training split."""
    return open_source(CocoFolder(str(scenes_folder / "images"), str(scenes_folder / "instances_train.json")))


@pytest.fixture
def small() -> Data:
    """Settings for small images."""
    return Data(short_side=64, long_side=96, batch_size=4, max_boxes=8, mask_size=28, workers=0)


class CocoFactory:
    """Writes hand-made COCO folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.annotations = str(folder / "instances.json")
        (folder / "images").mkdir()

    def image(self, name: str = "a.png", hw: tuple[int, int] = (20, 30)) -> dict[str, Any]:
        pixels = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / "images" / name)
        return {"id": 7, "file_name": name, "height": hw[0], "width": hw[1]}

    def write(self, data: dict[str, Any] | str) -> CocoFolder:
        Path(self.annotations).write_text(data if isinstance(data, str) else json.dumps(data))
        return CocoFolder(str(self.folder / "images"), self.annotations)


@pytest.fixture
def coco(tmp_path: Path) -> CocoFactory:
    """A writer of hand-made COCO folders."""
    return CocoFactory(tmp_path)


@pytest.fixture
def one_box(coco: CocoFactory) -> dict[str, Any]:
    """The json of one image with one square, to be spoilt."""
    return {
        "images": [coco.image()],
        "categories": [{"id": 90, "name": "b"}, {"id": 3, "name": "a"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 90,
                "bbox": [2, 3, 10, 8],
                "area": 80,
                "iscrowd": 0,
                "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
            }
        ],
    }
