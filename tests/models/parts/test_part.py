"""A part made up for the purpose works behind both kinds of models."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import from_data, to_data
from jaxdet.models.features import Losses
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.parts.part import Found, Seen, Setting, with_places
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.structures import Features, Targets
from tests.models.small import (
    CLASSES,
    Pooled,
    Same,
    initialize,
    make_batch,
    make_mask_branch,
    make_model,
    make_one_stage,
    make_targets,
)

KEY = jax.random.key(1)
BATCH = make_batch([make_targets(0), make_targets(1)])


class Calibrate(nn.Module):
    """Multiplies scores by a learned factor, and leaves out what then is below ``least``."""

    place: ClassVar[str] = "calibrate"

    least: float = 0.0
    start: float = 0.5

    def setup(self) -> None:
        self.factor = self.param("factor", nn.initializers.constant(self.start), ())

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        boxes = found.detections
        scores = self.factor * boxes.scores
        valid = boxes.valid & (scores > self.least)
        return dataclasses.replace(found, detections=boxes.replace(scores=scores, valid=valid))

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        wanted = targets.valid.sum() / setting.num_classes
        return {"loss_calibrate": (self.factor - wanted) ** 2 + 0.0 * len(seen.samples)}, seen

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        return {"calibrate/factor": self.factor, "calibrate/before": jnp.zeros(sum("mask" in name for name in before))}


MODELS = {"one": make_one_stage, "two": make_model}


def make(kind: str, *parts: nn.Module) -> Any:
    return MODELS[kind](backbone=Pooled(), neck=Same(), parts=parts)


def apply(model: Any, variables: Any, method: str, *args: Any) -> Any:
    return jax.jit(lambda v, batch, *args: model.apply(v, batch, *args, method=method))(variables, BATCH, *args)


@pytest.mark.parametrize("kind", MODELS)
def test_a_part_says_more_about_detections_and_trains(kind: str) -> None:
    model, plain = make(kind, Calibrate()), make(kind)
    variables = initialize(model, BATCH)
    params = variables["params"]
    assert set(params["calibrate"]) == {"factor"}
    without = {"params": {name: leaf for name, leaf in params.items() if name != "calibrate"}}
    found, expected = apply(model, variables, "predict"), apply(plain, without, "predict")
    assert int(expected.valid.sum()) > 5
    np.testing.assert_allclose(found.scores, params["calibrate"]["factor"] * expected.scores, rtol=1e-5)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.index, expected.index)

    def total(params: Any) -> Any:
        terms, _ = model.apply({"params": params}, BATCH, KEY, method="losses")
        return sum(terms.values()), terms

    (_, terms), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    factor = params["calibrate"]["factor"]
    np.testing.assert_allclose(terms["loss_calibrate"], (factor - 2) ** 2, rtol=1e-5)
    np.testing.assert_allclose(gradients["calibrate"]["factor"], 2 * (factor - 2), rtol=1e-5)


def test_a_part_may_leave_out_detections() -> None:
    model = make("one", Calibrate(least=0.006))
    variables = initialize(model, BATCH)
    found = apply(model, variables, "predict")
    assert 0 < int(found.valid.sum()) < found.valid.size
    np.testing.assert_array_equal(found.valid, found.valid & (found.scores > 0.006))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["predict", "losses"])
def test_parameters_keep_their_places_when_a_part_is_put_before(kind: str, method: str) -> None:
    class Other(Calibrate):
        place: ClassVar[str] = "other"

    def names(*parts: nn.Module) -> set[str]:
        args = (KEY,) if method == "losses" else ()
        model = make(kind, *parts)
        return set(jax.eval_shape(lambda: model.init(KEY, BATCH, *args, method=method))["params"])

    before = names()
    assert names(Calibrate()) == before | {"calibrate"}
    assert names(Other(), Calibrate()) == before | {"other", "calibrate"}
    assert names(Calibrate(), Other(), Calibrate()) == before | {"other", "calibrate", "calibrate_2"}


def test_two_parts_of_a_kind_follow_each_other() -> None:
    model = make("one", Calibrate(start=0.5), Calibrate(start=0.25))
    fresh = model.init(KEY, BATCH, method="predict")
    assert (fresh["params"]["calibrate"]["factor"], fresh["params"]["calibrate_2"]["factor"]) == (0.5, 0.25)
    without = {"params": {"dense": fresh["params"]["dense"]}}
    found, expected = apply(model, fresh, "predict"), apply(make("one"), without, "predict")
    np.testing.assert_allclose(found.scores, expected.scores / 8, rtol=1e-6)


def test_places_follow_from_the_order_alone() -> None:
    """So a config, which knows no names, gives the places that its checkpoint has, however the model came about."""
    twice = make("one", Calibrate(start=0.5), Calibrate(start=0.25))
    grown = make("one", Calibrate(start=0.25))
    grown = grown.clone(parts=(Calibrate(start=0.5), *grown.parts))
    assert [part.name for part in grown.parts] == ["calibrate", "calibrate_2"]
    assert grown == twice
    turned = twice.clone(parts=twice.parts[::-1])
    assert [(part.name, part.start) for part in turned.parts] == [("calibrate", 0.25), ("calibrate_2", 0.5)]
    assert twice.clone(num_classes=7).parts == twice.parts


def test_the_same_part_twice_is_two_parts() -> None:
    part = Calibrate()
    first, second = with_places((part, part))
    assert (first.name, second.name) == ("calibrate", "calibrate_2")
    assert part.name is None, "what the caller has is left alone"


def test_a_stored_config_gives_the_same_model() -> None:
    parts = MaskPrediction((make_mask_branch(),)), MaskScoring(MaskIoUHead(FC2(channels=8), channels=8))
    model = make_model(parts=parts)
    assert [part.name for part in model.parts] == ["masks", "mask_scores"]
    assert from_data(to_data(model)) == model


def test_intermediates_are_what_detections_are_made_of() -> None:
    """Of the model's own proposals, and of the boxes and labels of detections."""
    parts = MaskPrediction((make_mask_branch(),)), MaskScoring(MaskIoUHead(FC2(channels=8), channels=8)), Calibrate()
    model = make("two", *parts)
    variables = initialize(model, BATCH)
    found, named = apply(model, variables, "predict"), apply(model, variables, "intermediates")
    proposals = named.pop("proposals")
    shapes = {name: np.shape(leaf) for name, leaf in named.items()}
    pyramid = {f"{part}/{i}": (2, 64 >> i, 64 >> i, 3) for part in ("backbone", "pyramid") for i in range(2, 7)}
    rpn = {f"rpn/{i}/logits": (2, 3 * (64 >> i) ** 2, 1) for i in range(2, 7)}
    rpn |= {f"rpn/{i}/deltas": (2, 3 * (64 >> i) ** 2, 4) for i in range(2, 7)}
    stage = {"boxes": (2, 20, 4), "crops": (40, 3, 3, 3), "logits": (2, 20, CLASSES + 1), "deltas": (2, 20, CLASSES, 4)}
    masks = {"crops": (40, 6, 6, 3), "stage0/features": (40, 6, 6, 8), "stage0/logits": (40, 12, 12, CLASSES)}
    assert shapes == {
        **pyramid,
        **rpn,
        **{f"stage0/{name}": shape for name, shape in stage.items()},
        **{f"masks/{name}": shape for name, shape in masks.items()},
        "mask_scores/rated": (40, CLASSES),
        "calibrate/factor": (),
        "calibrate/before": (4,),
    }
    np.testing.assert_array_equal(named["stage0/boxes"], proposals.boxes)
    scores = np.asarray(jax.nn.softmax(named["stage0/logits"]))
    for i in range(2):
        rows, labels = (np.asarray(a[i])[np.asarray(found.valid[i])] for a in (found.index, found.labels))
        assert len(rows) > 5
        assert proposals.valid[i, rows].all()
        expected = named["calibrate/factor"] * scores[i, rows, labels]
        np.testing.assert_allclose(found.scores[i, : len(rows)], expected, rtol=1e-4)

    again = apply(model, variables, "intermediates", found.boxes, found.labels)
    jax.tree.map(np.testing.assert_array_equal, again["proposals"], proposals)
    own = jnp.take_along_axis(again["masks/stage0/logits"], found.labels.reshape(-1, 1, 1, 1), 3)[..., 0]
    valid = np.asarray(found.valid)
    values = jax.nn.sigmoid(own).reshape(found.masks.values.shape)
    np.testing.assert_allclose(found.masks.values[valid], values[valid], rtol=1e-4, atol=1e-5)
    rated = jnp.take_along_axis(again["mask_scores/rated"], found.labels.reshape(-1, 1), 1).reshape(valid.shape)
    scores_of_boxes = found.scores / named["calibrate/factor"]
    np.testing.assert_allclose(found.mask_scores[valid], (scores_of_boxes * rated)[valid], rtol=1e-3, atol=1e-6)
