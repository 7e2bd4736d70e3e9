"""Mask Scoring in a whole, small model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from tests.models.small import initialize, make_batch, make_head, make_model, make_targets

BATCH = make_batch([make_targets(0), make_targets(1, "nothing")])


def make_scoring() -> tuple[TwoStage, Any]:
    model = make_model(mask_iou=MaskIoUHead(FC2(channels=8), channels=8))
    return model, initialize(model, BATCH)


def test_mask_scores_are_box_scores_times_the_rated_iou() -> None:
    model, variables = make_scoring()
    rating = variables["params"]["mask_iou"]["iou"]
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
    for part in (grads["mask_iou"]["conv1"], grads["heads_0"]["mask_head"]["logits"], grads["neck"]["output2"]):
        assert jnp.abs(part["kernel"]).max() > 0
    empty = make_batch([make_targets(0, "nothing"), make_targets(1, "nothing")])
    assert loss(variables["params"], empty) == 0


def test_rating_without_masks_is_refused() -> None:
    model = make_model(
        heads=(make_head(mask_head=None, mask_extractor=None),), mask_iou=MaskIoUHead(FC2(channels=8), channels=8)
    )
    with pytest.raises(ValueError, match="no mask branch"):
        model.init(jax.random.key(0), BATCH, method="predict")
