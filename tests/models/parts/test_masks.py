"""Masks and their scores behind a whole, small model."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.parts.part import Found, Setting
from jaxdet.models.roi.schedule import Stage
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.structures import Detections, Features
from tests.models.small import initialize, make_batch, make_mask_branch, make_model, make_one_stage, make_targets

BATCH = make_batch([make_targets(0), make_targets(1, "nothing")])


def make_parts() -> tuple[MaskPrediction, MaskScoring]:
    return MaskPrediction((make_mask_branch(),)), MaskScoring(MaskIoUHead(FC2(channels=8), channels=8))


@cache
def make_scoring() -> tuple[TwoStage, Any]:
    model = make_model(parts=make_parts())
    return model, initialize(model, BATCH)


def test_mask_scores_are_box_scores_times_the_rated_iou() -> None:
    model, variables = make_scoring()
    variables = jax.tree.map(lambda leaf: leaf, variables)
    rating = variables["params"]["mask_scores"]["head"]["iou"]
    rating["kernel"], rating["bias"] = 0 * rating["kernel"], jnp.array([0.5, 0.25, 2.0])
    found = jax.jit(lambda v: model.apply(v, BATCH, method="predict"))(variables)
    assert set(np.unique(found.labels[found.valid])) == {0, 1, 2}
    np.testing.assert_allclose(found.mask_scores, found.scores * rating["bias"][found.labels], rtol=1e-5)


def test_the_loss_reaches_the_mask_head_and_nothing_counts_without_objects() -> None:
    model, variables = make_scoring()

    def loss(params: Any, batch: Any) -> jax.Array:
        terms, _ = model.apply({**variables, "params": params}, batch, jax.random.key(0), method="losses")
        return terms["loss_mask_iou"]

    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"], BATCH)
    assert value > 0
    masks = grads["masks"]["heads_0"]["head"]["logits"]
    for part in (grads["mask_scores"]["head"]["conv1"], masks, grads["neck"]["output2"]):
        assert jnp.abs(part["kernel"]).max() > 0
    empty = make_batch([make_targets(0, "nothing"), make_targets(1, "nothing")])
    assert loss(variables["params"], empty) == 0


@pytest.mark.parametrize("order", [(), (1, 0)], ids=["none", "later"])
@pytest.mark.parametrize("method", ["predict", "losses"])
def test_rating_without_masks_is_refused(order: tuple[int, ...], method: str) -> None:
    """Without a branch that draws them, and before it."""
    masks, scores = make_parts()
    model = make_model(parts=(scores, masks) if order else (scores,))
    key = () if method == "predict" else (jax.random.key(1),)
    with pytest.raises(ValueError, match="put MaskPrediction before it among the parts"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, *key, method=method))


@pytest.mark.parametrize("method", ["predict", "losses"])
def test_masks_behind_a_one_stage_model_are_refused(method: str) -> None:
    key = () if method == "predict" else (jax.random.key(1),)
    model = make_one_stage(parts=make_parts()[:1])
    with pytest.raises(ValueError, match="a one-stage model has none"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, *key, method=method))


def test_intermediates_of_branches_that_are_not_linked() -> None:
    """Each looks at its own crops, as at test; the mean of what they say is the detections' mask."""
    rng = np.random.default_rng(0)
    features = Features({i: rng.normal(size=(1, 64 >> i, 64 >> i, 4)).astype(np.float32) for i in (2, 3)})
    branches = [
        make_mask_branch(extractor=GRoIE(size=6, pre=ConvReLU(1), levels=(2, 3)), head=FCN(channels=4, convs=1))
        for _ in range(2)
    ]
    part, setting = MaskPrediction(tuple(branches)), Setting(3, (Stage(0), Stage(1)))
    boxes, labels = jnp.asarray([[[4.0, 4, 40, 40], [10, 8, 30, 60]]]), jnp.asarray([[0, 2]])
    found = Found(Detections(boxes, jnp.ones((1, 2)), labels, labels >= 0, labels))
    shapes = jax.eval_shape(lambda: part.init(jax.random.key(0), features, found, setting))
    weights = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    masks = part.apply(weights, features, found, setting).detections.masks
    named = part.apply(weights, features, found, setting, {}, method="intermediates")
    said = [named[f"masks/stage{t}/logits"][jnp.arange(2), :, :, labels[0]] for t in (0, 1)]
    assert np.abs(said[0] - said[1]).max() > 0.1
    np.testing.assert_allclose(masks.values[0], jax.nn.sigmoid(jnp.stack(said)).mean(0), rtol=1e-4, atol=1e-5)
