"""A whole one-stage model, small: what it returns, what it leaves alone, and what it refuses."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.detector import Detector
from jaxdet.models.one_stage import OneStage
from jaxdet.nn.heads.dense import RetinaHead
from jaxdet.ops.anchors import Anchors
from jaxdet.structures import Batch, Detections
from tests.models.small import CLASSES, Pooled, Same, initialize, make_batch, make_dense, make_one_stage, make_targets

KEY = jax.random.key(1)
OBJECTS = [make_targets(0), make_targets(1)]


def make_model(**changes: Any) -> OneStage:
    """Its head is one convolution, which sees of a larger canvas what it sees of the border of a smaller: zeros."""
    dense = make_dense(head=RetinaHead(anchors=3, channels=8, convs=0))
    return make_one_stage(**{"backbone": Pooled(), "neck": Same(), "dense": dense} | changes)


@cache
def variables() -> Any:
    return initialize(make_model(), make_batch(OBJECTS))


@jax.jit
def _losses(variables: Any, batch: Batch) -> Any:
    def total(params: Any) -> Any:
        terms, metrics = make_model().apply({"params": params}, batch, KEY, method="losses")
        return sum(terms.values()), (terms, metrics)

    return jax.value_and_grad(total, has_aux=True)(variables["params"])


def losses(batch: Batch) -> tuple[dict[str, float], Any]:
    """Terms and gradients."""
    (_, (terms, metrics)), gradients = _losses(variables(), batch)
    assert metrics == {}
    return {name: float(value) for name, value in terms.items()}, gradients


@partial(jax.jit, static_argnames=("method",))
def run(variables: Any, batch: Batch, method: str = "predict") -> Any:
    return make_model().apply(variables, batch, method=method)


def predict(batch: Batch) -> Detections:
    return run(variables(), batch)


def test_it_is_a_detector() -> None:
    assert isinstance(make_model(), Detector)


def test_detections_are_boxes_of_the_image_best_first() -> None:
    found = predict(make_batch(OBJECTS))
    assert found.boxes.shape == (2, 20, 4)
    assert found.masks is found.mask_scores is None
    for i in range(2):
        number = int(found.valid[i].sum())
        assert number > 5
        assert found.valid[i, :number].all()
        boxes, scores = np.asarray(found.boxes[i, :number]), np.asarray(found.scores[i, :number])
        assert (np.diff(scores) <= 0).all()
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= [56, 60]).all()
        assert np.isin(found.labels[i], range(CLASSES)).all()


@pytest.mark.parametrize("kind", ["objects", "crowd", "nothing"])
@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_losses_and_gradients_are_finite_whatever_the_ground_truth(kind: str, fill: float) -> None:
    terms, gradients = losses(make_batch([make_targets(i, kind, fill) for i in range(2)]))
    assert set(terms) == {"loss_cls", "loss_bbox"}
    assert np.isfinite([*terms.values()]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert terms["loss_cls"] > 0
    assert (terms["loss_bbox"] > 0) == (kind == "objects")


def test_what_padded_slots_hold_and_how_many_they_are_has_no_effect() -> None:
    expected = losses(make_batch(OBJECTS))
    for fill, slots in ((7.0, 5), (np.nan, 5)):
        found = losses(make_batch([make_targets(i, fill=fill, slots=slots) for i in range(2)]))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)

    def more(leaf: np.ndarray) -> np.ndarray:
        filler = np.full((2, 4, *leaf.shape[2:]), np.nan if leaf.dtype == np.float32 else 0)
        return np.concatenate([leaf, filler.astype(leaf.dtype)], 1)

    batch = make_batch(OBJECTS)
    found, _ = losses(batch.replace(targets=jax.tree.map(more, batch.targets)))
    assert found == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_a_slot_that_fills_the_batch_has_no_effect(fill: float) -> None:
    """Losses are divided by positives, so one image alone has those of the same image twice."""
    first = make_targets(0)
    expected = losses(make_batch([first, first]).replace(image=make_batch([first]).image.repeat(2, 0)))
    half_empty = make_batch([first, make_targets(1, fill=fill)]).replace(valid=np.array([True, False]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), losses(half_empty), expected)


def test_a_batch_without_images_has_no_loss() -> None:
    terms, gradients = losses(make_batch(OBJECTS).replace(valid=np.zeros(2, bool)))
    assert set(terms.values()) == {0.0}
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_a_larger_canvas_changes_nothing() -> None:
    small, large = make_batch(OBJECTS), make_batch(OBJECTS, canvas=(96, 128))
    assert losses(large)[0] == pytest.approx(losses(small)[0], rel=1e-4)
    found, expected = (predict(batch).replace(index=None) for batch in (large, small))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    def with_second(seed: int) -> Batch:
        batch = make_batch(OBJECTS)
        return batch.replace(image=np.stack([batch.image[0], make_batch(OBJECTS[:1], seed).image[0]]))

    one, other = predict(with_second(1)), predict(with_second(9))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), one, other)
    assert not np.allclose(one.boxes[1], other.boxes[1])


def test_intermediates_are_what_detections_are_made_of() -> None:
    batch = make_batch(OBJECTS)
    named, found = run(variables(), batch, method="intermediates"), predict(batch)
    levels = {3: 8, 4: 4, 5: 2}
    shapes = {
        f"{part}/{level}": (2, 64 >> level, 64 >> level, 3) for part in ("backbone", "pyramid") for level in range(2, 7)
    }
    shapes |= {f"dense/{level}/logits": (2, 3 * side * side, CLASSES) for level, side in levels.items()}
    shapes |= {f"dense/{level}/deltas": (2, 3 * side * side, 4) for level, side in levels.items()}
    assert {name: leaf.shape for name, leaf in named.items()} == shapes
    logits = np.concatenate([named[f"dense/{level}/logits"] for level in levels], 1)
    deltas = np.concatenate([named[f"dense/{level}/deltas"] for level in levels], 1)
    places = np.concatenate([make_dense().places.grid(level, side, side) for level, side in levels.items()])
    for i in range(2):
        rows, labels = (np.asarray(a[i])[np.asarray(found.valid[i])] for a in (found.index, found.labels))
        np.testing.assert_allclose(found.scores[i, : len(rows)], 1 / (1 + np.exp(-logits[i, rows, labels])), rtol=1e-5)
        boxes = make_dense().coder.decode(jnp.asarray(places[rows]), jnp.asarray(deltas[i, rows]))
        np.testing.assert_allclose(found.boxes[i, : len(rows)], np.clip(boxes, 0, [56, 60, 56, 60]), atol=1e-3)


def test_bfloat16_keeps_geometry_in_float32() -> None:
    low, batch = make_model(dtype="bfloat16"), make_batch(OBJECTS)
    fresh = jax.eval_shape(lambda: low.init(KEY, batch, method="predict"))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    features = jax.eval_shape(lambda v: low.apply(v, batch, method="features"), fresh)
    assert {leaf.dtype for leaf in jax.tree.leaves(features.levels)} == {jnp.dtype("bfloat16")}
    terms, _ = jax.eval_shape(lambda v: low.apply(v, batch, KEY, method="losses"), fresh)
    found = jax.eval_shape(lambda v: low.apply(v, batch, method="predict"), fresh)
    assert {leaf.dtype for leaf in (*terms.values(), found.boxes, found.scores)} == {jnp.dtype("float32")}


def test_a_real_backbone_and_neck_in_shapes() -> None:
    """RetinaNet as it is: parameters by their names, the same whatever runs first, and the frozen stem."""
    model, batch = make_one_stage(), make_batch(OBJECTS)
    fresh = jax.eval_shape(lambda: model.init(KEY, batch, method="predict"))
    assert set(fresh["params"]) == {"backbone", "neck", "dense"}
    assert set(fresh["params"]["dense"]) == {"head"}
    trained = jax.eval_shape(lambda: model.init(KEY, batch, KEY, method="losses"))
    assert jax.tree.structure(fresh) == jax.tree.structure(trained)
    assert model.is_frozen(("backbone", "layer1_0", "conv1", "kernel"))
    assert not model.is_frozen(("dense", "head", "logits", "kernel"))


def test_losses_need_targets() -> None:
    with pytest.raises(ValueError, match="losses need ground truth"):
        make_model().apply(variables(), make_batch(OBJECTS).replace(targets=None), KEY, method="losses")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"places": Anchors(levels=(3, 9))},
            r"the dense head reads levels \(3, 9\).* lacks \[9\]",
        ),
        ({"head": RetinaHead(anchors=9, channels=8, convs=1)}, "scores 9 anchors a cell, .* have 3"),
    ],
)
def test_a_head_that_does_not_fit_is_an_error(changes: dict[str, Any], message: str) -> None:
    model = make_model(dense=make_dense(**changes))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(KEY, make_batch(OBJECTS), method="predict"))


class Shared(nn.Module):
    """A part that looks through the layer of another."""

    place = "shared"
    layer: nn.Module


def test_a_layer_in_two_parts_is_an_error() -> None:
    layer = nn.Dense(2)
    with pytest.raises(ValueError, match=r"listed twice, as parts\[0\].layer and parts\[1\].layer"):
        jax.eval_shape(
            lambda: make_model(parts=(Shared(layer), Shared(layer))).init(KEY, make_batch(OBJECTS), method="predict")
        )
