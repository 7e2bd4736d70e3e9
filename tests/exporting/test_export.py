"""An exported model finds, without jaxdet, what jaxdet finds; the folder is whole; wrong input is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdet
from jaxdet.data import Category, Data, single_batch
from jaxdet.experiment import Experiment
from jaxdet.models.dense import rpn
from jaxdet.models.detector import Detector
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.parts.part import Part
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.dense import RPNHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.anchors import Anchors
from jaxdet.trained import Trained
from tests.models.small import (
    CLASSES,
    Pooled,
    Same,
    make_box_branch,
    make_mask_branch,
    make_model,
    make_rdsnet,
    make_refine,
)

pytest.importorskip("flatbuffers", reason="jax.export writes its files by it: the extra `export`")
# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DATA = Data(short_side=64, long_side=96, workers=0)
CATEGORIES = tuple(Category(3 * i + 2, name) for i, name in enumerate(("cat", "dog", "owl")))
LIMIT = 0.05
CELLS = {"backbone": Pooled(), "neck": Same()}
READS = {"levels": (3,), "finest": 14.0}  # a level of the pyramid: what is compiled is a third of that of three
SCORING = MaskScoring(MaskIoUHead(FC2(channels=8), channels=8))
RPN = rpn(RPNHead(channels=8), anchors=Anchors(levels=(3,), scales=(4.0,)), train=(40, 30), test=(40, 20))


def box() -> BoxBranch:
    """A new one each time: who lists the same twice shares its weights, which is refused."""
    return make_box_branch(extractor=SingleLevel(size=3, **READS))


def mask(linked: bool = False) -> MaskBranch:
    head = FCN(channels=8, convs=1, linked=linked)
    return make_mask_branch(extractor=SingleLevel(size=6, **READS), head=head)


def two_stage(masks: Part) -> TwoStage:
    return make_model(**CELLS, rpn=RPN, heads=(box(),), parts=(masks, SCORING))


MODELS: dict[str, Detector] = {
    "scored": two_stage(MaskPrediction((mask(),))),
    "refined": two_stage(make_refine(heads=(mask(),), refine_box=box(), refine_mask=mask(linked=True))),
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
    """A model that has seen nothing, whose heads say something all the same: compiling its ``init`` takes seconds."""
    assert len(CATEGORIES) == CLASSES
    batch = single_batch(np.zeros((60, 90, 3), np.uint8), DATA)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, method="predict"))
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        inputs = int(np.prod(leaf.shape[:-1])) or 1
        loud = 0.1 if "deltas" in jax.tree_util.keystr(path) else 1.5  # louder boxes lie outside of the image
        return rng.normal(0, loud / inputs**0.5, leaf.shape).astype(np.float32)

    return Trained(Experiment(model, DATA), jax.tree_util.tree_map_with_path(drawn, shapes), CATEGORIES, 5)


def noise(hw: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


@pytest.mark.parametrize(
    "names", [("rdsnet",), pytest.param(("scored", "refined"), marks=pytest.mark.parity)], ids="-".join
)
def test_found_as_by_jaxdet(names: tuple[str, ...], tmp_path: Path) -> None:
    """In a process without jaxdet: the same detections, boxes to the last bits, masks to the last pixel.

    What is marked is slow: ``python -m pytest tests/exporting -m parity``.
    """
    images = [noise((48, 100), 0), noise((64, 96), 1), noise((31, 44), 2)]  # smaller, as they are, larger
    np.savez(tmp_path / "images.npz", *images)
    models = {name: trained(MODELS[name]) for name in names}
    for name, model in models.items():
        jaxdet.export(model, tmp_path / name, platforms=["cpu"], image=(40, 70), batch_sizes=[2])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *names], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, model in models.items():
        expected = jaxdet.Predictor(model, score_threshold=LIMIT)(images)
        for ours, theirs in zip(expected, found[name], strict=True):
            assert len(ours) == len(theirs) > 0, name
            for one, other in zip(ours.to_coco(), theirs, strict=True):
                assert one.keys() == other.keys(), name
                assert one["segmentation"] == other["segmentation"], name
                assert one["category_id"] == other["category_id"], name
                np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
                for key in {"score", "mask_score"} & one.keys():
                    np.testing.assert_allclose(one[key], other[key], rtol=1e-5)
        painted = [mask.sum() for each in expected for mask in each.masks]
        assert len(set(painted)) > 3, name
        assert any("mask_score" in one for one in found[name][0]) == (name != "rdsnet")
