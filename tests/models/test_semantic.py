"""The semantic branch's loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.features import semantic_losses
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.semantic import PlusSemantic, SemanticHead
from jaxdet.structures import Features, Masks, Targets
from tests.models.small import initialize, make_batch, make_box_branch, make_model, make_targets

SHAPE = (2, 3, 4)
LOGITS = jax.random.normal(jax.random.key(0), (*SHAPE, 5))
LABELS = np.random.default_rng(0).choice(np.uint8([0, 1, 2, 3, 4, 255]), SHAPE)


def loss(logits: jax.Array, semantic: Any) -> jax.Array:
    nothing = np.zeros((2, 0))
    targets = Targets(nothing, nothing, Masks(nothing, nothing), nothing, nothing, semantic=semantic)
    return semantic_losses(logits, targets, weight=1.0)["loss_semantic_seg"]


def test_the_mean_is_over_pixels_that_are_known() -> None:
    terms = []
    for place in zip(*np.nonzero(LABELS != 255), strict=True):
        scores = np.exp(np.asarray(LOGITS[place], np.float64))
        terms.append(-np.log(scores[LABELS[place]] / scores.sum()))
    assert 0 < len(terms) < LABELS.size
    np.testing.assert_allclose(loss(LOGITS, LABELS), np.mean(terms), rtol=1e-6)


def test_what_is_not_known_teaches_nothing() -> None:
    gradient = np.asarray(jax.grad(loss)(LOGITS, LABELS))
    assert not gradient[LABELS == 255].any()
    assert np.abs(gradient[LABELS != 255]).min() > 0
    nan = jnp.where((LABELS == 255)[..., None], jnp.nan, LOGITS)
    np.testing.assert_array_equal(loss(nan, LABELS), loss(LOGITS, LABELS))


def test_nothing_known_is_no_loss() -> None:
    value, gradient = jax.value_and_grad(loss)(LOGITS, np.full(SHAPE, 255, np.uint8))
    assert value == 0
    assert not np.asarray(gradient).any()


def test_a_class_that_the_model_lacks_is_not_passed_over() -> None:
    assert np.isnan(loss(LOGITS, np.where(LABELS == 4, 5, LABELS).astype(np.uint8)))


@pytest.mark.parametrize(
    ("semantic", "message"), [(None, r"needs semantic maps.*data\.train\.stuff"), (LABELS[:, :2], r"\(2, 3, 4\)")]
)
def test_targets_that_do_not_fit_are_refused(semantic: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(LOGITS, semantic)


def test_the_whole_model_with_the_branch() -> None:
    """Its loss is there with its weight, and what it sees changes what the heads say."""
    branch = SemanticHead(num_classes=5, levels=(2, 3, 4, 5, 6), channels=8, convs=1)
    head = make_box_branch(extractor=PlusSemantic(SingleLevel(size=7, finest=14.0)))
    model = make_model(heads=(head,), semantic=branch)
    batch = make_batch([make_targets(0)])
    labels = np.zeros((1, 8, 8), np.uint8)
    batch = batch.replace(targets=batch.targets.replace(semantic=labels))
    variables = initialize(model, batch)

    def terms(model: TwoStage, variables: Any) -> Any:
        return jax.jit(lambda v: model.apply(v, batch, jax.random.key(0), method="losses")[0])(variables)

    before = terms(model, variables)
    assert before["loss_semantic_seg"] > 0
    heavier = terms(model.clone(semantic=branch.clone(weight=0.4)), variables)
    np.testing.assert_allclose(heavier["loss_semantic_seg"], 2 * before["loss_semantic_seg"], rtol=1e-6)
    pyramid = jax.eval_shape(lambda v: model.apply(v, batch, method="features"), variables)
    assert (pyramid.semantic.shape, pyramid.semantic_logits.shape) == ((1, 8, 8, 8), (1, 8, 8, 5))
    variables["params"]["semantic"]["embedding"]["bias"] += 1.0
    assert abs(terms(model, variables)["loss_cls"] - before["loss_cls"]) > 1e-4


def test_extractors_that_look_for_a_branch_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="semantic=SemanticHead"):
        PlusSemantic(SingleLevel()).apply({}, Features({}), jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool))
