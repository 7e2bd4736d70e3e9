"""Masks and their scores behind a whole, small model."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
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
