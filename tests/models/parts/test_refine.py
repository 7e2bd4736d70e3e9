"""The refining step behind small models: what it must leave as it is, what reaches what, and what it refuses."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.copies import with_copies
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.parts.part import Found, Seen, Setting
from jaxdet.models.parts.refine import Refine
from jaxdet.models.roi.boxes import Candidates
from jaxdet.models.roi.refining import RefineTraining
from jaxdet.models.roi.schedule import Stage
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.ops.suppression import NMS
from jaxdet.structures import Detections, Features, Masks, Samples, Targets
from tests.models.small import (
    CLASSES,
    FIRST,
    Pooled,
    Same,
    initialize,
    make_batch,
    make_mask_branch,
    make_model,
    make_one_stage,
    make_refine,
    make_targets,
)

KEY = jax.random.key(0)
BATCH = make_batch([make_targets(0)])
COPIES = (("masks/refine_box", "heads_0"), ("masks/refine_mask", "masks/heads_0"))
SETTING = Setting(CLASSES, (Stage(sampler=FIRST),), suppression=NMS(score_threshold=0.01, max_detections=12))

Tree = Any


def make(*parts: Any) -> TwoStage:
    return make_model(backbone=Pooled(), neck=Same(), parts=parts)


@cache
def variables_of(linked: bool = True) -> Tree:
    """Those of a model with the step; heads say other things than their copies."""
    return initialize(make(make_refine(linked)), BATCH)


def base_of(variables: Tree) -> Tree:
    """The variables of the same model without the step."""
    params = {**variables["params"], "masks": {"heads_0": variables["params"]["masks"]["heads_0"]}}
    return {**variables, "params": params}


def changed(variables: Tree, place: str, change: Callable[[jax.Array], jax.Array]) -> Tree:
    """Variables with other values below a place."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = "/".join(entry.key for entry in path)
        return change(leaf) if name.startswith(f"params/{place}/") else leaf

    return jax.tree_util.tree_map_with_path(one, variables)


@cache
def predicting(model: TwoStage) -> Callable[[Tree], Detections]:
    return jax.jit(lambda variables: model.apply(variables, BATCH, method="predict"))


def size(tree: Mapping[str, Any]) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_with_nothing_refined_detections_are_those_of_the_base_to_the_bit() -> None:
    """And masks too, if the link adds nothing and the mask head is a copy."""
    variables = variables_of()
    copied, _ = with_copies(variables, base_of(variables), COPIES)
    link = variables["params"]["masks"]["refine_mask"]["head"]["link"]
    copied["params"]["masks"]["refine_mask"]["head"]["link"] = jax.tree.map(jnp.zeros_like, link)
    have = predicting(make(make_refine(boxes="base", alpha=0.0)))(copied)
    want = predicting(make(MaskPrediction((make_mask_branch(),))))(base_of(variables))
    assert want.valid.sum() > 10
    for name in ("boxes", "scores", "labels", "valid"):
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name), err_msg=name)
    # An invalid slot may be that of any candidate.
    np.testing.assert_array_equal(have.index[have.valid], want.index[want.valid])
    np.testing.assert_allclose(have.masks.values[have.valid], want.masks.values[want.valid], atol=1e-6)


# The step alone, on features and candidates of one image.
LEVELS = {level: jax.random.normal(jax.random.key(level), (1, 64 >> level, 64 >> level, 3)) for level in range(2, 6)}
FEATURES = Features(LEVELS, hw=(64, 64), true_hw=jnp.array([[60.0, 56]]))


def make_candidates(number: int, spare: int = 0) -> Candidates:
    """As many candidates, and behind them invalid slots of NaN."""
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 30, (1, number, CLASSES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 25, corner.shape)], -1).astype(np.float32)
    logits = rng.normal(size=(1, number, CLASSES + 1)).astype(np.float32)
    fill = ((0, 0), (0, spare), (0, 0))
    logits = np.pad(logits, fill, constant_values=np.nan)
    boxes = np.pad(boxes, (*fill, (0, 0)), constant_values=np.nan)
    return Candidates(jnp.asarray(logits), jnp.asarray(boxes), jnp.arange(number + spare)[None] < number)


def found_of(candidates: Candidates) -> Found:
    scores = jax.nn.softmax(candidates.logits)[..., :-1]
    return Found(jax.vmap(SETTING.suppression)(candidates.boxes, scores, candidates.valid), candidates=candidates)


@cache
def stepping(step: Refine) -> Callable[[Tree, Candidates], Detections]:
    def run(variables: Tree, candidates: Candidates) -> Detections:
        params = {"params": variables["params"]["masks"]}
        return step.apply(params, FEATURES, found_of(candidates), SETTING).detections

    return jax.jit(run)


def test_invalid_candidates_change_nothing() -> None:
    few, many = (stepping(make_refine())(variables_of(), make_candidates(9, spare)) for spare in (0, 3))
    assert few.valid.sum() > 5
    for have, want in zip(jax.tree.leaves(many), jax.tree.leaves(few), strict=True):
        np.testing.assert_allclose(have[many.valid], want[few.valid], atol=1e-5)


def test_a_guide_of_ones_is_no_guide() -> None:
    variables = changed(variables_of(), "masks/heads_0/head/logits", lambda leaf: 0 * leaf + 50.0)  # sigmoid: 1
    have, want = (stepping(step)(variables, make_candidates(9)) for step in (make_refine(), make_refine(guided=False)))
    np.testing.assert_allclose(have.scores, want.scores, atol=1e-6)
    np.testing.assert_allclose(have.boxes, want.boxes, atol=1e-3)
    # Of zeros nothing is seen.
    blind = changed(variables, "masks/heads_0/head/logits", lambda leaf: 0 * leaf - 200.0)
    assert not np.allclose(stepping(make_refine())(blind, make_candidates(9)).scores, want.scores, atol=1e-3)


def test_deltas_of_zero_leave_the_boxes_that_are_looked_at() -> None:
    variables = changed(variables_of(), "masks/refine_box/head/deltas", jnp.zeros_like)
    candidates = make_candidates(9)
    found = stepping(make_refine())(variables, candidates)
    likeliest = np.asarray(candidates.logits)[0, :, :-1].argmax(-1)
    for box, index in zip(found.boxes[0][found.valid[0]], found.index[0][found.valid[0]], strict=True):
        want = np.minimum(candidates.boxes[0, index, likeliest[index]], [56, 60, 56, 60])
        np.testing.assert_allclose(box, want, atol=1e-4)


def test_of_detections_it_is_the_candidates_whose_boxes_are_looked_at() -> None:
    """Boxes stay in the class that they were found in; logits of their candidates compete in all classes again."""
    variables = changed(variables_of(), "masks/refine_box/head/deltas", jnp.zeros_like)
    candidates = make_candidates(9)
    given = found_of(candidates).detections
    found = stepping(make_refine(input_from="detections", alpha=0.0))(variables, candidates)
    scores = np.asarray(jax.nn.softmax(candidates.logits))[0, :, :-1]
    boxes, valid = np.asarray(given.boxes[0]), np.asarray(given.valid[0])
    assert found.valid.sum() > 5
    for box, score, label, index in zip(
        *(a[0][found.valid[0]] for a in (found.boxes, found.scores, found.labels, found.index)), strict=True
    ):
        np.testing.assert_allclose(score, scores[index, label], rtol=1e-5)
        of_candidate = boxes[valid & (np.asarray(given.index[0]) == index)]
        assert np.abs(np.minimum(of_candidate, [56, 60, 56, 60]) - np.asarray(box)).max(1).min() < 1e-3


def test_a_limit_keeps_the_best_in_their_order() -> None:
    candidates = make_candidates(9, spare=2)
    found = Found(found_of(candidates).detections, candidates=candidates)

    def given(**settings: Any) -> Detections:
        return make_refine(**settings)._given(found)

    every, best = given(), given(limit=4)
    scores = np.where(candidates.valid[0], every.scores[0], -1)
    assert best.index[0].tolist() == sorted(np.argsort(-scores)[:4].tolist())
    np.testing.assert_array_equal(best.boxes[0], every.boxes[0][best.index[0]])
    assert best.valid.all()
    assert given(limit=11).boxes.shape == (1, 11, 4)


def test_alpha_weighs_the_logits() -> None:
    base, refined = jnp.array([[2.0, 4.0]]), jnp.array([[4.0, -2.0]])
    assert make_refine(alpha=1.0).combined(base, refined).tolist() == [[3.0, 1.0]]
    assert make_refine(alpha=3.0).combined(base, refined).tolist() == [[3.5, -0.5]]
    assert make_refine(alpha=0.0).combined(base, refined).tolist() == base.tolist()


BOXES = np.float32([[2, 2, 30, 30], [31, 5, 50, 40], [4, 0, 33, 28], [30, 8, 52, 44], [9, 35, 25, 50], [40, 1, 55, 20]])
SAMPLES = Samples(
    boxes=jnp.asarray(np.concatenate([BOXES, np.full((1, 4), np.nan, np.float32)])[None]),
    gt_index=jnp.array([[0, 1, 0, 1, 0, 0, 0]]),
    labels=jnp.array([[1, 2, 1, 2, CLASSES, CLASSES, CLASSES]]),
    positive=jnp.arange(7)[None] < 4,
    is_truth=jnp.arange(7)[None] < 2,
    valid=jnp.arange(7)[None] < 6,
)
TARGETS = Targets(
    boxes=jnp.asarray(np.concatenate([BOXES[:2], np.full((1, 4), np.nan, np.float32)])[None]),
    labels=jnp.array([[1, 2, 0]]),
    masks=Masks(np.random.default_rng(0).integers(0, 2, (1, 3, 12, 12), np.uint8), jnp.asarray(BOXES[None, :3])),
    crowd=jnp.zeros((1, 3), bool),
    valid=jnp.arange(3)[None] < 2,
)


@cache
def learning(step: Refine) -> Callable[..., Any]:
    """The gradient of the sum of some losses, and all of these, for samples that the stages leave where they are."""

    def total(params: Tree, weights: dict[str, jax.Array], samples: Samples, targets: Targets) -> Any:
        boxes = jnp.repeat(samples.boxes[:, :, None], CLASSES, 2)
        logits = jax.random.normal(KEY, (*samples.valid.shape, CLASSES + 1))
        seen = Seen([samples], boxes=samples, candidates=Candidates(logits, boxes, samples.valid))
        losses, seen = step.apply({"params": params}, FEATURES, seen, targets, SETTING, KEY, method="losses")
        return sum(weights.get(name, 0.0) * value for name, value in losses.items()), (losses, seen.metrics)

    grad = jax.jit(jax.grad(total, has_aux=True))

    def run(terms: Sequence[str], samples: Samples = SAMPLES, targets: Targets = TARGETS) -> Any:
        weights = {name: jnp.float32(name in terms) for name in LOSSES}
        return grad(variables_of(step.refine_mask.linked)["params"]["masks"], weights, samples, targets)

    return run


LOSSES = ("loss_mask", "refine.loss_cls", "refine.loss_bbox", "refine.loss_mask")
ALONE = {"linked": False, "training": RefineTraining(guide_gradient=False)}


@pytest.mark.parametrize("flows", [True, False])
def test_guide_and_link_carry_gradients_to_the_mask_branch(flows: bool) -> None:
    """Boxes have no other way to teach it, and refined masks no other than the link."""
    gradient = learning(make_refine() if flows else make_refine(**ALONE))
    grads, (losses, metrics) = gradient(("refine.loss_cls", "refine.loss_bbox"))
    assert all(losses[name] > 0 for name in LOSSES)
    assert size(grads["refine_box"]) > 0
    assert size(grads["refine_mask"]) == 0
    assert (size(grads["heads_0"]["head"]["conv1"]) > 0) == flows
    grads, _ = gradient(("refine.loss_mask",))
    assert size(grads["refine_mask"]["head"]["conv1"]) > 0
    assert size(grads["refine_box"]) == 0
    assert (size(grads["heads_0"]["head"]["conv1"]) > 0) == flows
    assert metrics["refine.positives"] == 4
    assert 0.5 < metrics["refine.iou_before"] < 1
    assert 0 < metrics["refine.guide_inside"] < 1


def test_without_objects_losses_of_masks_and_boxes_are_zero() -> None:
    nothing = SAMPLES.replace(
        labels=jnp.full((1, 7), CLASSES), positive=jnp.zeros((1, 7), bool), is_truth=jnp.zeros((1, 7), bool)
    )
    targets = TARGETS.replace(valid=jnp.zeros((1, 3), bool), boxes=jnp.full((1, 3, 4), jnp.nan))
    grads, (losses, metrics) = learning(make_refine())(LOSSES, nothing, targets)
    assert {name for name, value in losses.items() if value == 0} == {*LOSSES} - {"refine.loss_cls"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, losses, metrics)))


def test_samples_that_are_all_positive_have_losses() -> None:
    every = SAMPLES.replace(valid=SAMPLES.positive)
    grads, (losses, _) = learning(make_refine())(LOSSES, every)
    assert all(losses[name] > 0 for name in LOSSES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_on_the_same_boxes_with_the_same_heads_the_step_is_the_base_again() -> None:
    training = RefineTraining(train_boxes="proposal", mask_loss_on="proposal", weight=2.0)
    model = make(make_refine(linked=False, guided=False, training=training))
    variables = variables_of(linked=False)
    copied, afresh = with_copies(variables, base_of(variables), COPIES)
    assert afresh == ()
    # With deltas of zero refined masks are those of the samples where they are.
    for place in ("heads_0/head/deltas", "masks/refine_box/head/deltas"):
        copied = changed(copied, place, jnp.zeros_like)
    two = make_batch([make_targets(0), make_targets(1, fill=float("nan"))])
    losses, _ = jax.jit(lambda v: model.apply(v, two, KEY, method="losses"))(copied)
    for name in ("loss_cls", "loss_bbox", "loss_mask"):
        assert losses[name] > 0
        np.testing.assert_allclose(losses[f"refine.{name}"], 2 * losses[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "unused"), [({"boxes": "base"}, "refine.loss_bbox"), ({"alpha": 0.0}, "refine.loss_cls")]
)
def test_what_a_test_does_not_use_has_no_loss(settings: dict[str, Any], unused: str) -> None:
    variables_of()  # made outside of the trace, where they are kept
    _, (losses, _) = jax.eval_shape(lambda: learning(make_refine(**settings))(LOSSES))
    assert set(losses) == {*LOSSES} - {unused}


def test_combinations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"Refine.alpha: expected a number from 0"):
        make_refine(alpha=-1.0)
    with pytest.raises(ValueError, match=r"Refine.limit: of detections all are refined, got 5: set limit=none"):
        make_refine(limit=5, input_from="detections")
    with pytest.raises(ValueError, match=r"Refine.residual: .* set guided=true"):
        make_refine(residual=True, guided=False)

    def run(model: Any, method: str) -> None:
        key = () if method == "predict" else (KEY,)
        jax.eval_shape(lambda: model.init(KEY, BATCH, *key, method=method))

    for method in ("predict", "losses"):
        with pytest.raises(ValueError, match="a one-stage model has none"):
            run(make_one_stage(parts=(make_refine(),)), method)
    with pytest.raises(ValueError, match="has no branch for these: give it heads"):
        run(make(make_refine(heads=())), "predict")
    eight = make_mask_branch(extractor=SingleLevel(size=8, finest=14.0))
    with pytest.raises(ValueError, match=r"features of the first look, \(8, 8\) a box, to crops of \(6, 6\)"):
        run(make(make_refine(heads=(eight,))), "predict")
    nothing = Found(found_of(make_candidates(2)).detections)
    with pytest.raises(ValueError, match="Refine reads what the stages of a two-stage model predict"):
        jax.eval_shape(lambda: make_refine().init(KEY, FEATURES, nothing, SETTING))
