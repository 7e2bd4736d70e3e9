"""The dense detector around a head that says what the feature map holds: as RPN, and with several classes."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.dense import DenseDetector, DenseOutputs, Selection, rpn
from jaxdet.nn.heads.dense import DenseMaps
from jaxdet.ops.anchors import Anchors
from jaxdet.ops.losses import BinaryCrossEntropy, Focal, SmoothL1
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.ops.suppression import NMS, FastNMS, Suppression
from jaxdet.structures import Detections, Features, Masks, Proposals, Targets
from tests.models.small import as_they_are, make_dense

ANCHORS = Anchors(levels=(2, 3), scales=(4.0,), ratios=(1.0,))
"""Squares of 16 pixels at stride 4 and of 32 pixels at stride 8."""
CELLS = {2: (8, 8), 3: (4, 4)}
HW = np.float32([[32, 32]])
KEY = jax.random.key(0)


class Reads(nn.Module):
    """The first channels are logits, four more deltas, the rest codes."""

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        logits, deltas, codes = jnp.split(level, [num_classes, num_classes + 4], axis=-1)
        return DenseMaps(logits, deltas, as_they_are(codes))


def make_rpn(**changes: Any) -> DenseDetector:
    return rpn(Reads(), **{"anchors": ANCHORS, "pad_multiple": 8} | changes)


def quiet(cells: dict[int, tuple[int, int]] = CELLS, fill: float = 0.0) -> dict[int, np.ndarray]:
    """Maps on which every anchor is all but impossible and stays where it is."""
    maps = {level: np.full((1, *hw, 5), fill, np.float32) for level, hw in cells.items()}
    for level, (height, width) in CELLS.items():
        maps[level][:, :height, :width] = [-20, 0, 0, 0, 0]
    return maps


def propose(
    features: dict[int, np.ndarray], hw: np.ndarray = HW, per_level: int = 1000, limit: int = 1000, **changes: Any
) -> Proposals:
    detector = make_rpn(test=(per_level, limit), **changes)

    def run(features: Any, hw: Any) -> Proposals:
        return detector.proposals(detector.apply({}, Features(features), hw), hw, detector.test)

    return jax.jit(run)(features, hw)


def test_the_best_anchor_moves_and_is_cut_to_the_image() -> None:
    features = quiet()
    features[2][0, 3, 6] = [5, 0.25, 0, np.log(2), 0]  # 16 x 16 at (24, 12): 4 to the right, twice as wide
    features[3][0, 2, 2] = [6, 0, 0, 0, 0]  # 32 x 32 at (16, 16)
    found = propose(features, limit=2)
    np.testing.assert_allclose(found.boxes[0], [[0, 0, 32, 32], [12, 4, 32, 20]], atol=1e-5)
    np.testing.assert_allclose(found.scores[0], 1 / (1 + np.exp([-6.0, -5.0])), rtol=1e-5)
    assert found.valid.all()


def test_levels_do_not_suppress_each_other_and_one_level_does() -> None:
    features = quiet()
    features[2][0, 4, 4] = [5, 0, 0, np.log(2), np.log(2)]  # the same box as below, from another level
    features[3][0, 2, 2] = [6, 0, 0, 0, 0]
    features[3][0, 2, 3] = [4, -0.25, 0, 0, 0]  # the same box again, from the same level
    found = propose(features, limit=3)
    np.testing.assert_allclose(found.boxes[0, :2], [[0, 0, 32, 32]] * 2, atol=1e-5)
    assert found.scores[0, 2] < 1e-6


def test_the_best_count_by_level() -> None:
    features = quiet()
    features[2][..., 0] = np.arange(64).reshape(8, 8) / 10
    found = propose(features, per_level=3, iou_threshold=1.0)
    assert int(found.valid.sum()) == 6
    np.testing.assert_allclose(found.scores[0, :3], 1 / (1 + np.exp([-6.3, -6.2, -6.1])), rtol=1e-6)


def test_nan_and_infinite_outputs_are_no_proposals() -> None:
    features = quiet()
    features[2][0, 0, 0, 0] = np.nan
    features[2][0, 0, 1, 0] = np.inf
    features[2][0, 0, 2] = [9, np.nan, 0, 0, 0]
    features[2][0, 5, 5] = [1, 0, 0, 0, 0]
    found = propose(features, limit=80, iou_threshold=1.0)
    assert int(found.valid.sum()) == 64 + 16 - 3
    assert np.isfinite(found.boxes[0][found.valid[0]]).all()
    np.testing.assert_allclose(found.scores[0, 0], 1 / (1 + np.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_a_larger_canvas_changes_nothing(fill: float) -> None:
    """Whatever the network says about the padding."""
    rng = np.random.default_rng(0)
    small, large = quiet(), quiet({2: (10, 12), 3: (5, 6)}, fill)
    for level, (height, width) in CELLS.items():
        small[level][:] = large[level][:, :height, :width] = rng.normal(0, 0.5, (1, height, width, 5))
    hw = np.float32([[30, 27]])
    found, expected = propose(large, hw, limit=30), propose(small, hw, limit=30)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    terms, wanted = (loss_terms(features, truth_of([[4, 4, 20, 20]]), hw) for features in (large, small))
    assert terms == pytest.approx(wanted, rel=1e-5)


def truth_of(boxes: list[list[float]], slots: int = 3, labels: tuple[int, ...] = (0, 0, 0)) -> Targets:
    filled = np.full((1, slots, 4), np.nan, np.float32)
    filled[0, : len(boxes)] = np.float32(boxes).reshape(-1, 4)
    valid, none = np.arange(slots)[None] < len(boxes), np.zeros((1, slots), bool)
    masks = Masks(np.zeros((1, slots, 2, 2), np.uint8), filled)
    return Targets(filled, np.int32(labels)[None], masks, none, valid)


def loss_terms(
    features: dict[int, np.ndarray], targets: Targets, hw: np.ndarray = HW, **changes: Any
) -> dict[str, float]:
    return terms_of(make_rpn(**{"sampler": Sampler(20, 0.5, "first")} | changes), features, targets, hw)


def terms_of(
    detector: DenseDetector, features: dict[int, np.ndarray], targets: Targets, hw: np.ndarray = HW, classes: int = 1
) -> dict[str, float]:
    def run(features: Any, hw: Any, targets: Any) -> dict[str, jax.Array]:
        return detector.losses(detector.apply({}, Features(features), hw, classes), hw, targets, KEY)[0]

    return {name: float(value) for name, value in jax.jit(run)(features, hw, targets).items()}


def test_losses_by_hand() -> None:
    """One anchor fits and predicts a delta that is off by 2 in all; 19 negatives are sure, the positive is not."""
    features = quiet()
    features[2][0, 3, 3] = [0, 0.5, -0.5, 1, 0]
    terms = loss_terms(features, truth_of([[4, 4, 20, 20]]))
    assert terms["loss_cls"] == pytest.approx(np.log(2) / 20, rel=1e-4)
    assert terms["loss_bbox"] == pytest.approx(2 / 20, rel=1e-5)
    smooth = loss_terms(features, truth_of([[4, 4, 20, 20]]), box_loss=SmoothL1(1.0))
    assert smooth["loss_bbox"] == pytest.approx((0.125 + 0.125 + 0.5) / 20, rel=1e-5)


def test_an_image_without_objects_counts_one_more() -> None:
    """The reference's normaliser: at least one positive an image, though there is none."""
    features = quiet()
    features[2][..., 0] = 0
    terms = loss_terms(features, truth_of([]))
    assert terms["loss_cls"] == pytest.approx(20 * np.log(2) / 21, rel=1e-5)
    assert terms["loss_bbox"] == 0


def test_a_border_leaves_out_anchors_that_stick_out() -> None:
    """Centres of the fine level from 8 to 20 in both directions are 8 pixels inside; the coarse level has none."""
    features = quiet()
    for level in features:
        features[level][..., 0] = 0
    everything = Sampler(200, 0.5, "first")
    count = {border: _negatives(features, everything, border) for border in (-1.0, 0.0)}
    assert count == {-1.0: 80, 0.0: 16}


def _negatives(features: dict[int, np.ndarray], sampler: Sampler, border: float) -> int:
    """From the normaliser: n log(2) / (n + 1) is the loss of n undecided negatives without a positive."""
    loss = loss_terms(features, truth_of([]), sampler=sampler, border=border)["loss_cls"] / np.log(2)
    return round(loss / (1 - loss))


def test_no_gradient_flows_into_proposals() -> None:
    detector = make_rpn()

    def total(features: Any) -> jax.Array:
        found = detector.proposals(detector.apply({}, Features(features), HW), HW, detector.test)
        return found.boxes.sum() + found.scores.sum()

    gradients = jax.jit(jax.grad(total))(quiet())
    assert not any(np.any(g) for g in gradients.values())


def test_an_rpn_takes_objects_of_every_class() -> None:
    """Objectness is one class: labels do not matter."""
    features = quiet()
    features[2][0, 3, 3] = [0, 0.5, -0.5, 1, 0]
    terms = [loss_terms(features, truth_of([[4, 4, 20, 20]], labels=(label, 0, 0))) for label in (0, 7)]
    assert terms[0] == terms[1]


# Two classes, no sampler: the form of RetinaNet.

CLASSES = 2
MATCHER = Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0)


def make_retina(**changes: Any) -> DenseDetector:
    settings = {"head": Reads(), "places": ANCHORS, "pad_multiple": 8, "matcher": MATCHER}
    return DenseDetector(**settings | {"class_loss": BinaryCrossEntropy(), "box_loss": SmoothL1(1.0)} | changes)


def two_classes(cells: dict[int, tuple[int, int]] = CELLS, codes: int = 0) -> dict[int, np.ndarray]:
    """Every place is all but surely background, and stays where it is."""
    maps = {level: np.zeros((1, *hw, CLASSES + 4 + codes), np.float32) for level, hw in cells.items()}
    for level in maps:
        maps[level][..., :CLASSES] = -20
    return maps


def test_all_places_train_by_hand() -> None:
    """An object of 20 x 16 pixels, and fine anchors of 16 x 16 around multiples of 4.

    Two anchors lie inside it (IoU 256/320); two beside these, and the two above and below, share 12 x 16 (192/384).
    So eight are positive.  The next ones share 12 x 12 (144/432), the coarse ones are too large (320/1024): none is
    ignored, 72 are negative.  An undecided logit costs log 2 in each class.
    """
    boxes = [[4, 8, 24, 24]]
    features = two_classes()
    for level in features:
        features[level][..., :CLASSES] = 0
    terms = terms_of(make_retina(), features, truth_of(boxes, labels=(1, 0, 0)), classes=CLASSES)
    positive, negative = expected_matches(boxes)
    assert (len(positive), len(negative)) == (8, 72)
    assert terms["loss_cls"] == pytest.approx(80 * 2 * np.log(2) / 8, rel=1e-5)
    assert terms["loss_bbox"] == pytest.approx(slow_box_loss(positive, boxes[0]) / 8, rel=1e-4)


def all_anchors() -> np.ndarray:
    return np.concatenate([ANCHORS.grid(level, *CELLS[level]) for level in ANCHORS.levels])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


def expected_matches(boxes: list[list[float]]) -> tuple[list[int], list[int]]:
    """Places that are positive for, and those that are negative by, a single object; without forced matches."""
    overlaps = [iou(anchor, np.float32(boxes[0])) for anchor in all_anchors()]
    return [i for i, v in enumerate(overlaps) if v >= 0.5], [i for i, v in enumerate(overlaps) if v < 0.4]


def slow_box_loss(places: list[int], box: list[float]) -> float:
    """Smooth L1 with beta 1 of the deltas that these anchors need, which all predict 0."""
    total = 0.0
    for x1, y1, x2, y2 in all_anchors()[places]:
        w, h, bw, bh = x2 - x1, y2 - y1, box[2] - box[0], box[3] - box[1]
        dx, dy = ((box[0] + box[2]) - (x1 + x2)) / 2 / w, ((box[1] + box[3]) - (y1 + y2)) / 2 / h
        for d in (dx, dy, np.log(bw / w), np.log(bh / h)):
            total += d * d / 2 if abs(d) < 1 else abs(d) - 0.5
    return total


def test_places_between_the_thresholds_teach_nothing() -> None:
    """Whatever is said of them: class and box losses and their gradients leave them out."""
    box = [[4, 8, 25, 25]]
    positive, negative = expected_matches(box)
    ignored = sorted(set(range(80)) - {*positive, *negative})
    assert ignored
    rng = np.random.default_rng(0)
    features = {level: rng.normal(size=(1, *hw, CLASSES + 4)).astype(np.float32) for level, hw in CELLS.items()}
    detector, targets = make_retina(), truth_of(box, labels=(1, 0, 0))

    def total(features: Any) -> jax.Array:
        outputs = detector.apply({}, Features(features), HW, CLASSES)
        return sum(detector.losses(outputs, HW, targets, KEY)[0].values(), jnp.float32(0))

    gradients = jax.jit(jax.grad(total))(features)
    flat = np.concatenate([np.asarray(gradients[level]).reshape(-1, CLASSES + 4) for level in CELLS])
    np.testing.assert_array_equal(flat[ignored], 0)
    assert (flat[positive] != 0).all()
    assert (flat[negative, :CLASSES] != 0).all()
    np.testing.assert_array_equal(flat[negative, CLASSES:], 0)


@pytest.mark.parametrize("class_loss", [BinaryCrossEntropy(), Focal()])
def test_class_loss_by_a_slow_one(class_loss: Any) -> None:
    """Labels are those of the matched objects, background is 0 in every class, and the sum is divided by positives."""
    boxes = [[4, 8, 20, 24], [10, 0, 32, 30]]
    rng = np.random.default_rng(1)
    features = {level: rng.normal(size=(1, *hw, CLASSES + 4)).astype(np.float32) for level, hw in CELLS.items()}
    labels = (1, 0, 0)
    found = terms_of(make_retina(class_loss=class_loss), features, truth_of(boxes, labels=labels), classes=CLASSES)
    logits = np.concatenate([features[level].reshape(-1, CLASSES + 4)[:, :CLASSES] for level in CELLS])
    table = np.array([[iou(anchor, np.float32(box)) for box in boxes] for anchor in all_anchors()])
    total = positives = 0.0
    for row, said in zip(table, logits, strict=True):
        best = int(row.argmax())
        forced = [g for g in range(2) if np.isclose(row[g], table[:, g].max())]  # each object takes its best places
        if forced or row[best] >= 0.5:
            wanted, positives = [float(labels[(forced or [best])[-1]] == k) for k in range(CLASSES)], positives + 1
        elif row[best] < 0.4:
            wanted = [0.0] * CLASSES
        else:
            continue
        for logit, target in zip(said, wanted, strict=True):
            p = 1 / (1 + np.exp(-np.float64(logit)))
            hit = p if target else 1 - p
            weight = 1.0
            if isinstance(class_loss, Focal):
                weight = (0.25 if target else 0.75) * (1 - hit) ** 2
            total -= weight * np.log(hit)
    assert positives > 2
    assert found["loss_cls"] == pytest.approx(total / positives, rel=1e-4)


def test_every_object_has_a_place_even_if_it_fits_none() -> None:
    """A thin object overlaps no anchor by half; the best place takes it all the same."""
    box = [[0, 6, 32, 8]]
    assert not expected_matches(box)[0]
    terms = terms_of(make_retina(), two_classes(), truth_of(box), classes=CLASSES)
    assert terms["loss_bbox"] > 0
    without = make_retina(matcher=Matcher(0.5, 0.4, low_quality=False))
    assert terms_of(without, two_classes(), truth_of(box), classes=CLASSES)["loss_bbox"] == 0


def test_an_image_counts_one_positive_at_least() -> None:
    """Two images, the second without objects: 8 positives of the first, and one for the second."""
    features = {level: np.concatenate([maps] * 2) for level, maps in two_classes().items()}
    for level in features:
        features[level][..., :CLASSES] = 0
    one, other = truth_of([[4, 8, 24, 24]]), truth_of([])
    both = jax.tree.map(lambda *leaves: np.concatenate(leaves), one, other)
    hw = np.concatenate([HW, HW])
    terms = terms_of(make_retina(), features, both, hw, CLASSES)
    assert terms["loss_cls"] == pytest.approx(2 * 80 * 2 * np.log(2) / 9, rel=1e-5)
    # a slot of the batch without an image has no places, and counts nothing
    terms = terms_of(make_retina(), features, both, np.float32([[32, 32], [0, 0]]), CLASSES)
    assert terms["loss_cls"] == pytest.approx(80 * 2 * np.log(2) / 8, rel=1e-5)
    assert terms_of(make_retina(), features, both, 0 * hw, CLASSES) == {"loss_cls": 0, "loss_bbox": 0}


def detect(
    features: dict[int, np.ndarray], suppression: Suppression, per_level: int = 1000, hw: np.ndarray = HW
) -> tuple[Detections, DenseOutputs]:
    detector = make_retina()

    def run(features: Any, hw: Any) -> tuple[Detections, DenseOutputs]:
        outputs = detector.apply({}, Features(features), hw, CLASSES)
        return detector.detections(outputs, hw, Selection(per_level, suppression)), outputs

    return jax.jit(run)(features, hw)


@pytest.mark.parametrize("suppression", [NMS(max_detections=6), FastNMS(max_detections=6)])
def test_codes_follow_their_detection_by_index(suppression: Suppression) -> None:
    """Each place's code is its number; the index of a detection finds it across levels."""
    features = two_classes(codes=1)
    features[2][..., -1] = np.arange(64).reshape(8, 8)
    features[3][..., -1] = 64 + np.arange(16).reshape(4, 4)
    features[2][0, 3, 3, :2] = [2, -20]
    features[2][0, 3, 4, :2] = [1, -20]  # IoU .6 with the one before, of the same class
    features[2][0, 7, 7, :2] = [-20, 3]
    features[3][0, 1, 2, :2] = [4, 3.5]  # two classes of one place
    found, outputs = detect(features, suppression)
    valid = np.asarray(found.valid[0])
    np.testing.assert_array_equal(valid, np.arange(6) < 4)
    np.testing.assert_array_equal(found.index[0], [64 + 6, 64 + 6, 63, 27, 0, 0])
    np.testing.assert_array_equal(found.labels[0][valid], [0, 1, 1, 0])
    np.testing.assert_allclose(found.scores[0][valid], 1 / (1 + np.exp([-4, -3.5, -3, -2])), rtol=1e-5)
    places = np.clip(all_anchors(), 0, 32)[np.asarray(found.index[0])]
    np.testing.assert_allclose(found.boxes[0][valid], places[valid], atol=1e-4)
    np.testing.assert_array_equal(outputs.origins(found.index).codes[0, :, 0], found.index[0])


def test_the_best_of_a_level_are_chosen_by_their_likeliest_class() -> None:
    features = two_classes()
    features[2][0, 0, :3, 0] = [1, 2, 3]
    features[2][0, 5, 5, 1] = 2.5
    found, _ = detect(features, NMS(iou_threshold=1.0, max_detections=9), per_level=2)
    np.testing.assert_array_equal(found.index[0][found.valid[0]], [2, 45])


def test_a_place_with_one_nan_logit_is_no_detection() -> None:
    features = two_classes()
    features[2][0, 4, 4, :2] = [5, np.nan]
    features[2][0, 4, 5, :2] = [4, -np.inf]
    features[3][0, 1, 1] = [3, -20, np.nan, 0, 0, 0]
    features[2][0, 1, 1, :2] = [1, -20]
    for suppression in (NMS(max_detections=3), FastNMS(max_detections=3)):
        found, _ = detect(features, suppression)
        np.testing.assert_array_equal(found.index[0][found.valid[0]], [9])
        assert np.isfinite(found.boxes[0]).all()


@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_a_larger_canvas_changes_no_detection(fill: float) -> None:
    rng = np.random.default_rng(2)
    small = {level: rng.normal(size=(1, *hw, CLASSES + 4)).astype(np.float32) / 2 for level, hw in CELLS.items()}
    large = {level: np.full((1, *hw, CLASSES + 4), fill, np.float32) for level, hw in {2: (10, 12), 3: (5, 6)}.items()}
    for level, (height, width) in CELLS.items():
        large[level][:, :height, :width] = small[level]
    hw, targets = np.float32([[30, 27]]), truth_of([[4, 4, 20, 20]], labels=(1, 0, 0))
    found, expected = (detect(maps, NMS(max_detections=20), hw=hw)[0] for maps in (large, small))
    found, expected = (jax.tree.map(np.asarray, d.replace(index=None)) for d in (found, expected))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    terms, wanted = (terms_of(make_retina(), maps, targets, hw, CLASSES) for maps in (large, small))
    assert terms == pytest.approx(wanted, rel=1e-5)


def test_outputs_and_their_names() -> None:
    """Places, and logits and deltas in the same order, y, x, place; codes only where the head says some."""
    detector = make_retina()
    rng = np.random.default_rng(3)
    features = {level: rng.normal(size=(2, *hw, CLASSES + 4 + 3)).astype(np.float32) for level, hw in CELLS.items()}
    outputs = detector.apply({}, Features(features), np.float32([[32, 32], [17, 32]]), CLASSES)
    named = detector.intermediates(outputs, "dense")
    assert set(named) == {f"dense/{level}/{what}" for level in (2, 3) for what in ("logits", "deltas", "codes")}
    for level, (height, width) in CELLS.items():
        flat = features[level].reshape(2, height * width, -1)
        np.testing.assert_array_equal(named[f"dense/{level}/logits"], flat[..., :2])
        np.testing.assert_array_equal(named[f"dense/{level}/deltas"], flat[..., 2:6])
        np.testing.assert_array_equal(named[f"dense/{level}/codes"], flat[..., 6:])
    np.testing.assert_array_equal(jnp.concatenate(outputs.places), all_anchors())
    assert [int(e[1].sum()) for e in outputs.exists] == [6 * 8, 3 * 4]  # 17 rows are 24 with the padding
    plain = detector.apply({}, Features(two_classes()), HW, CLASSES)
    assert plain.codes is None
    assert set(detector.intermediates(plain, "rpn")) == {
        f"rpn/{i}/{what}" for i in (2, 3) for what in ("logits", "deltas")
    }


def test_the_prior_makes_first_losses_small() -> None:
    """Every place says 1 % of each class: the loss of background alone is about -log(0.99) * 0.75 * 0.01^2 a class."""
    detector = make_dense(pad_multiple=8)
    features = Features({level: jnp.zeros((1, 64 >> level, 64 >> level, 8)) for level in (3, 4, 5)})
    outputs, _ = jax.jit(lambda: detector.init_with_output(KEY, features, np.float32([[64, 64]]), 3))()
    for logits in outputs.logits:
        np.testing.assert_allclose(jax.nn.sigmoid(logits), 0.01, rtol=1e-5)
    terms, _ = detector.losses(outputs, np.float32([[64, 64]]), truth_of([]), KEY)
    number = sum(logits.size for logits in outputs.logits)
    np.testing.assert_allclose(terms["loss_cls"], -number * 0.75 * 0.01**2 * np.log(0.99), rtol=1e-3)
