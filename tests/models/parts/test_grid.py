"""Boxes from grids behind a small model: what moves, what stays, what is learnt and from what."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.config import override
from jaxdet.models.parts.grid import GridBoxes
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.parts.part import Found, Seen, Setting
from jaxdet.models.roi.schedule import Stage, make_stages
from jaxdet.ops.grids import grid_boxes
from jaxdet.structures import Detections, Features, Samples, Targets
from tests.models.small import (
    CLASSES,
    FIRST,
    Pooled,
    Same,
    initialize,
    make_batch,
    make_grid,
    make_grid_rcnn,
    make_mask_branch,
    make_model,
    make_one_stage,
    make_targets,
)
from tests.ops.test_grids import slow_targets

KEY = jax.random.key(0)
BATCH = make_batch([make_targets(0), make_targets(1)])
LIGHT = {"backbone": Pooled(), "neck": Same()}
FEATURES = Features({level: jax.random.normal(KEY, (2, 64 >> level, 64 >> level, 3)) for level in (2, 3, 4, 5)})
SETTING = Setting(CLASSES, (Stage(sampler=FIRST),))
JITTERED, STILL = make_grid(), make_grid(jitter=None)


def make_found(fill: float = 0.0) -> Found:
    """Two boxes in the first image, and one in the second; the rest is ``fill``."""
    boxes = np.float32(
        [[[4, 6, 30, 40], [10, 20, 50, 30], [0, 0, 0, 0]], [[20, 8, 44, 60], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    valid = np.array([[True, True, False], [True, False, False]])
    boxes[~valid] = fill
    labels = np.where(valid, np.arange(3), 0)
    detections = Detections(boxes, np.where(valid, 0.5, 0), labels, valid, labels)
    return Found(jax.tree.map(jnp.asarray, detections))


def make_samples(fill: float = 0.0) -> tuple[Samples, Targets]:
    """Three positives in the first image, of two objects; negatives behind them, and a slot that does not count."""
    targets = BATCH.targets
    assert targets is not None
    gt_index = np.zeros((2, 16), np.int32)
    gt_index[0, :3] = 0, 2, 1
    positive = np.arange(16)[None] < np.array([[3], [0]])
    boxes = np.tile(np.float32([5, 5, 25, 45]), (2, 16, 1))
    boxes[0, :3] = targets.boxes[0, gt_index[0, :3]] + np.float32([[1, -2, 3, 1], [0, 2, -1, 2], [-3, 1, 2, 0]])
    valid = np.arange(16) < 15
    boxes[:, ~valid] = fill
    truth = np.zeros_like(positive)
    labels = np.where(positive, targets.labels[[[0], [1]], gt_index], CLASSES)
    samples = Samples(boxes, gt_index, labels, positive, truth, positive | valid)
    return jax.tree.map(jnp.asarray, (samples, targets))


VARIABLES = jax.jit(lambda: STILL.init(KEY, FEATURES, make_found(), SETTING))()


@partial(jax.jit, static_argnums=0)
def losses(part: GridBoxes, samples: Samples, targets: Targets, key: jax.Array = KEY, variables: Any = None) -> Any:
    """Loss and metrics."""
    given = FEATURES, Seen([samples], boxes=samples), targets, SETTING, key
    terms, seen = part.apply(VARIABLES if variables is None else variables, *given, method="losses")
    return terms["loss_grid"], seen.metrics


@jax.jit
def gradients(samples: Samples, targets: Targets) -> Any:
    """Loss with jitter, and its gradient."""
    return jax.value_and_grad(lambda v: losses(JITTERED, samples, targets, KEY, v)[0])(VARIABLES)


@partial(jax.jit, static_argnums=(0, 2))
def apply(part: GridBoxes, variables: Any, method: str, *args: Any) -> Any:
    return part.apply(variables, FEATURES, *args, method=method)


@partial(jax.jit, static_argnums=0)
def detect(part: GridBoxes, variables: Any, features: Features, found: Found) -> Detections:
    return part.apply(variables, features, found, SETTING).detections


def test_boxes_move_to_their_grids_and_nothing_else_changes() -> None:
    loud = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(float(leaf.size))).reshape(leaf.shape), VARIABLES)
    before, after = make_found().detections, detect(STILL, loud, FEATURES, make_found())
    named = jax.jit(lambda: STILL.apply(loud, FEATURES, make_found(), SETTING, {}, method="intermediates"))()
    assert named["grid/crops"].shape == (6, 6, 6, 3)
    logits = named["grid/logits"].reshape(2, 3, 12, 12, 4)
    for image, slot in ((0, 0), (0, 1), (1, 0)):
        wanted = grid_boxes(before.boxes[image, slot][None], logits[image, slot][None])[0]
        np.testing.assert_allclose(after.boxes[image, slot], wanted, rtol=1e-4)
        assert np.abs(after.boxes[image, slot] - before.boxes[image, slot]).max() > 0.5
    same = dataclasses.replace(after, boxes=before.boxes)
    jax.tree.map(np.testing.assert_array_equal, same, before)
    for fill in (7.0, np.nan):
        other = detect(STILL, loud, FEATURES, make_found(fill))
        np.testing.assert_allclose(other.boxes[before.valid], after.boxes[before.valid], rtol=1e-5)
        np.testing.assert_array_equal(other.boxes[~before.valid], make_found(fill).detections.boxes[~before.valid])


def test_clipped_boxes_end_at_the_image() -> None:
    """Points may lie outside of it; the reference leaves such boxes as they are."""
    features = dataclasses.replace(FEATURES, true_hw=jnp.float32([[20, 18], [20, 18]]))
    for clipped in (False, True):
        found = detect(STILL.clone(clipped=clipped), VARIABLES, features, make_found())
        boxes = found.boxes[found.valid]
        assert (np.asarray(boxes) <= [18, 20, 18, 20]).all() == clipped


def test_loss() -> None:
    """Cross entropy of both maps, written out in NumPy from the targets of the loops."""
    samples, targets = make_samples()
    value, metrics = losses(STILL, samples, targets)
    boxes, truth = samples.boxes[0, :3], targets.boxes[0, samples.gt_index[0, :3]]
    wanted = slow_targets(np.asarray(boxes), np.asarray(truth), 2, 12, 1)
    both = apply(STILL, VARIABLES, "_both", jnp.stack([boxes, boxes]), jnp.ones((2, 3), bool))
    total = 0.0
    for maps in both:
        p = 1 / (1 + np.exp(-np.asarray(maps[:3], np.float64)))
        total += -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean()
    np.testing.assert_allclose(value, 15 * total, rtol=1e-5)
    assert wanted.any()
    assert set(metrics) == {"grid.iou_before", "grid.iou_after"}
    assert 0.5 < metrics["grid.iou_before"] < 1


def test_slots_that_do_not_count_have_no_effect_on_value_or_gradient() -> None:
    value, grads = gradients(*make_samples())
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(grads))
    for fill in (7.0, np.nan):
        other, its = gradients(*make_samples(fill))
        assert other == value
        jax.tree.map(np.testing.assert_array_equal, its, grads)


def test_no_positives() -> None:
    samples, targets = make_samples()
    none = dataclasses.replace(samples, positive=jnp.zeros_like(samples.positive))
    value, grads = gradients(none, targets)
    assert value == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_limit_and_order() -> None:
    samples, targets = make_samples()
    ones = [
        dataclasses.replace(samples, positive=jnp.zeros_like(samples.positive).at[0, i].set(True)) for i in range(3)
    ]
    alone = [float(losses(STILL, one, targets)[0]) for one in ones]
    np.testing.assert_allclose(losses(STILL.clone(limit=1), samples, targets)[0], alone[0], rtol=1e-5)
    drawn = STILL.clone(limit=1, order="random")
    values = [float(losses(drawn, samples, targets, jax.random.key(k))[0]) for k in range(9)]
    which = [int(np.argmin(np.abs(np.subtract(alone, value)))) for value in values]
    np.testing.assert_allclose(values, np.take(alone, which), rtol=1e-5)
    assert set(which) == {0, 1, 2}


def test_jitter_is_drawn_by_the_key() -> None:
    samples, targets = make_samples()
    moved, again = (losses(JITTERED, samples, targets, jax.random.key(k))[1]["grid.iou_before"] for k in (1, 2))
    assert moved != again != losses(STILL, samples, targets)[1]["grid.iou_before"]


def test_a_class_head_leaves_boxes_where_they_are() -> None:
    model = make_grid_rcnn(**LIGHT, parts=())
    variables = initialize(model, BATCH)
    terms = jax.eval_shape(lambda: model.apply(variables, BATCH, KEY, method="losses")[0])
    assert set(terms) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls"}

    @jax.jit
    def run() -> Any:
        return tuple(model.apply(variables, BATCH, method=name) for name in ("intermediates", "predict"))

    named, found = run()
    assert "stage0/deltas" not in named
    proposals = np.asarray(named["proposals"].boxes)
    for image in range(2):
        assert found.valid[image].any()
        for box in np.asarray(found.boxes[image])[np.asarray(found.valid[image])]:
            assert (proposals[image] == box).all(1).any()


@pytest.mark.parametrize("unroll", [True, False])
def test_stages_without_deltas(unroll: bool) -> None:
    """Every stage says the class of the same boxes, written out or rolled; the grid learns from the last one."""
    stages = make_stages((0, 0), (0.5, 0.6), (1.0, 0.5), interleaved=False, mask_passes="none", sampler=FIRST)
    model = make_grid_rcnn(**LIGHT, stages=stages, unroll=unroll)
    variables = jax.eval_shape(lambda: model.init(KEY, BATCH, method="predict"))
    terms, metrics = jax.eval_shape(lambda v: model.apply(v, BATCH, KEY, method="losses"), variables)
    assert set(terms) == {"loss_rpn_cls", "loss_rpn_bbox", "s0.loss_cls", "s1.loss_cls", "loss_grid"}
    assert "grid.iou_after" in metrics
    assert jax.eval_shape(lambda v: model.apply(v, BATCH, method="predict"), variables).boxes.shape == (2, 100, 4)


def test_masks_behind_it_are_of_the_boxes_that_it_found() -> None:
    model = make_model(**LIGHT, parts=(make_grid(), MaskPrediction((make_mask_branch(),))))
    variables = initialize(model, BATCH)
    assert {"grid", "masks", "heads_0"} <= set(variables["params"])
    found = jax.jit(lambda v: model.apply(v, BATCH, method="predict"))(variables)
    assert found.valid.any()
    np.testing.assert_array_equal(found.masks.frames[found.valid], found.boxes[found.valid])


def test_a_model_learns() -> None:
    """On one batch its losses fall, and where points are found comes nearer to where they are."""
    model = make_grid_rcnn(**LIGHT)
    variables = initialize(model, BATCH)
    rule = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        def total(params: Any) -> Any:
            terms, metrics = model.apply({**variables, "params": params}, BATCH, key, method="losses")
            return terms["loss_grid"] + terms["loss_cls"], (terms, metrics)

        grads, seen = jax.grad(total, has_aux=True)(params)
        updates, state = rule.update(grads, state)
        return optax.apply_updates(params, updates), state, seen

    params, history = variables["params"], []
    state = rule.init(params)
    for i in range(100):
        params, state, seen = step(params, state, jax.random.key(i))
        history.append(jax.tree.map(float, seen))
    (first, begin), (last, end) = history[0], history[-1]
    assert last["loss_grid"] < 0.7 * first["loss_grid"]
    assert last["loss_cls"] < first["loss_cls"]
    assert end["grid.iou_after"] > begin["grid.iou_after"] + 0.1


def test_a_one_stage_model_refuses_it() -> None:
    model = make_one_stage(parts=(make_grid(),))
    with pytest.raises(ValueError, match="a one-stage model has none: take it out of"):
        jax.eval_shape(lambda: model.init(KEY, BATCH, method="predict"))


def test_settings() -> None:
    model = override(make_grid_rcnn(), ["parts.0.jitter.amplitude=0", "parts.0.limit=7", "parts.0.remat=true"])
    grid = model.parts[0]
    assert (grid.jitter.amplitude, grid.limit, grid.remat) == (0, 7, True)
    for key in ("limit=0", "radius=-1", "weight=-1", "jitter.amplitude=1"):
        with pytest.raises(ValueError, match=key.partition("=")[0].rpartition(".")[2]):
            override(make_grid_rcnn(), [f"parts.0.{key}"])
    samples, targets = make_samples()
    np.testing.assert_allclose(
        losses(STILL.clone(remat=True), samples, targets)[0], losses(STILL, samples, targets)[0], rtol=1e-6
    )
