"""The semantic branch's loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.semantic import semantic_losses
from jaxdet.structures import Targets

SHAPE = (2, 3, 4)
LOGITS = jax.random.normal(jax.random.key(0), (*SHAPE, 5))
LABELS = np.random.default_rng(0).choice(np.uint8([0, 1, 2, 3, 4, 255]), SHAPE)


def loss(logits: jax.Array, semantic: Any) -> jax.Array:
    nothing = np.zeros((2, 0))
    return semantic_losses(logits, Targets(*[nothing] * 6, semantic=semantic))["loss_semantic_seg"]


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
