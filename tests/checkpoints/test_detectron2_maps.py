"""What detectron2's RetinaNet computes from an image, in plain torch from its names; skipped without torch.

BGR colours, strides in the first convolution of a bottleneck, P6 from C5 with a ReLU before P7, anchors by size.
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
from tests.checkpoints.test_detectron2 import BLOCKS, NARROW, retinanet, state_of
from tests.checkpoints.test_torchvision_retinanet import variables_of

torch = pytest.importorskip("torch")

SIDE = 64


def quiet_state() -> dict[str, np.ndarray]:
    """Weights that neither vanish nor grow with the depth; variances are positive."""
    state = {}
    for name, value in state_of(retinanet()).items():
        fan = float(np.prod(value.shape[1:])) if value.ndim > 1 else 1.0
        state[name] = value / np.float32(fan**0.5)
        if name.endswith("running_var") or name.endswith("norm.weight"):
            state[name] = 0.5 + 0.1 * np.abs(value)
        elif value.ndim == 1:
            state[name] = 0.1 * value
    return state


def rendered(state: dict[str, Any], image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits ``[h, w, sizes, ratios, K]`` and deltas of each level."""
    conv2d = torch.nn.functional.conv2d

    def conv(x: Any, name: str, stride: int = 1, norm: bool = False) -> Any:
        weight = state[f"{name}.weight"]
        y = conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
        parts = (
            [state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")] if norm else []
        )
        return torch.nn.functional.batch_norm(y, *parts, eps=1e-5) if norm else y

    x = torch.from_numpy(image[..., ::-1].astype(np.float32)) - torch.tensor([103.53, 116.28, 123.675])
    x = torch.relu(conv(x.permute(2, 0, 1)[None], "backbone.bottom_up.stem.conv1", 2, True))
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    maps = {}
    for stage, blocks in enumerate(BLOCKS, 2):
        for block in range(blocks):
            name, stride = f"backbone.bottom_up.res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            y = torch.relu(conv(x, f"{name}.conv1", stride, True))
            y = conv(torch.relu(conv(y, f"{name}.conv2", 1, True)), f"{name}.conv3", 1, True)
            x = torch.relu(y + (conv(x, f"{name}.shortcut", stride, True) if block == 0 else x))
        maps[stage] = x
    levels, above = {}, None
    for level in (5, 4, 3):
        lateral = conv(maps[level], f"backbone.fpn_lateral{level}")
        above = lateral if above is None else lateral + torch.nn.functional.interpolate(above, scale_factor=2)
        levels[level] = conv(above, f"backbone.fpn_output{level}")
    levels[6] = conv(maps[5], "backbone.top_block.p6", 2)
    levels[7] = conv(torch.relu(levels[6]), "backbone.top_block.p7", 2)
    outputs = []
    for level in sorted(levels):
        found = []
        for tower, last in (("cls_subnet", "cls_score"), ("bbox_subnet", "bbox_pred")):
            y = levels[level]
            for i in (0, 2, 4, 6):
                y = torch.relu(conv(y, f"head.{tower}.{i}"))
            y = conv(y, f"head.{last}")[0]
            found.append(y.reshape(3, 3, -1, *y.shape[1:]).permute(3, 4, 0, 1, 2).numpy())
        outputs.append((found[0], found[1]))
    return outputs


def test_logits_and_deltas_from_an_image() -> None:
    state = quiet_state()
    imported = from_detectron2(state)
    model = override(load_config("configs/retinanet_r50_fpn.py"), [*imported.settings, *NARROW]).model
    variables, _ = merge(variables_of(model), imported.variables)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    batch = single_batch(image, Data(short_side=SIDE, long_side=SIDE))

    def dense(model: OneStage, batch: Batch) -> Any:
        outputs = model.dense(model.features(batch), batch.true_hw, model.num_classes)
        return outputs.logits, outputs.deltas

    found = jax.jit(lambda v, b: model.apply(v, b, method=dense))(variables, batch)
    with torch.no_grad():
        expected = rendered({name: torch.from_numpy(value) for name, value in state.items()}, image)
    for mine, theirs in zip(zip(*found, strict=True), expected, strict=True):
        for values, wanted in zip(mine, theirs, strict=True):
            by_ratio = np.swapaxes(wanted, 2, 3).reshape(-1, wanted.shape[-1])
            scale = np.abs(by_ratio).max()
            assert scale > 0
            np.testing.assert_allclose(values[0], by_ratio, atol=2e-5 * scale)
