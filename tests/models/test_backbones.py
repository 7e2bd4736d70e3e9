"""Any backbone under any model, in shapes, and that every parameter of one with everything in it learns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.detector import Detector
from jaxdet.nn.backbones.convnext import ConvNeXt
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.necks import FPN, StridedConvs
from tests.models import small
from tests.nn.blocks import random_variables

BATCH = small.make_batch([small.make_targets(0)])
KEY = jax.random.key(0)
ONE_STAGE = {"neck": FPN(channels=8, lowest=3, top=StridedConvs())}
MODELS: dict[str, Callable[..., Detector]] = {
    "Mask R-CNN": small.make_model,
    "RetinaNet": small.make_one_stage,
    "RDSNet": lambda **changes: small.make_rdsnet(**ONE_STAGE | changes),
    "CondInst": lambda **changes: small.make_condinst(**ONE_STAGE | changes),
    "YOLACT": lambda **changes: small.make_yolact(**ONE_STAGE | changes),
}
BACKBONES = {
    "ResNet-101": ResNet(depth=101, width=8),
    "ResNeXt": ResNet(width=8, groups=4, group_width=16),
    "ConvNeXt": ConvNeXt(depths=(1, 1, 2, 1), widths=(4, 8, 12, 16)),
    "GC-Net": ResNet(depth=18, width=8, context=4, norm="sync_batch"),
    "DCNv2 in ResNeXt, frozen norms": ResNet(
        width=8, stages=4, groups=4, group_width=16, deform="v2", deform_groups=2, norm="frozen_batch"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_backbone(name: str) -> None:
    """The same outputs, whatever is below; only parameters of the backbone differ."""
    plain = MODELS[name](backbone=ResNet(depth=18, width=8))
    wanted, _ = shapes_of(plain)
    for kind in BACKBONES if name == "Mask R-CNN" else ("ResNet-101", "ResNeXt", "ConvNeXt"):
        found, params = shapes_of(MODELS[name](backbone=BACKBONES[kind]))
        assert found == wanted, kind
        assert {"layer4_0", "stage4_0"} & params["backbone"].keys()


def shapes_of(model: Detector) -> tuple[Any, Any]:
    """Shapes of detections, and parameters."""
    found, variables = jax.eval_shape(lambda: model.init_with_output(KEY, BATCH, method="predict"))
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found), variables["params"]


def test_every_parameter_that_is_trained_learns() -> None:
    """With context, moved and weighed taps, groups, and norms of the batch: all get a gradient, and no NaN."""
    backbone = ResNet(
        width=8, stages=2, groups=4, group_width=16, deform="v2", deform_groups=2, context=4, norm="sync_batch"
    )
    image = jax.random.normal(KEY, (1, 32, 32, 3))
    variables = random_variables(backbone, image)
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])

    @jax.jit
    def gradients(params: Any) -> Any:
        def total(params: Any) -> jax.Array:
            maps, _ = backbone.apply({**variables, "params": params}, image, mutable=["batch_stats"])
            return jnp.square(maps[3]).sum()

        return jax.grad(total)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        names = tuple(entry.key for entry in path)
        assert np.isfinite(leaf).all(), names
        # A bias before a softmax over all positions adds the same to each.
        nothing = backbone.is_frozen(names) or names[-3:] == ("context", "mask", "bias")
        assert nothing or np.any(leaf), names
