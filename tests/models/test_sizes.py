"""Parameter counts of the full models: all, and those that are trained (the stem and first stage are frozen)."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from jaxdet.models.two_stage import TwoStage
from jaxdet.structures import Batch

BATCH = Batch(
    image=np.zeros((1, 64, 64, 3), np.uint8),
    true_hw=np.full((1, 2), 64, np.float32),
    scale=np.ones((1, 2), np.float32),
    original_hw=np.full((1, 2), 64, np.int32),
    index=np.zeros(1, np.int32),
    valid=np.ones(1, bool),
)


def model_of(config: str) -> TwoStage:
    return importlib.import_module(f"jaxdet.configs.{config}").get_config().model


def deeper(model: TwoStage, depth: int) -> TwoStage:
    return dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, depth=depth))


@pytest.mark.parametrize(
    ("config", "depth", "count", "trained"),
    [
        ("mask_rcnn_r50_fpn", 50, 44_396_336, 44_170_992),
        ("mask_rcnn_r50_fpn", 101, 63_388_464, 63_163_120),
        ("faster_rcnn_r50_fpn", 50, 41_753_056, 41_527_712),
    ],
)
def test_parameters_are_as_many_as_the_references(config: str, depth: int, count: int, trained: int) -> None:
    model = deeper(model_of(config), depth)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, method="predict"))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sum(leaf.size for _, leaf in leaves) == count
    assert sum(leaf.size for path, leaf in leaves if not model.is_frozen(tuple(e.key for e in path))) == trained
