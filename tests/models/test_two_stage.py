"""The whole model, small: what it returns, what it leaves alone, and what it refuses."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.dense import DenseDetector, rpn
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.roi.schedule import Stage
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import RPNHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.losses import SmoothL1
from jaxdet.ops.suppression import NMS, FastNMS
from jaxdet.structures import Batch, Detections
from tests.models.small import (
    CLASSES,
    FIRST,
    initialize,
    make_batch,
    make_box_branch,
    make_mask_branch,
    make_model,
    make_targets,
)

KEY = jax.random.key(1)
NAMES = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
OBJECTS = [make_targets(0), make_targets(1)]


@cache
def variables() -> Any:
    return initialize(make_model(), make_batch(OBJECTS))


@jax.jit
def _losses(variables: Any, batch: Batch) -> Any:
    def total(params: Any) -> Any:
        terms, metrics = make_model().apply({**variables, "params": params}, batch, KEY, method="losses")
        return sum(terms.values()), (terms, metrics)

    return jax.value_and_grad(total, has_aux=True)(variables["params"])


def losses(batch: Batch) -> tuple[dict[str, float], dict[str, float], Any]:
    """Terms, metrics and gradients."""
    (_, (terms, metrics)), gradients = _losses(variables(), batch)
    return {k: float(v) for k, v in terms.items()}, {k: float(v) for k, v in metrics.items()}, gradients


@partial(jax.jit, static_argnames=("model", "method"))
def _apply(model: TwoStage, variables: Any, *args: Any, method: str) -> Any:
    return model.apply(variables, *args, method=method)


def predict(model: TwoStage, batch: Batch) -> Detections:
    return _apply(model, variables(), batch, method="predict")


def apply_shapes(model: TwoStage, method: str, *args: Any) -> Any:
    """Output shapes of a method of a model with fresh variables."""
    batch = make_batch(OBJECTS)

    def run() -> Any:
        fresh = model.init(jax.random.key(0), batch, method="predict")
        return model.apply(fresh, batch, *args, method=method)

    return jax.eval_shape(run)


def test_detections_are_boxes_of_the_image_best_first() -> None:
    found = predict(make_model(), make_batch(OBJECTS))
    assert found.boxes.shape == (2, 100, 4)
    assert found.masks.values.shape == (2, 100, 12, 12)
    np.testing.assert_array_equal(found.masks.frames, found.boxes)
    assert found.masks.crop is None
    for i in range(2):
        number = int(found.valid[i].sum())
        assert number > 5
        assert found.valid[i, :number].all()
        boxes, scores = np.asarray(found.boxes[i, :number]), np.asarray(found.scores[i, :number])
        assert (np.diff(scores) <= 0).all()
        assert scores.min() > 0.05
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= [56, 60]).all()
        assert np.isin(found.labels[i], range(CLASSES)).all()
        assert ((found.masks.values[i] >= 0) & (found.masks.values[i] <= 1)).all()
    assert found.mask_scores is None, "those of the boxes"


def test_no_detection_is_a_result_too() -> None:
    found = predict(make_model(suppression=NMS(score_threshold=1.0, max_detections=7)), make_batch(OBJECTS))
    assert not found.valid.any()
    assert found.masks.values.shape == (2, 7, 12, 12)
    assert np.isfinite(found.masks.values).all()


def test_other_suppression_fits_too() -> None:
    found = apply_shapes(make_model(suppression=FastNMS(max_detections=7)), "predict")
    assert (found.boxes.shape, found.index.shape, found.masks.values.shape) == ((2, 7, 4), (2, 7), (2, 7, 12, 12))
    with pytest.raises(ValueError, match='set within="class"'):
        apply_shapes(make_model(suppression=NMS(within="level")), "predict")


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = make_model()
    one, other = (predict(model, _swap_second(make_batch(OBJECTS), seed)) for seed in (1, 9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-4), one, other)
    assert not np.allclose(one.boxes[1], other.boxes[1])


def _swap_second(batch: Batch, seed: int) -> Batch:
    image = batch.image.copy()
    image[1] = make_batch(OBJECTS[:1], seed).image[0]
    return batch.replace(image=image)


@pytest.mark.parametrize("kind", ["objects", "crowd", "nothing"])
@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_losses_and_gradients_are_finite_whatever_the_ground_truth(kind: str, fill: float) -> None:
    terms, metrics, gradients = losses(make_batch([make_targets(i, kind, fill) for i in range(2)]))
    assert set(terms) == NAMES
    assert np.isfinite([*terms.values(), *metrics.values()]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert terms["loss_cls"] > 0
    assert terms["loss_rpn_cls"] > 0
    positive = {name: terms[name] > 0 for name in ("loss_bbox", "loss_mask", "loss_rpn_bbox")}
    assert set(positive.values()) == {kind == "objects"}, positive
    assert (metrics["positives"] > 0) == (kind == "objects")


def test_what_padded_slots_hold_has_no_effect() -> None:
    expected = losses(make_batch(OBJECTS))
    for fill in (7.0, np.nan):
        found = losses(make_batch([make_targets(i, fill=fill) for i in range(2)]))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_more_padded_slots_have_no_effect() -> None:
    expected, _, _ = losses(make_batch(OBJECTS))
    found, _, _ = losses(_more_slots())
    assert found == pytest.approx(expected, rel=1e-4)


def _more_slots() -> Batch:
    """Four more slots of garbage behind the others."""
    batch = make_batch(OBJECTS)

    def more(leaf: np.ndarray) -> np.ndarray:
        filler = np.full((2, 4, *leaf.shape[2:]), np.nan if leaf.dtype == np.float32 else 0)
        return np.concatenate([leaf, filler.astype(leaf.dtype)], 1)

    return batch.replace(targets=jax.tree.map(more, batch.targets))


def test_a_batch_weighs_its_images_by_their_samples() -> None:
    """Losses of a batch of two from those of each image beside itself: the numbers of samples are the weights."""
    a, b = make_targets(0), make_targets(1, "nothing")
    mixed = make_batch([a, b])
    twice = [jax.tree.map(lambda leaf, i=i: np.stack([leaf[i]] * 2), mixed) for i in range(2)]
    (first, first_count, _), (second, second_count, _) = map(losses, twice)
    both, count, _ = losses(mixed)
    assert second_count["positives"] == 0
    assert count["positives"] == first_count["positives"] / 2
    # 16 samples each, so the mean; all masks are of the first image
    for name, expected in {
        "loss_cls": (first["loss_cls"] + second["loss_cls"]) / 2,
        "loss_bbox": first["loss_bbox"] / 2,
        "loss_mask": first["loss_mask"],
        # 16 anchors each, and one more where none is positive
        "loss_rpn_cls": (first["loss_rpn_cls"] * 16 + second["loss_rpn_cls"] * 17) / 33,
        "loss_rpn_bbox": first["loss_rpn_bbox"] * 16 / 33,
    }.items():
        assert both[name] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_a_slot_that_fills_the_batch_has_no_effect(fill: float) -> None:
    """All losses are means, so one image alone has those of the same image twice."""
    first = make_targets(0)
    expected = losses(make_batch([first, first]).replace(image=make_batch([first]).image.repeat(2, 0)))
    half_empty = make_batch([first, make_targets(1, fill=fill)]).replace(valid=np.array([True, False]))
    found = losses(half_empty)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    assert found[1]["positives"] > 0


def test_a_batch_without_images_has_no_loss() -> None:
    terms, metrics, gradients = losses(make_batch(OBJECTS).replace(valid=np.zeros(2, bool)))
    assert {*terms.values(), metrics["positives"], metrics["accuracy"]} == {0.0}
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_frozen_parameters_and_only_those_get_no_gradient() -> None:
    model, (_, _, gradients) = make_model(), losses(make_batch(OBJECTS))
    for path, leaf in jax.tree_util.tree_leaves_with_path({"backbone": gradients["backbone"]}):
        names = tuple(entry.key for entry in path)
        assert np.any(leaf) != model.is_frozen(names), names
    assert model.is_frozen(("backbone", "layer1_0", "conv1", "kernel"))
    assert not model.is_frozen(("heads_0", "head", "trunk", "fc1", "kernel"))


def test_bfloat16_is_close_and_keeps_geometry_in_float32() -> None:
    batch = make_batch(OBJECTS)
    exact, low = make_model(), make_model(dtype="bfloat16")

    features, reference = (_apply(model, variables(), batch, method="features") for model in (low, exact))
    for level, feature in features.levels.items():
        assert feature.dtype == jnp.bfloat16
        difference = np.asarray(feature, np.float32) - reference.levels[level]
        assert np.abs(difference).max() < 0.05 * np.abs(reference.levels[level]).max()
    (terms, metrics), found = apply_shapes(low, "losses", KEY), apply_shapes(low, "predict")
    assert {leaf.dtype for leaf in jax.tree.leaves((terms, metrics))} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in (found.boxes, found.scores, found.masks.values)} == {jnp.dtype("float32")}
    parameters = jax.eval_shape(lambda: low.init(KEY, batch, method="predict"))
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}


def test_bfloat16_losses_are_close() -> None:
    low, batch = make_model(dtype="bfloat16"), make_batch(OBJECTS)
    terms, _ = _apply(low, variables(), batch, KEY, method="losses")
    expected, _, _ = losses(make_batch(OBJECTS))
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(expected, rel=0.2, abs=0.02)


def test_a_model_without_masks() -> None:
    model = make_model(parts=())
    terms, _ = apply_shapes(model, "losses", KEY)
    assert set(terms) == NAMES - {"loss_mask"}
    assert apply_shapes(model, "predict").masks is None


@pytest.mark.parametrize("order", [(0, 0, 0), (0, 0, 1), (0, 1, 2)])
def test_several_stages_and_class_agnostic_heads(order: tuple[int, ...]) -> None:
    number = max(order) + 1

    def head() -> BoxHead:
        return BoxHead(FC2(channels=8), class_agnostic=True)

    heads = tuple(make_box_branch(head=head(), box_loss=SmoothL1(1.0)) for _ in range(number))
    mask_heads = (FCN(channels=8, convs=1, class_agnostic=True) for _ in range(number))
    masks = MaskPrediction(tuple(make_mask_branch(head=mask_head) for mask_head in mask_heads))
    model = make_model(heads=heads, stages=tuple(Stage(head=h, sampler=FIRST) for h in order), parts=(masks,))
    terms, _ = apply_shapes(model, "losses", KEY)
    expected = {f"s{t}.{name}" for t in range(3) for name in ("loss_cls", "loss_bbox", "loss_mask")}
    assert set(terms) == expected | {"loss_rpn_cls", "loss_rpn_bbox"}
    assert apply_shapes(model, "predict").masks.values.shape == (2, 100, 12, 12)
    fresh = jax.eval_shape(lambda: model.init(KEY, make_batch(OBJECTS), method="predict"))["params"]
    assert {name for name in fresh if name.startswith("heads")} == {f"heads_{i}" for i in set(order)}
    assert set(fresh["masks"]) == {f"heads_{i}" for i in set(order)}
    assert fresh["heads_0"]["head"]["deltas"]["kernel"].shape == (8, 4)
    assert fresh["masks"]["heads_0"]["head"]["logits"]["kernel"].shape == (1, 1, 8, 1)


@pytest.mark.parametrize(("order", "number"), [((0, 1), 1), ((0,), 2), ((0, 0), 2), ((), 1), ((1,), 2)])
def test_stages_that_do_not_fit_the_heads_are_an_error(order: tuple[int, ...], number: int) -> None:
    stages = tuple(Stage(head=h) for h in order)
    with pytest.raises(ValueError, match="each stage needs a head and each head a stage"):
        apply_shapes(make_model(heads=tuple(make_box_branch() for _ in range(number)), stages=stages), "predict")


def test_the_same_head_twice_is_an_error() -> None:
    head, branch = make_box_branch(), make_mask_branch()
    stages = (Stage(0), Stage(1))
    with pytest.raises(ValueError, match=r"listed twice, as heads\[0\] and heads\[1\]: make one"):
        apply_shapes(make_model(heads=(head, head), stages=stages), "predict")
    other, twice = make_box_branch(), MaskPrediction((branch, branch))
    with pytest.raises(ValueError, match=r"as parts\[0\]\.heads\[0\] and parts\[0\]\.heads\[1\]: make one"):
        apply_shapes(make_model(heads=(head, other), stages=stages, parts=(twice,)), "predict")


def test_a_mask_branch_needs_masks() -> None:
    batch = make_batch([o.replace(masks=o.masks.replace(values=o.masks.values[:, :0, :0])) for o in OBJECTS])
    with pytest.raises(ValueError, match=r"the mask branch needs masks.*data\.masks=true"):
        jax.eval_shape(lambda: make_model().init(jax.random.key(0), batch, KEY, method="losses"))


def test_losses_need_targets() -> None:
    with pytest.raises(ValueError, match="losses need ground truth"):
        make_model().apply(variables(), make_batch(OBJECTS).replace(targets=None), KEY, method="losses")


@pytest.mark.parametrize(
    ("proposer", "message"),
    [
        (rpn(anchors=Anchors(levels=(3, 4, 7))), r"the dense head reads levels \(3, 4, 7\).* lacks \[7\]"),
        (rpn(RPNHead(anchors=3), anchors=Anchors(scales=(4.0, 8.0))), "scores 3 anchors a cell, .* have 6"),
    ],
)
def test_an_rpn_that_does_not_fit_is_an_error(proposer: DenseDetector, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_shapes(make_model(rpn=proposer), "predict")
