"""Masks of one-stage models, and the classes of pixels, behind whole, small models."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.dense import Assigned, DenseOutputs
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.instances import InstanceMasks, PixelClasses
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.parts.part import Seen, Setting, TrainedPlaces
from jaxdet.nn.heads.dense import YOLACTHead
from jaxdet.nn.necks import FPN
from jaxdet.ops.instances import Prototypes
from jaxdet.structures import Batch, Detections, Features, Masks, Samples, Targets
from tests.models.small import (
    CLASSES,
    Pooled,
    Same,
    as_they_are,
    initialize,
    make_batch,
    make_condinst,
    make_dense,
    make_mask_branch,
    make_model,
    make_rdsnet,
    make_targets,
    make_yolact,
)

KEY = jax.random.key(1)
OBJECTS = [make_targets(0), make_targets(1)]
MODELS: dict[str, Callable[..., OneStage]] = {"rdsnet": make_rdsnet, "condinst": make_condinst, "yolact": make_yolact}
TERMS = {
    "rdsnet": {"loss_cls", "loss_bbox", "loss_mask"},
    "condinst": {"loss_cls", "loss_bbox", "loss_centerness", "loss_mask"},
    "yolact": {"loss_cls", "loss_bbox", "loss_mask", "loss_segm"},
}
every_model = pytest.mark.parametrize("kind", MODELS)


@cache
def variables(kind: str) -> Any:
    return initialize(MODELS[kind](), make_batch(OBJECTS))


@partial(jax.jit, static_argnums=0)
def _losses(kind: str, variables: Any, batch: Batch) -> Any:
    def total(params: Any) -> Any:
        terms, metrics = MODELS[kind]().apply({**variables, "params": params}, batch, KEY, method="losses")
        return sum(terms.values()), (terms, metrics)

    return jax.value_and_grad(total, has_aux=True)(variables["params"])


def losses(kind: str, batch: Batch) -> tuple[dict[str, float], Any]:
    """Terms and gradients."""
    (_, (terms, _)), gradients = _losses(kind, variables(kind), batch)
    return {name: float(value) for name, value in terms.items()}, gradients


@partial(jax.jit, static_argnums=(0, 3))
def _run(kind: str, variables: Any, batch: Batch, method: str) -> Any:
    return MODELS[kind]().apply(variables, batch, method=method)


def run(kind: str, batch: Batch, method: str = "predict") -> Any:
    return _run(kind, variables(kind), batch, method)


@every_model
def test_masks_train_head_and_pixels_and_what_is_before_them(kind: str) -> None:
    """By the loss of masks alone; the neck stands for everything that both read."""
    model, batch = MODELS[kind](neck=FPN(channels=8, lowest=3)), make_batch(OBJECTS)
    fresh = initialize(model, batch)

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> Any:
            variables = {**fresh, "params": params}
            (terms, _), _ = model.apply(variables, batch, KEY, method="losses", mutable=["batch_stats"])
            return terms["loss_mask"], terms

        return jax.grad(loss, has_aux=True)(params)

    gradients, terms = gradient(fresh["params"])
    assert set(terms) == TERMS[kind]
    assert terms["loss_mask"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    head, pixels = gradients["dense"]["head"], gradients["masks"]["pixels"]
    layers = {name: layer for name, layer in pixels.items() if "kernel" in layer}
    assert len(layers) > 2
    for name, layer in {**layers, "head": head["codes"], "neck": gradients["neck"]["output3"]}.items():
        assert np.abs(layer["kernel"]).max() > 0, name
    np.testing.assert_array_equal(head["logits"]["kernel"], 0)


@every_model
@pytest.mark.parametrize("ground_truth", ["nothing", "crowd"])
@pytest.mark.parametrize("fill", [7.0, np.nan])
def test_without_objects_masks_have_no_loss(kind: str, ground_truth: str, fill: float) -> None:
    terms, gradients = losses(kind, make_batch([make_targets(i, ground_truth, fill) for i in range(2)]))
    assert set(terms) == TERMS[kind]
    assert terms["loss_mask"] == terms["loss_bbox"] == 0
    assert np.isfinite([*terms.values()]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["masks"]))


def same(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance / 10), found, expected)


@every_model
def test_what_padded_slots_hold_and_how_many_they_are_has_no_effect(kind: str) -> None:
    expected = losses(kind, make_batch(OBJECTS))
    assert expected[0]["loss_mask"] > 0
    for fill in (7.0, np.nan):
        same(losses(kind, make_batch([make_targets(i, fill=fill) for i in range(2)])), expected)

    def more(leaf: np.ndarray) -> np.ndarray:
        filler = np.full((2, 3, *leaf.shape[2:]), np.nan if leaf.dtype == np.float32 else 0)
        return np.concatenate([leaf, filler.astype(leaf.dtype)], 1)

    batch = make_batch(OBJECTS)
    same(losses(kind, batch.replace(targets=jax.tree.map(more, batch.targets))), expected)


@every_model
def test_slots_that_fill_the_batch_have_no_loss(kind: str) -> None:
    """An image beside a filler has the losses of that image alone, and fillers alone have none."""
    batch = make_batch(OBJECTS)
    alone = losses(kind, jax.tree.map(lambda leaf: leaf[:1], batch))
    same(losses(kind, batch.replace(valid=np.array([True, False]))), alone)
    terms, gradients = losses(kind, batch.replace(valid=np.zeros(2, bool)))
    assert set(terms.values()) == {0.0}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@every_model
def test_losses_of_a_batch_are_those_of_its_images(kind: str) -> None:
    """With a single instance of each image, over the number of them and what the loss adds to it."""
    model = MODELS[kind]()
    masks = model.parts[0].clone(limit=1)
    model = model.clone(parts=(masks, *model.parts[1:]))

    @jax.jit
    def mask_loss(batch: Batch) -> Any:
        return model.apply(variables(kind), batch, KEY, method="losses")[0]["loss_mask"]

    batch, spare = make_batch(OBJECTS), masks.loss.spare
    first, second = (float(mask_loss(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch))) for i in range(2))
    assert float(mask_loss(batch)) == pytest.approx((first + second) * (1 + spare) / (2 + spare), rel=1e-4)
    assert first > 0


@every_model
def test_masks_of_detections_are_drawn_from_their_places(kind: str) -> None:
    """Those of a batch are those of its images, and what the intermediates say of the same places."""
    batch = make_batch(OBJECTS)
    found: Detections = run(kind, batch)
    assert (np.asarray(found.valid).sum(1) > 3).all()
    masks = found.masks
    assert masks is not None
    assert masks.values.shape == (2, 20, 16, 16)
    assert masks.values.dtype == jnp.float32
    assert masks.logits == (kind == "rdsnet")
    shift = 0.5 if kind == "condinst" else 0.0
    np.testing.assert_array_equal(masks.frames, np.tile(np.float32([0, 0, 64, 64]) + shift, (2, 20, 1)))
    for i in range(2):  # beside itself an image has the same ones
        twice = run(kind, jax.tree.map(lambda leaf, i=i: np.stack([leaf[i]] * 2), batch))
        same(jax.tree.map(lambda leaf: leaf[0], twice), jax.tree.map(lambda leaf, i=i: leaf[i], found), 1e-3)
    named = run(kind, batch, "intermediates")
    assert named["masks/pixels"].shape[:3] == (2, *((8, 8) if kind == "condinst" else (16, 16)))
    values = named["masks/logits"]
    if kind != "rdsnet":
        values = np.where(masks.values == 0, 0, jax.nn.sigmoid(values))  # YOLACT's are cut at their boxes
    np.testing.assert_allclose(masks.values, values, rtol=1e-3, atol=1e-5)
    places = [named[f"dense/{level}/codes"] for level in (3, 4, 5)]
    codes = jnp.take_along_axis(jnp.concatenate(places, 1), found.index[..., None], 1)
    maker, centres = MODELS[kind]().parts[0].maker, jnp.concatenate(places_of(kind))[found.index]
    for i in range(2):
        own = maker.logits(named["masks/pixels"][i], codes[i], centres[i], (64, 64))
        np.testing.assert_allclose(named["masks/logits"][i], own, rtol=1e-3, atol=1e-4)
    assert np.unique(np.asarray(masks.values) > (0 if masks.logits else 0.5)).size == 2, "a test of nothing"


def places_of(kind: str) -> list[jax.Array]:
    places = MODELS[kind]().dense.places
    return [jnp.asarray(places.grid(level, 64 >> level, 64 >> level, (64, 64))) for level in (3, 4, 5)]


@every_model
def test_names_and_kinds_of_numbers(kind: str) -> None:
    """The same parameters whatever runs first; under bfloat16 masks and losses stay float32."""
    model, batch = MODELS[kind](), make_batch(OBJECTS)
    fresh = jax.eval_shape(lambda: model.init(KEY, batch, method="predict"))
    trained = jax.eval_shape(lambda: model.init(KEY, batch, KEY, method="losses"))
    assert jax.tree.structure(fresh) == jax.tree.structure(trained)
    assert set(fresh["params"]) == {"dense", "masks"} | ({"pixel_classes"} if kind == "yolact" else set())
    assert set(fresh["params"]["masks"]) == {"pixels"}
    low = MODELS[kind](dtype="bfloat16")
    found = jax.eval_shape(lambda v: low.apply(v, batch, method="predict"), fresh)
    terms, _ = jax.eval_shape(lambda v: low.apply(v, batch, KEY, method="losses"), fresh)
    assert {leaf.dtype for leaf in (*terms.values(), *jax.tree.leaves(found.masks))} == {jnp.dtype("float32")}


def test_batch_statistics_move_in_training_alone() -> None:
    model, batch, before = make_condinst(), make_batch(OBJECTS), variables("condinst")
    train = jax.jit(lambda v: model.apply(v, batch, KEY, method="losses", mutable=["batch_stats"]))
    _, changed = train(before)
    assert set(changed["batch_stats"]) == {"masks"}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), changed, {"batch_stats": before["batch_stats"]})
    assert all(jax.tree.leaves(moved))
    first = run("condinst", batch)
    again = _run("condinst", {**before, **changed}, batch, "predict")
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert np.abs(first.masks.values - again.masks.values).max() > 1e-3


# Which places are trained.


class Ones(nn.Module):
    """A map of ones, whatever the features are."""

    def __call__(self, features: Features) -> jax.Array:
        return jnp.ones((1, 2, 2, 1))


@dataclasses.dataclass(frozen=True)
class Said:
    """The mean logit of an instance as its loss."""

    spare: int = 0

    def __call__(self, logits: jax.Array, bitmaps: jax.Array, boxes: jax.Array, canvas_hw: Any) -> jax.Array:
        return logits.mean((1, 2))


def trained_places(key: int = 0, **settings: Any) -> float:
    """The mean of the numbers of the places that are trained: 10 to 29, of three objects in turn, in another order."""
    return train_places(key, **settings)[0]


def train_places(
    key: int = 0, areas: tuple[int, ...] = (60, 200, 16), spare: int = 0, **settings: Any
) -> tuple[float, Seen]:
    """The loss, which is that mean, and what goes on to the parts behind."""
    positive = (np.arange(40) >= 10) & (np.arange(40) < 30)
    index = np.arange(40)[::-1]
    # Prototypes of one number: the logits of a place are its code.
    codes = jnp.arange(40.0).reshape(1, 5, 8, 1)
    outputs = DenseOutputs([jnp.zeros((40, 4))], [jnp.ones((1, 40), bool)], [], [], [as_they_are(codes)], None, CLASSES)
    found = (jnp.asarray(a[None]) for a in (index, positive[index], index % 3 * positive[index]))
    assigned = Assigned(*found, boxes=jnp.full((1, 40, 4), 64.0))
    bitmaps = np.zeros((1, 3, 8, 8), np.uint8)
    for g, area in enumerate(areas):
        bitmaps[0, g].flat[: area // 4] = 1  # of frames of 16 x 16 pixels
    boxes = np.tile(np.float32([0, 0, 16, 16]), (1, 3, 1))
    none = np.zeros((1, 3), bool)
    targets = Targets(boxes, np.zeros((1, 3), np.int32), Masks(bitmaps, boxes), none, ~none)
    part = InstanceMasks(Ones(), Prototypes(1), Said(spare), **settings)
    seen, features = Seen([], TrainedPlaces(outputs, assigned)), Features({2: jnp.zeros((1, 4, 4, 1))})
    terms, after = part.apply({}, features, seen, targets, Setting(CLASSES, ()), jax.random.key(key), method="losses")
    # What was trained on goes on, with its masks, to the parts behind this one.
    assert after.instances.masks.values.shape == (1, part.limit, 2, 2)
    assert after.instances.counts.sum() <= part.limit
    return float(terms["loss_mask"]), after


def test_the_first_places_up_to_the_limit() -> None:
    """In the order in which they were assigned."""
    first = partial(trained_places, order="first")
    assert first(limit=1) == pytest.approx(29)
    assert first(limit=20) == first(limit=100) == pytest.approx(np.mean(np.arange(10, 30)))


def test_small_objects_are_left_out() -> None:
    """Areas are those of masks in the image: 60, 200 and 16 pixels, of places whose number leaves 0, 1, 2 over 3."""
    first = partial(trained_places, order="first", limit=3)
    assert first(least_area=59) == pytest.approx(np.mean([28, 27, 25]))
    assert first(least_area=60) == pytest.approx(np.mean([28, 25, 22]))
    assert first(least_area=1e4) == 0
    assert first(areas=(60, 200, 0)) == pytest.approx(np.mean([28, 27, 25])), "a mask without pixels teaches nothing"


def test_parts_behind_learn_from_masks_cut_around_the_chosen_boxes() -> None:
    """The predicted boxes of these places are outside the canvas, those of their objects fill it."""
    _, predicted = train_places(limit=4)
    _, truth = train_places(crop_by="truth", limit=4)
    np.testing.assert_array_equal(truth.instances.boxes, predicted.instances.boxes)
    assert not predicted.instances.masks.values.any()
    assert (np.asarray(truth.instances.masks.values) > 0.9).all()


def test_random_places_are_those_of_the_key() -> None:
    drawn = [trained_places(key, limit=4) for key in range(6)]
    assert len(set(drawn)) > 4
    assert trained_places(3, limit=4) == drawn[3]
    assert trained_places(limit=20) == pytest.approx(19.5)
    assert abs(np.mean(drawn) - 19.5) < 6


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_the_sum_is_divided_by_instances_and_what_the_loss_adds(spare: int) -> None:
    assert trained_places(order="first", limit=4, spare=spare) == pytest.approx(110 / (4 + spare))
    assert trained_places(order="first", limit=4, spare=spare, least_area=1e4) == 0


# Classes of pixels.


def test_classes_of_pixels_by_loops() -> None:
    """A class is where the mask of any object of it is; crowds and slots that do not count have no say."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (1, 5, 8, 8)).astype(np.uint8)
    bitmaps = coarse.repeat(8, 2).repeat(8, 3)  # cells of 8 pixels: all of a cell is inside, or none
    boxes = np.tile(np.float32([0, 0, 64, 64]), (1, 5, 1))
    boxes[0, 4] = np.nan
    crowd, valid = np.array([[0, 0, 0, 1, 0]], bool), np.array([[1, 1, 1, 1, 0]], bool)
    labels = np.int32([[0, 2, 2, 1, 1]])
    targets = Targets(boxes, labels, Masks(bitmaps, boxes), crowd, valid)
    part, features = PixelClasses(weight=2.0), Features({3: jnp.zeros((1, 8, 8, 4))}, hw=(64, 64))
    bias = np.float32([1, -2, 0.5])
    params = {"params": {"logits": {"kernel": np.zeros((1, 1, 4, 3), np.float32), "bias": bias}}}
    outputs = DenseOutputs([], [jnp.ones((1, 4), bool)], [], [], None, None, CLASSES)
    seen = Seen([], TrainedPlaces(outputs, Assigned(*[jnp.zeros((1, 1), int)] * 3, boxes=jnp.zeros((1, 1, 4)))))
    terms, _ = part.apply(params, features, seen, targets, Setting(CLASSES, ()), KEY, method="losses")
    total = 0.0
    for i, j in np.ndindex(8, 8):
        inside = [bool(coarse[0, 0, i, j]), False, bool(coarse[0, 1, i, j] or coarse[0, 2, i, j])]
        total -= sum(np.log(1 / (1 + np.exp(-b if own else b))) for own, b in zip(inside, bias, strict=True))
    assert float(terms["loss_segm"]) == pytest.approx(2 * total / 64, rel=1e-5)


def test_classes_of_pixels_behind_two_stages() -> None:
    """Which know images by their samples: a filler has no loss there either."""
    parts = MaskPrediction((make_mask_branch(),)), PixelClasses()
    model, batch = make_model(backbone=Pooled(), neck=Same(), parts=parts), make_batch(OBJECTS)
    terms, _ = jax.eval_shape(lambda: model.init_with_output(KEY, batch, KEY, method="losses")[0])
    assert "loss_segm" in terms

    part, targets = PixelClasses(), jax.tree.map(jnp.asarray, batch.targets)
    features = Features({3: jax.random.normal(KEY, (2, 8, 8, 4))}, hw=(64, 64))
    params = {"params": {"logits": {"kernel": jnp.ones((1, 1, 4, 3)), "bias": jnp.zeros(3)}}}

    def loss(features: Features, targets: Targets, valid: list[list[bool]]) -> float:
        mask = np.array(valid)
        samples = Samples(jnp.zeros((*mask.shape, 4)), *[jnp.asarray(0 * mask)] * 2, *[jnp.asarray(mask)] * 3)
        terms, _ = part.apply(params, features, Seen([samples]), targets, Setting(CLASSES, ()), KEY, method="losses")
        return float(terms["loss_segm"])

    first = features.replace(levels={3: features.levels[3][:1]}), jax.tree.map(lambda leaf: leaf[:1], targets)
    assert loss(features, targets, [[True, False], [False, False]]) == pytest.approx(loss(*first, [[True]]), rel=1e-5)
    assert loss(features, targets, [[True], [True]]) != pytest.approx(loss(*first, [[True]]), rel=1e-3)
    assert loss(features, targets, [[False], [False]]) == 0


# What is refused.


def without_codes() -> OneStage:
    return make_yolact(dense=make_dense(head=YOLACTHead(channels=8, code=0)))


def other_codes() -> OneStage:
    return make_yolact(dense=make_dense(head=YOLACTHead(channels=8, code=5)))


def two_stages() -> Any:
    return make_model(backbone=Pooled(), neck=Same(), parts=make_yolact().parts[:1])


@pytest.mark.parametrize("method", ["predict", "losses"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_codes, "needs codes, the dense head gives none: set model.dense.head.code=4"),
        (other_codes, "gives 5 numbers a place, Prototypes needs 4: set model.dense.head.code=4"),
        (two_stages, "is for one-stage models; two-stage ones have MaskPrediction"),
    ],
)
def test_models_that_do_not_fit(make: Callable[[], Any], message: str, method: str) -> None:
    args = (KEY,) if method == "losses" else ()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: make().init(KEY, make_batch(OBJECTS), *args, method=method))


@pytest.mark.parametrize("part", range(2), ids=["masks", "classes"])
def test_data_without_masks_is_refused(part: int) -> None:
    model, batch = make_yolact(parts=make_yolact().parts[part : part + 1]), make_batch(OBJECTS)
    masks = batch.targets.masks
    bare = batch.replace(targets=batch.targets.replace(masks=masks.replace(values=masks.values[:, :, :0, :0])))
    jax.eval_shape(lambda: model.init(KEY, bare, method="predict"))
    with pytest.raises(ValueError, match=r"needs masks, the batch has none: set data\.masks=true"):
        jax.eval_shape(lambda: model.init(KEY, bare, KEY, method="losses"))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: InstanceMasks(Ones(), Prototypes(1), Said(), limit=0), "InstanceMasks.limit"),
        (lambda: InstanceMasks(Ones(), Prototypes(1), Said(), least_area=-1), "InstanceMasks.least_area"),
        (lambda: PixelClasses(level=40), "PixelClasses.level"),
        (lambda: PixelClasses(weight=-1), "PixelClasses.weight"),
    ],
)
def test_ranges(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        make()
