"""What detectron2's RetinaNet says of every anchor, in plain torch from its names; skipped without torch.

`test_detectron2_whole` compares the detections; here no anchor is left out.
"""

from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.detectron2 import from_detectron2
from jaxdet.config import load_config, override
from jaxdet.data import Data, single_batch
from jaxdet.models.one_stage import OneStage
from jaxdet.structures import Batch
from tests.checkpoints.test_detectron2 import NARROW, retinanet
from tests.checkpoints.test_torchvision_retinanet import variables_of

torch = pytest.importorskip("torch")

from tests.checkpoints import detectron2_torch as theirs  # noqa: E402  (skipped without torch)
from tests.checkpoints.test_detectron2_whole import loud_state  # noqa: E402

SIDE = 64


def test_logits_and_deltas_from_an_image() -> None:
    state = loud_state(retinanet())
    imported = from_detectron2(state)
    model = override(load_config("configs/retinanet_r50_fpn.py"), [*imported.settings, *NARROW]).model
    variables, _ = merge(variables_of(model), imported.variables)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    batch = single_batch(image, Data(short_side=SIDE, long_side=SIDE))

    def dense(model: OneStage, batch: Batch) -> Any:
        outputs = model.dense(model.features(batch), batch.true_hw, model.num_classes)
        return outputs.places, outputs.logits, outputs.deltas

    places, *found = jax.jit(lambda v, b: model.apply(v, b, method=dense))(variables, batch)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}
        levels = theirs.pyramid(tensors, theirs.prepared(image))
        expected = theirs.retina_maps(tensors, levels)
    for (level, x), mine in zip(levels.items(), places, strict=True):
        wanted = theirs.anchors((x.shape[2], x.shape[3]), 2**level, theirs.RETINA_SIZES[level])
        np.testing.assert_allclose(mine, by_ratio(wanted.numpy()), atol=1e-4)
    for mine, wanted in zip(zip(*found, strict=True), expected, strict=True):
        for values, rows in zip(mine, wanted, strict=True):
            scale = np.abs(rows.numpy()).max()
            assert scale > 0
            np.testing.assert_allclose(values[0], by_ratio(rows.numpy()), atol=2e-5 * scale)


def by_ratio(rows: np.ndarray) -> np.ndarray:
    """Rows ``[h * w * 9, n]`` of which those of a cell are ordered by size and then by ratio, by ratio first."""
    return rows.reshape(-1, 3, 3, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
