"""Boxes moved by masks, behind a whole, small Mask R-CNN and behind masks that are made by hand."""

import dataclasses
from functools import cache
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.names.mmdet import from_mmdet, to_mmdet
from jaxdet.config import from_data, override, to_data
from jaxdet.models.parts.boundaries import BoundaryRefinement, BoxesFrom
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.parts.part import Found, Instances, Seen, Setting
from jaxdet.models.two_stage import TwoStage
from jaxdet.structures import Detections, Features, Masks, Proposals, Targets
from tests.models.small import (
    CLASSES,
    Pooled,
    Same,
    initialize,
    make_batch,
    make_mask_branch,
    make_model,
    make_targets,
)
from tests.ops import oracles

BATCH = make_batch([make_targets(0), make_targets(1)])
KEY = jax.random.key(0)
FEATURES = Features({2: np.zeros((1, 16, 16, 1), np.float32), 3: np.zeros((1, 8, 8, 1), np.float32)})
SETTING = Setting(CLASSES, ())
TRUTH = np.float32([[10, 12, 30, 40], [31, 5, 60, 23], [3, 34, 25, 58]])
"""Boxes on whole pixels of a canvas of 64."""


def make_masks(stride: int = 1) -> Masks:
    """Full rectangles on the canvas, in cells of ``stride`` pixels."""
    centre = (np.arange(64 // stride) + 0.5) * stride
    x = (centre >= TRUTH[:, :1]) & (centre < TRUTH[:, 2:3])
    y = (centre >= TRUTH[:, 1:2]) & (centre < TRUTH[:, 3:])
    return Masks(np.float32(y[:, :, None] & x[:, None])[None], np.tile(np.float32([0, 0, 64, 64]), (1, 3, 1)))


def make_found(boxes: np.ndarray, masks: Masks | None) -> Found:
    labels = jnp.zeros(boxes.shape[:2], jnp.int32)
    return Found(Detections(jnp.asarray(boxes), labels + 0.5, labels, labels >= 0, labels, masks))


def make_objects() -> Targets:
    labels = np.zeros((1, 3), np.int32)
    return Targets(TRUTH[None], labels, make_masks(), labels > 0, labels >= 0)


def jittered(seed: int = 0) -> np.ndarray:
    return TRUTH[None] + np.random.default_rng(seed).uniform(-1.9, 1.9, (1, 3, 4)).astype(np.float32)


CRISP = {"params": {"weights": np.float32([0, 0, 0, -8, 8, 0, 0, 0, 0]), "bias": np.float32([-4])}}
"""A kernel that asks for a step from 0 to 1, and nothing else."""


def move(part: BoundaryRefinement, found: Found, variables: Any = CRISP) -> np.ndarray:
    return np.asarray(jax.jit(lambda: part.apply(variables, FEATURES, found, SETTING).detections.boxes)())


@cache
def make_refined(boxes_from: BoxesFrom) -> TwoStage:
    return make_model(backbone=Pooled(), neck=Same(), parts=make_parts(boxes_from))


def make_parts(boxes_from: BoxesFrom) -> tuple[MaskPrediction, BoundaryRefinement]:
    return MaskPrediction((make_mask_branch(),)), BoundaryRefinement(boxes_from=boxes_from)


@cache
def make_variables() -> Any:
    return initialize(make_refined("mbrm"), BATCH)


@cache
def predict(boxes_from: BoxesFrom) -> Detections:
    model = make_refined(boxes_from)
    return jax.jit(lambda v: model.apply(v, BATCH, method="predict"))(make_variables())


def start(**settings: Any) -> Any:
    """Parameters before training; they do not depend on where boxes come from."""
    part = BoundaryRefinement(boxes_from="regression", **settings)
    return part.init(KEY, FEATURES, make_found(jittered(), make_masks()), SETTING)


def test_boxes_move_and_nothing_else_does() -> None:
    before, after = predict("regression"), predict("mbrm")
    valid = np.asarray(before.valid)
    assert valid.sum() > 5
    moved = np.abs(after.boxes - before.boxes)[valid]
    assert moved.mean() > 0.1
    assert moved.max() < 3.29 * max(1, 0.05 * 64)
    np.testing.assert_array_equal(after.boxes[valid], np.round(after.boxes[valid]))
    for name in ("scores", "labels", "valid", "index", "masks"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert set(make_variables()["params"]["boundaries"]) == {"weights", "bias"}


def test_one_step_of_training_moves_its_parameters() -> None:
    """The loss of the refinement has no gradient for any other."""
    model, variables = make_refined("mbrm"), make_variables()

    def loss(params: Any) -> Any:
        terms, _ = model.apply({**variables, "params": params}, BATCH, KEY, method="losses")
        return terms["loss_boundaries"]

    step = jax.jit(jax.value_and_grad(loss))
    value, slopes = step(variables["params"])
    assert value > 0
    own = slopes.pop("boundaries")
    assert own["bias"][0] != 0
    assert np.count_nonzero(own["weights"]) >= 8  # the first may look beyond everything that is near a side
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))
    better = jax.tree.map(lambda value, slope: value - 0.1 * slope, variables["params"]["boundaries"], own)
    assert step(variables["params"] | {"boundaries": better})[0] < value


@pytest.mark.parametrize("boxes_from", ["mask", "mbrm"])
def test_each_side_is_where_the_mask_ends(boxes_from: BoxesFrom) -> None:
    boxes = jittered()
    found = move(BoundaryRefinement(boxes_from=boxes_from), make_found(boxes, make_masks()))
    np.testing.assert_array_equal(found, TRUTH[None])
    assert np.abs(np.round(boxes) - TRUTH).max() == 2


def test_published_weights_on_blurred_masks_bring_boxes_nearer() -> None:
    """Masks at a stride of 4 pixels, as those that the weights were learnt on."""
    before = np.concatenate([jittered(seed) for seed in range(8)], 1)
    masks = jax.tree.map(lambda leaf: np.tile(leaf, (1, 8) + (1,) * (leaf.ndim - 2)), make_masks(4))
    after = move(BoundaryRefinement(), make_found(before, masks), start())
    truth = np.tile(TRUTH, (8, 1))
    assert np.abs(after - truth).mean() < 0.9 * np.abs(before - truth).mean()


def test_an_empty_mask_keeps_the_regressed_box() -> None:
    masks, boxes = make_masks(), jittered()
    masks.values[0, 1] = 0
    found = move(BoundaryRefinement(boxes_from="mask"), make_found(boxes, masks))
    np.testing.assert_array_equal(found[0, 1], boxes[0, 1])
    np.testing.assert_array_equal(found[0, [0, 2]], TRUTH[[0, 2]])


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_invalid_detections_stay_and_change_nothing(value: float) -> None:
    whole = make_found(jittered(), make_masks())
    spoilt = jax.tree.map(lambda leaf: np.asarray(leaf).copy(), whole)
    spoilt.detections.valid[0, 1] = False
    for leaf in (spoilt.detections.boxes, spoilt.detections.masks.values, spoilt.detections.masks.frames):
        leaf[0, 1] = value
    found = move(BoundaryRefinement(), spoilt)
    np.testing.assert_array_equal(found[0, [0, 2]], TRUTH[[0, 2]])
    np.testing.assert_array_equal(found[0, 1], spoilt.detections.boxes[0, 1])


def test_a_crop_ends_a_mask() -> None:
    """Stains outside of the crop do not count; the box ends with the crop where the mask goes on."""
    masks = make_masks()
    masks.values[:] = 1
    found = move(BoundaryRefinement(), make_found(jittered(), dataclasses.replace(masks, crop=TRUTH[None])))
    np.testing.assert_array_equal(found, TRUTH[None])


def test_a_box_ends_with_the_image_and_not_with_the_canvas() -> None:
    """The mask goes on into the padding; the image has 50 columns and 60 rows."""
    masks, boxes = make_masks(), np.float32([[[10.4, 12, 49.1, 40], [31, 5, 49.6, 23], [3, 34, 25, 58]]])
    masks.values[0, :2, :, 31:] = 1
    features = FEATURES.replace(true_hw=np.float32([[60, 50]]))
    part, found = BoundaryRefinement(boxes_from="mask"), make_found(boxes, masks)
    moved = jax.jit(lambda: part.apply(CRISP, features, found, SETTING).detections.boxes)()
    np.testing.assert_array_equal(moved[0, :, 2], [50, 50, 25])


def loss_of(part: BoundaryRefinement, instances: Instances, targets: Targets, variables: Any = CRISP) -> Any:
    return jax.jit(lambda: part.apply(variables, instances, targets, (64, 64), method="instance_loss"))()


@pytest.mark.parametrize("targets_from", ["bitmap", "box"])
@pytest.mark.parametrize("stride", [1, 4])
def test_the_loss_is_small_where_the_refined_box_is_right(targets_from: str, stride: int) -> None:
    part = BoundaryRefinement(targets_from=targets_from, train_stride=stride)
    index, objects = np.arange(3)[None], make_objects()
    if stride == 4:  # what is on the grid of four pixels
        grid = np.float32([[8, 12, 32, 40], [32, 4, 60, 24], [4, 32, 24, 56]])
        masks = objects.masks.replace(values=np.ones((1, 3, 16, 16), np.uint8), crop=grid[None])
        bitmaps = Masks(np.ones((1, 3, 8, 8), np.uint8), grid[None])
        objects, instances = objects.replace(boxes=grid[None], masks=bitmaps), (grid[None], masks)
    else:
        instances = jittered(), objects.masks
    boxes, shifted = objects.boxes + stride, objects.masks.replace(frames=objects.masks.frames + stride)
    # What is not read may say otherwise.
    told = objects.replace(boxes=boxes) if targets_from == "bitmap" else objects.replace(masks=shifted)
    right, left_out = loss_of(part, Instances(*instances, index, index >= 0), told)
    moved = objects.replace(boxes=boxes, masks=shifted)
    wrong, _ = loss_of(part, Instances(*instances, index, index >= 0), moved)
    assert right < 0.2
    assert wrong > 3
    assert left_out == 0


def test_sides_out_of_reach_are_left_out_and_counted() -> None:
    """Of the first box one side is far off, the bitmap of the second is empty, and the last one has no object."""
    boxes, index = jittered(), np.arange(3)[None]
    boxes[0, 0, 0] -= 8
    counts = np.array([[True, True, False]])
    objects = make_objects()
    objects.masks.values[0, 1] = 0
    near = loss_of(BoundaryRefinement(), Instances(boxes, make_masks(), index, counts), objects)
    assert near[1] == pytest.approx(1 / 8)
    assert 0 < near[0] < 0.2
    none = loss_of(BoundaryRefinement(), Instances(boxes, make_masks(), index, counts & False), make_objects())
    assert none == (0, 0)


def make_detections() -> Found:
    """Eight around the three objects, of which the fifth and the last two match one of their class."""
    boxes = np.tile(jittered()[0, :1], (8, 1))
    boxes[1] = TRUTH[0] + [6, 8, 6, 8]  # an IoU of 0.4
    boxes[5:] = jittered()[0, [1, 1, 2]]
    masks = make_masks()
    masks = masks.replace(
        values=masks.values[:, [0, 0, 0, 0, 0, 1, 1, 2]], frames=np.tile(masks.frames, (1, 3, 1))[:, :8]
    )
    found = make_found(boxes[None], masks).detections
    labels = jnp.asarray([[1, 0, 0, 1, 0, 1, 0, 0]])
    return Found(found.replace(labels=labels, valid=jnp.asarray([[True, True, False, False, True, True, True, True]])))


def test_it_learns_from_detections_that_match_an_object_of_their_class() -> None:
    objects, found = make_objects(), make_detections()
    part = BoundaryRefinement(learn_from="detections", boxes_from="mbrm")

    def losses(part: BoundaryRefinement, seen: Seen) -> Any:
        terms, after = part.apply(CRISP, FEATURES, seen, objects, SETTING, KEY, method="losses")
        return terms["loss_boundaries"], after.metrics["boundaries_left_out"]

    mine = losses(part, Seen([], found=lambda: found))
    chosen = np.array([[4, 6, 7]])
    instances = Instances(
        found.detections.boxes[:, chosen[0]],
        jax.tree.map(lambda a: a[:, chosen[0]], found.detections.masks),
        np.arange(3)[None],
        chosen > 0,
    )
    assert mine == losses(BoundaryRefinement(), Seen([], instances=instances))
    assert mine[0] > 0
    # A crowd is nobody's object: the third stands alone then.
    crowded = objects.replace(crowd=np.array([[True, True, False]]))
    terms, _ = part.apply(CRISP, FEATURES, Seen([], found=lambda: found), crowded, SETTING, KEY, method="losses")
    alone = instances.replace(counts=np.array([[False, False, True]]))
    assert terms["loss_boundaries"] == losses(BoundaryRefinement(), Seen([], instances=alone))[0]


class Watching(nn.Module):
    """A part that tells what it is shown in training."""

    place: ClassVar[str] = "watching"

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        return found

    def losses(self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array) -> Any:
        return {}, dataclasses.replace(seen, metrics={"found": seen.found().detections})


def test_a_model_shows_in_training_what_it_finds_by_the_parts_before() -> None:
    corners = np.random.default_rng(0).uniform(0, 40, (2, 30, 2)).astype(np.float32)
    valid = np.arange(30) < 25
    proposals = Proposals(np.concatenate([corners, corners + 20], -1), np.zeros((2, 30)), np.stack([valid, valid]))
    model = make_model(backbone=Pooled(), neck=Same(), parts=(make_parts("mbrm")[0], Watching()))

    def both(variables: Any) -> Any:
        _, metrics = model.apply(variables, BATCH, KEY, proposals, method="losses")
        return metrics["found"], model.apply(variables, BATCH, proposals, method="predict")

    shown, predicted = jax.jit(both)(make_variables())
    assert predicted.valid.sum() > 5
    assert predicted.masks is not None
    jax.tree.map(np.testing.assert_array_equal, shown, predicted)


def test_refining_without_masks_is_refused() -> None:
    model = make_model(parts=(BoundaryRefinement(),))
    for method, key in (("predict", ()), ("losses", (KEY,))):
        with pytest.raises(ValueError, match="put MaskPrediction, or InstanceMasks, before it among the parts"):
            jax.eval_shape(lambda method=method, key=key: model.init(KEY, BATCH, *key, method=method))
    objects = make_objects()
    bare = objects.replace(masks=Masks(np.zeros((1, 3, 0, 0), np.uint8), TRUTH[None]))
    index = np.arange(3)[None]
    with pytest.raises(ValueError, match=r"data\.masks=true"):
        loss_of(BoundaryRefinement(), Instances(jittered(), make_masks(), index, index >= 0), bare)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 2}, r"published weights are of reach=4, got reach=2.*start=edge"),
        ({"gamma": 0.0}, r"BoundaryRefinement\.gamma: expected"),
        ({"start": "edge", "reach": 0}, r"BoundaryRefinement\.reach: expected"),
        ({"train_stride": 0}, r"BoundaryRefinement\.train_stride: expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(**settings)


def test_starts() -> None:
    published, edge, zeros = start()["params"], start(start="edge", reach=2)["params"], start(start="zeros")["params"]
    assert published["weights"].shape == (9,)
    assert (published["weights"][3], published["bias"][0]) == (np.float32(-3.2545), np.float32(-1.9536))
    np.testing.assert_array_equal(edge["weights"], [-0.5, -0.5, 0, 0.5, 0.5])
    assert not any(np.any(leaf) for leaf in zeros.values())


def test_a_config_with_it_is_data() -> None:
    model = make_model(parts=make_parts("mbrm"))
    assert from_data(to_data(model)) == model
    changed = override(model, ["parts.1.boxes_from=mask", "parts.1.gamma=0.1"])
    assert (changed.parts[1].boxes_from, changed.parts[1].gamma) == ("mask", 0.1)


def test_names_of_the_released_code() -> None:
    state = {"mbrm.weight": np.arange(9, dtype=np.float32).reshape(1, 1, 9), "mbrm.bias": np.float32([3])}
    variables = from_mmdet(state, {"params": {"boundaries": start()["params"]}})
    np.testing.assert_array_equal(variables["params"]["boundaries"]["weights"], np.arange(9))
    jax.tree.map(np.testing.assert_array_equal, to_mmdet(variables), state)
