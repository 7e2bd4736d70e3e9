"""An exported model finds, without jaxdet, what jaxdet finds; the folder is whole; wrong input is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxdet
from jaxdet.data import Category, Data, single_batch
from jaxdet.experiment import Experiment
from jaxdet.models.detector import Detector
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.trained import Trained
from tests.models.small import CLASSES, Pooled, Same, initialize, make_mask_branch, make_model, make_rdsnet, make_refine

pytest.importorskip("flatbuffers", reason="jax.export writes its files by it: the extra `export`")
# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DATA = Data(short_side=64, long_side=96, workers=0)
CATEGORIES = tuple(Category(3 * i + 2, name) for i, name in enumerate(("cat", "dog", "owl")))
LIMIT = 0.05
SMALL = {"backbone": Pooled(), "neck": Same()}
SCORED = (MaskPrediction((make_mask_branch(),)), MaskScoring(MaskIoUHead(FC2(channels=8), channels=8)))
MODELS: dict[str, Detector] = {
    "mask_scores": make_model(**SMALL, parts=SCORED),
    "refine": make_model(**SMALL, parts=(make_refine(),)),
    "rdsnet": make_rdsnet(),
}
#: Without the packages that jaxdet is made of, each image of a file by each exported model.
FRESH = """
import json, sys
import numpy as np

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("jaxdet", "flax", "cv2", "pycocotools", "optax", "orbax", "PIL"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
images = list(np.load("images.npz").values())
found = {}
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    import load
    del sys.path[0], sys.modules["load"]
    found[folder] = [each.to_coco() for each in load.Model().predict(images, score_threshold=0.05)]
assert not any(name.split(".")[0] in ("jaxdet", "flax", "cv2", "PIL") for name in sys.modules)
print(json.dumps(found))
"""


def trained(model: Detector) -> Trained:
    """A model that has seen nothing, whose heads say something all the same."""
    assert len(CATEGORIES) == CLASSES
    variables = initialize(model, single_batch(np.zeros((60, 90, 3), np.uint8), DATA))
    return Trained(Experiment(model, DATA), variables, CATEGORIES, 5)


def noise(hw: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of all models, by their names."""
    folder = tmp_path_factory.mktemp("exports")
    for name, model in MODELS.items():
        jaxdet.export(trained(model), folder / name, platforms=["cpu"], image=(40, 70), batch_sizes=[2])
    return folder


def test_found_as_by_jaxdet(folder: Path) -> None:
    """In a process without jaxdet: the same detections, boxes to the last bits, masks to the last pixel."""
    images = [noise((48, 100), 0), noise((64, 96), 1), noise((31, 44), 2)]  # smaller, as they are, larger
    np.savez(folder / "images.npz", *images)
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "").replace(str(Path.cwd()), "")}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *MODELS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, model in MODELS.items():
        expected = jaxdet.Predictor(trained(model), score_threshold=LIMIT)(images)
        for ours, theirs in zip(expected, found[name], strict=True):
            assert len(ours) == len(theirs) > 0, name
            for one, other in zip(ours.to_coco(), theirs, strict=True):
                assert one.keys() == other.keys(), name
                assert one["segmentation"] == other["segmentation"], name
                assert one["category_id"] == other["category_id"]
                np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
                for key in {"score", "mask_score"} & one.keys():
                    np.testing.assert_allclose(one[key], other[key], rtol=1e-5)
    assert any("mask_score" in one for one in found["mask_scores"][0])
    assert len({json.dumps(results) for results in found.values()}) == len(MODELS)
