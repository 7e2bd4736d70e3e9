"""Limits of a call are those settings of a model: the same numbers, and one program for all of them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.models.limits import Limited, Limits, limits_of, suppression_of, with_limits
from jaxdet.ops.suppression import NMS, FastNMS
from jaxdet.structures import Detections
from tests.models.small import initialize, make_batch, make_model, make_targets, make_yolact


@pytest.mark.parametrize("suppression", [NMS(0.05, 0.5, 12), FastNMS(0.05, 0.5, 30, 12)])
def test_limits_are_settings(suppression: Any) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (30, 1, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (30, 1, 2))], -1).astype(np.float32)
    given = jax.device_put((boxes, rng.uniform(0, 1, (30, 3)).astype(np.float32), np.ones(30, bool)))
    run = jax.jit(lambda limits: Limited(suppression, limits)(*given))
    seen = set()
    for threshold, number in ((0.2, 12), (0.9, 4)):
        found = run(Limits(np.float32(threshold), np.int32(number)))
        other = dataclasses.replace(suppression, iou_threshold=threshold, max_detections=number)
        assert found.valid.shape == (12,)
        assert not found.valid[number:].any()
        same(first(found, number), jax.jit(other)(*given))
        seen.add(tuple(np.asarray(found.index)))
    assert len(seen) == 2
    assert run._cache_size() == 1


def test_parts_behind_suppression_follow() -> None:
    """Boxes, classes, scores and masks are, bit for bit, those of a model that was made with these settings."""
    model, batch = make_yolact(), make_batch([make_targets(0)])
    variables = initialize(model, batch)
    run = jax.jit(lambda limits: with_limits(model, limits).apply(variables, batch, method="predict"))
    plain = one_image(jax.jit(lambda: model.apply(variables, batch, method="predict"))())
    same(one_image(run(limits_of(model, suppression_of(model).iou_threshold))), plain)  # type: ignore[attr-defined]
    found = one_image(run(limits_of(model, 0.3, 3)))
    changed = dataclasses.replace(model.dense.test.suppression, iou_threshold=0.3, max_detections=3)  # type: ignore[type-var]
    other = model.clone(dense=model.dense.clone(test=dataclasses.replace(model.dense.test, suppression=changed)))
    expected = one_image(jax.jit(lambda: other.apply(variables, batch, method="predict"))())
    assert expected.valid.all()
    assert plain.valid.sum() > 3
    same(first(found, 3), expected)
    assert not found.valid[3:].any()
    assert run._cache_size() == 1


def test_parts_that_suppress_anew_have_them_too() -> None:
    model, limits = make_model(), Limits(np.float32(0.3), np.int32(3))
    assert with_limits(model, limits).suppression == Limited(model.suppression, limits)
    assert with_limits(model, limits)._setting(()).suppression == Limited(model.suppression, limits)
    assert with_limits(model, limits).rpn.test == model.rpn.test


def first(found: Detections, number: int) -> Detections:
    return jax.tree.map(lambda leaf: leaf[:number], found)


def one_image(found: Detections) -> Detections:
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), found)


def same(found: Detections, expected: Detections) -> None:
    valid = np.asarray(expected.valid)
    np.testing.assert_array_equal(found.valid, valid)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one)[valid], np.asarray(other)[valid])


def test_limits_that_no_model_takes() -> None:
    model, one_stage = make_model(), make_yolact()
    assert limits_of(model) is None
    assert limits_of(object()) is None
    for threshold in (1.5, float("nan"), "0.5", True):
        with pytest.raises(ValueError, match="NMS threshold: expected an IoU from 0 to 1"):
            limits_of(model, threshold)  # type: ignore[arg-type]
    for number in (0, 2.5, True):
        with pytest.raises(ValueError, match="whole number from 1 to 100"):
            limits_of(model, None, number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at most the 100 .*, got 101; set model\.suppression\.max_detections=101"):
        limits_of(model, None, 101)
    with pytest.raises(ValueError, match=r"model\.dense\.test\.suppression\.max_detections=21"):
        limits_of(one_stage, None, 21)
    with pytest.raises(ValueError, match="object does not: give it a class attribute suppression_key"):
        limits_of(object(), 0.5)
