"""detectron2's models as a whole against a plain torch rendering, from a `.pkl` to detections; skipped without torch.

Weights are random, of the models' shapes with fewer channels, and loud enough that boxes reach beyond the image.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import jaxdet
from jaxdet.checkpoints.names.detectron2 import ONE_BOX, ONE_MASK, RETINANET_SETTINGS, SETTINGS
from jaxdet.config import load_config, override
from jaxdet.data import single_batch
from tests.checkpoints.test_detectron2 import CONSTANTS, NARROW, Shapes, conv, mask_rcnn, retinanet

torch = pytest.importorskip("torch")

from tests.checkpoints import detectron2_torch as theirs  # noqa: E402  (skipped without torch)

STORED = (100, 210)
SIZE = ("data.short_side=119", "data.long_side=250")
PER_LEVEL, LIMIT, MOST = 60, 40, 25
HEAD = ("*.trunk.channels=16", f"*rpn.test.per_level={PER_LEVEL}",
        f"*rpn.test.suppression.max_detections={LIMIT}", f"model.suppression.max_detections={MOST}")  # fmt: skip
DENSE = (f"*dense.test.per_level={PER_LEVEL}", f"*dense.test.suppression.max_detections={MOST}")


@dataclass(frozen=True)
class Case:
    """A model, the settings that its weights need, and those that are the test's own."""

    shapes: Shapes
    config: str
    needed: tuple[str, ...]
    few: tuple[str, ...] = HEAD
    offset: float = 0.0
    #: How far the RPN's deltas spread.  At 1.5 many proposals end outside of the image, and rounding moves those of
    #: large anchors by a thousandth of a pixel.
    moved: float = 0.4


def without_masks(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if "mask_head" not in name}


#: One box for all classes (CLS_AGNOSTIC_BBOX_REG), and one mask (CLS_AGNOSTIC_MASK).
BOX = conv("roi_heads.box_predictor.bbox_pred", 4, 16)
MASK = conv("roi_heads.mask_head.predictor", 1, 8, 1, 1)
CASES = {
    "mask": Case(mask_rcnn(), "mask_rcnn_r50_fpn", SETTINGS),
    "mask_agnostic": Case(mask_rcnn() | BOX | MASK, "mask_rcnn_r50_fpn", (*SETTINGS, ONE_BOX, ONE_MASK)),
    # A model that was trained with anchors in the middle of the cells: a file does not say so.
    "faster_agnostic": Case(
        without_masks(mask_rcnn() | BOX),
        "faster_rcnn_r50_fpn",
        (*SETTINGS, ONE_BOX),
        (*HEAD, "*rpn.places.offset=0.5"),
        0.5,
        1.5,
    ),
    "retinanet": Case(retinanet(), "retinanet_r50_fpn", RETINANET_SETTINGS, DENSE),
}


#: How far the outputs of layers spread, by what is in their names; 1.4 is that of the others.
GAINS = {
    "stem": 0.02,
    "lateral": 0.5,
    "objectness": 2.0,
    "box_predictor": 2.0,
    "mask_head.predictor": 3.0,
    "head.cls_score": 1.0,
    "head.bbox_pred": 0.4,
}


def loud_state(shapes: Shapes, moved: float = 0.4) -> dict[str, np.ndarray]:
    """Random weights under which maps keep their size from layer to layer, and heads say something."""
    rng, state = np.random.default_rng(2), {}
    for name, shape in shapes.items():
        noise = rng.normal(size=shape)
        if name.endswith("running_var"):
            value = 1 + 0.2 * np.abs(noise)
        elif name.endswith("norm.weight"):
            value = (0.3 if "conv3" in name else 1.0) + 0.1 * noise
        elif len(shape) == 1:
            value = 0.1 * noise
        else:
            gains = {**GAINS, "anchor_deltas": moved}
            gain = next((gain for part, gain in gains.items() if part in name), 1.4)
            value = noise * gain / np.prod(shape[1:]) ** 0.5
        state[name] = value.astype(np.float32)
    return state


def image_of_blocks() -> np.ndarray:
    colours = np.random.default_rng(0).integers(0, 256, (10, 21, 3), np.uint8)
    return colours.repeat(10, 0).repeat(10, 1)


def rendered(case: Case, state: dict[str, Any], image: np.ndarray) -> theirs.Rendered:
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    with torch.no_grad():
        if case.config.startswith("retinanet"):
            return theirs.retinanet(tensors, image, STORED, per_level=PER_LEVEL, most=MOST)
        return theirs.rcnn(tensors, image, STORED, offset=case.offset, per_level=PER_LEVEL, limit=LIMIT, most=MOST)


@pytest.mark.parametrize("name", CASES)
def test_detections_are_those_of_detectron2(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On an image that is enlarged, with some pixels of padding to the right and below."""
    case = CASES[name]
    state, image = loud_state(case.shapes, case.moved), image_of_blocks()
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": state | CONSTANTS, "__author__": "Detectron2 Model Zoo"}, 2))
    config = override(load_config(f"configs/{case.config}.py"), [*NARROW, *SIZE, *case.few])

    model = jaxdet.load(file, config=config, overrides=case.needed)
    found = jaxdet.predict(model, image, score_threshold=0.0)[0].to_coco()

    assert not caplog.records
    # The resize is not what is compared: detectron2 has Pillow's.
    batch = single_batch(image, model.experiment.data)
    height, width = np.asarray(batch.true_hw[0], int)
    assert batch.image.shape[1:3] == (128, 256) != (height, width)
    expected = rendered(case, state, np.asarray(batch.image[0, :height, :width]))
    assert 10 < len(expected.scores) == len(found)
    np.testing.assert_array_equal([result["category_id"] - 1 for result in found], expected.labels)
    np.testing.assert_allclose([result["score"] for result in found], expected.scores, atol=1e-4)
    boxes = np.array([result["bbox"] for result in found])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, expected.boxes, atol=2e-3)
    assert len(set(expected.labels)) > 1
    if expected.masks is not None:
        painted = np.stack([coco_mask.decode(result["segmentation"]) for result in found]).astype(bool)
        assert 0.005 < expected.masks.mean() < 0.5
        assert (painted != expected.masks).mean() < 1e-5, (painted != expected.masks).sum((1, 2))
