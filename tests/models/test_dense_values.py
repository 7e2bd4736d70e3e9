"""The dense detector with what YOLACT and FCOS bring: hard negatives, a quality of places, pairs of place and class."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.dense import DenseDetector, DenseOutputs, Selection
from jaxdet.nn.heads.dense import DenseMaps, FCOSHead
from jaxdet.ops.anchors import Anchors, Points
from jaxdet.ops.boxes import DistanceCoder
from jaxdet.ops.losses import CrossEntropy, GIoU
from jaxdet.ops.matching import CentreSampling, Matcher
from jaxdet.ops.sampling import HardNegatives, Sampler
from jaxdet.ops.suppression import NMS, FastNMS, Suppression
from jaxdet.structures import Detections, Features, Targets
from tests.models.small import as_they_are
from tests.models.test_dense import (
    CELLS,
    CLASSES,
    HW,
    KEY,
    expected_matches,
    make_retina,
    slow_box_loss,
    terms_of,
    truth_of,
    two_classes,
)

BOX = [4, 8, 24, 24]
"""Of the places of `test_dense`, 8 are positive for it and 72 negative."""


def both(*targets: Targets) -> Targets:
    together: Targets = jax.tree.map(lambda *leaves: np.concatenate(leaves), *targets)
    return together


def noise(columns: int, images: int = 1, seed: int = 0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {level: rng.normal(size=(images, *hw, columns)).astype(np.float32) for level, hw in CELLS.items()}


def flat(maps: dict[int, np.ndarray], image: int = 0) -> np.ndarray:
    return np.concatenate([x[image].reshape(-1, x.shape[-1]) for x in maps.values()])


# Softmax and hard negatives.


def yolact(**changes: Any) -> DenseDetector:
    settings = {"class_loss": CrossEntropy(), "mining": HardNegatives(3.0), "matcher": Matcher(0.5, 0.4, 0.0)}
    return make_retina(**settings | changes)


def slow_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64))
    return -np.log(exponents[np.arange(len(labels)), labels] / exponents.sum(1))


@pytest.mark.parametrize("least", [0, 1])
def test_all_positives_and_three_times_as_many_of_the_hardest_negatives(least: int) -> None:
    """Of an image without objects all places count; it counts ``least_positives`` in the number of positives."""
    maps = noise(CLASSES + 1 + 4, 2)
    targets = both(truth_of([BOX], labels=(1, 0, 0)), truth_of([]))
    found = terms_of(yolact(least_positives=least), maps, targets, np.tile(HW, (2, 1)), CLASSES)
    positive, negative = expected_matches([BOX])
    labels = np.full(80, CLASSES)
    labels[positive] = 1
    losses = slow_entropies(flat(maps)[:, : CLASSES + 1], labels)
    hardest = sorted(losses[negative], reverse=True)[: 3 * len(positive)]
    other = slow_entropies(flat(maps, 1)[:, : CLASSES + 1], np.full(80, CLASSES))
    expected = (losses[positive].sum() + sum(hardest) + other.sum()) / (len(positive) + least)
    assert found["loss_cls"] == pytest.approx(expected, rel=1e-4)


def test_places_that_were_not_mined_have_no_gradient() -> None:
    maps, detector = noise(CLASSES + 1 + 4), yolact()
    targets = truth_of([BOX])

    def loss(maps: Any) -> jax.Array:
        outputs = detector.apply({}, Features(maps), HW, CLASSES)
        return detector.losses(outputs, HW, targets, KEY)[0]["loss_cls"]

    gradient = flat(jax.jit(jax.grad(loss))(maps))
    positive, _ = expected_matches([BOX])
    assert ((gradient[:, : CLASSES + 1] != 0).all(1)).sum() == 4 * len(positive)
    assert (gradient[positive, : CLASSES + 1] != 0).all()


@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_mining_does_not_look_at_the_padding(fill: float) -> None:
    small = noise(CLASSES + 1 + 4)
    large = {level: np.full((1, *hw, CLASSES + 5), fill, np.float32) for level, hw in {2: (10, 12), 3: (5, 6)}.items()}
    for level, (height, width) in CELLS.items():
        large[level][:, :height, :width] = small[level]
    terms, wanted = (terms_of(yolact(), maps, truth_of([BOX]), HW, CLASSES) for maps in (large, small))
    assert terms == pytest.approx(wanted, rel=1e-5)


def test_the_weight_of_the_box_loss_is_its_own() -> None:
    maps = two_classes()
    once, thrice = (terms_of(make_retina(box_weight=w), maps, truth_of([BOX]), classes=CLASSES) for w in (1.0, 3.0))
    positive, _ = expected_matches([BOX])
    assert once["loss_bbox"] == pytest.approx(slow_box_loss(positive, [float(x) for x in BOX]) / 8, rel=1e-4)
    assert thrice["loss_bbox"] == pytest.approx(3 * once["loss_bbox"], rel=1e-6)
    assert thrice["loss_cls"] == once["loss_cls"]


@pytest.mark.parametrize("least", [0, 1, 20])
def test_an_image_counts_that_many_positives_at_least(least: int) -> None:
    maps = {level: np.concatenate([x] * 2) for level, x in two_classes().items()}
    for level in maps:
        maps[level][..., :CLASSES] = 0
    detector, hw = make_retina(least_positives=least), np.tile(HW, (2, 1))
    terms = terms_of(detector, maps, both(truth_of([BOX]), truth_of([])), hw, CLASSES)
    assert terms["loss_cls"] == pytest.approx(2 * 80 * 2 * np.log(2) / (max(8, least) + least), rel=1e-5)
    empty = terms_of(detector, maps, both(truth_of([]), truth_of([])), hw, CLASSES)
    assert empty["loss_cls"] == pytest.approx(2 * 80 * 2 * np.log(2) / max(2 * least, 1), rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("box_weight", -1.0), ("box_weight", np.nan), ("least_positives", -1)])
def test_ranges(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"DenseDetector\.{name}: expected a number from 0"):
        make_retina(**{name: value})
    with pytest.raises(ValueError, match=r"Selection\.pairs_above: expected a number from 0 to 1, got 1\.5"):
        Selection(pairs_above=1.5)
    with pytest.raises(ValueError, match=r"Selection\.per_level"):
        Selection(per_level=0)
    with pytest.raises(
        ValueError, match=r'Selection\.clip: expected "before" or "after" \(suppression\), got \'never\''
    ):
        Selection(clip="never")  # type: ignore[arg-type]


# Points with a quality.

CELLS_OF_POINTS = Points(levels=(2, 3))


class Rates(nn.Module):
    """The first channels are logits, four more distances, one the quality, the rest codes."""

    @nn.compact
    def __call__(self, level: jax.Array, num_classes: int, number: int = 0) -> DenseMaps:
        logits, deltas, quality, codes = jnp.split(level, [num_classes, num_classes + 4, num_classes + 5], axis=-1)
        return DenseMaps(logits, deltas, as_they_are(codes), quality)


def fcos(**changes: Any) -> DenseDetector:
    settings = {"head": Rates(), "places": CELLS_OF_POINTS, "coder": DistanceCoder(), "matcher": CentreSampling()}
    return make_retina(**settings | {"box_loss": GIoU(), "least_positives": 0} | changes)


def silent() -> dict[int, np.ndarray]:
    """No place has a class; boxes of 2 x 2 cells, a quality of one half."""
    maps = {level: np.zeros((1, *hw, CLASSES + 5), np.float32) for level, hw in CELLS.items()}
    for level in maps:
        maps[level][..., :CLASSES], maps[level][..., CLASSES : CLASSES + 4] = -20, 1
    return maps


def slow_giou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    hull = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
    return float(shared / union - (hull - union) / hull)


def points_of(box: list[int], maps: dict[int, np.ndarray]) -> list[tuple[float, float, float]]:
    """Of each cell that is positive for an object: its centerness, the loss of its box, its logit of quality."""
    found = []
    masks_centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    for level, (height, width) in CELLS.items():
        side = 2**level
        for i, j in np.ndindex(height, width):
            x, y = (j + 0.5) * side, (i + 0.5) * side
            left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
            near = abs(x - masks_centre[0]) < 1.5 * side and abs(y - masks_centre[1]) < 1.5 * side
            size = max(left, top, right, bottom)
            if near and min(left, top, right, bottom) > 0 and (size <= 32 if level == 2 else size >= 32):
                said = maps[level][0, i, j]
                reach = side * said[CLASSES : CLASSES + 4]
                predicted = np.array([x - reach[0], y - reach[1], x + reach[2], y + reach[3]])
                centred = (min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)) ** 0.5
                found.append((centred, 1 - slow_giou(predicted, np.float64(box)), float(said[CLASSES + 4])))
    return found


@pytest.mark.parametrize("sampled", [False, True])
def test_box_losses_are_weighted_by_the_centerness_that_is_trained_too(sampled: bool) -> None:
    rng = np.random.default_rng(0)
    maps = noise(CLASSES + 5)
    for level in maps:
        maps[level][..., CLASSES : CLASSES + 4] = rng.uniform(0.5, 3, (1, *CELLS[level], 4))
    box = [3, 5, 26, 22]
    points = points_of(box, maps)
    assert len(points) > 5
    # A sampler that takes all of them: only the number that losses are divided by counts negatives too.
    detector = fcos(sampler=Sampler(160, 0.5, "first")) if sampled else fcos()
    terms = terms_of(detector, maps, truth_of([box], labels=(1, 0, 0)), classes=CLASSES)
    assert set(terms) == {"loss_cls", "loss_bbox", "loss_centerness"}
    number = 80 if sampled else len(points)
    boxes = sum(c * loss for c, loss, _ in points) / sum(c for c, _, _ in points)
    assert terms["loss_bbox"] == pytest.approx(boxes, rel=1e-4)
    rated = -sum(c * np.log(1 / (1 + np.exp(-q))) + (1 - c) * np.log(1 / (1 + np.exp(q))) for c, _, q in points)
    assert terms["loss_centerness"] == pytest.approx(rated / number, rel=1e-4)
    twice = terms_of(fcos(box_weight=2.0), maps, truth_of([box]), classes=CLASSES)
    assert twice["loss_bbox"] == pytest.approx(2 * boxes, rel=1e-4)


@pytest.mark.parametrize("hw", [HW, 0 * HW])
def test_without_objects_only_classes_have_a_loss(hw: np.ndarray) -> None:
    detector, maps, targets = fcos(), noise(CLASSES + 5), truth_of([])

    def total(maps: Any) -> Any:
        terms, _ = detector.losses(detector.apply({}, Features(maps), hw, CLASSES), hw, targets, KEY)
        return sum(terms.values()), terms

    (_, terms), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(maps)
    assert float(terms["loss_bbox"]) == float(terms["loss_centerness"]) == 0
    assert (float(terms["loss_cls"]) > 0) == bool(hw.any())
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert not any(np.asarray(g)[..., CLASSES:].any() for g in gradients.values())


def detect(
    maps: dict[int, np.ndarray], selection: Selection, jit: bool = True, **changes: Any
) -> tuple[Detections, DenseOutputs]:
    detector = fcos(**changes)

    def run(maps: Any) -> tuple[Detections, DenseOutputs]:
        outputs = detector.apply({}, Features(maps), HW, CLASSES)
        return detector.detections(outputs, HW, selection), outputs

    return (jax.jit(run) if jit else run)(maps)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def rows(found: Detections) -> list[tuple[int, int]]:
    """Index and label of the detections, in order."""
    valid = np.asarray(found.valid[0])
    return [(int(i), int(k)) for i, k in zip(found.index[0][valid], found.labels[0][valid], strict=True)]


@pytest.mark.parametrize("suppression", [NMS(0.05, 0.6, 6), FastNMS(0.05, 0.6, 9, 6)])
def test_scores_are_times_the_quality(suppression: Suppression) -> None:
    """A place that is less likely but fits better comes first, and a threshold is that of the product."""
    maps = silent()
    maps[2][0, 1, 1] = [logit(0.9), -20, 1, 1, 1, 1, logit(0.5)]
    maps[2][0, 6, 6] = [logit(0.6), -20, 1, 1, 1, 1, logit(0.9)]
    maps[3][0, 1, 2] = [-20, logit(0.8), 1, 1, 1, 1, logit(0.05)]
    found, _ = detect(maps, Selection(1000, suppression))
    assert rows(found) == [(54, 0), (9, 0)]
    np.testing.assert_allclose(found.scores[0, :2], [0.54, 0.45], rtol=1e-5)
    np.testing.assert_allclose(found.boxes[0, 0], [22, 22, 30, 30], atol=1e-4)


@pytest.mark.parametrize("jit", [True, False])
def test_pairs_are_judged_by_their_class_before_the_quality(jit: bool) -> None:
    """Two classes of one place stay; what is likely stays however badly it fits; nothing without area does."""
    maps = silent()
    maps[2][0, 1, 1] = [logit(0.9), logit(0.7), 1, 1, 1, 1, logit(0.5)]
    maps[2][0, 1, 2] = [logit(0.5), logit(0.04), 2, 1, 0, 1, logit(0.5)]  # the same box, of the same class
    maps[2][0, 6, 6] = [-20, logit(0.8), 1, 1, 1, 1, logit(0.01)]
    maps[2][0, 4, 4] = [logit(0.99), -20, 0, 1, 0, 1, 5]  # no width
    maps[3][0, 3, 3] = [logit(0.95), -20, -1, 1, 3, 1, 5]  # none inside of the image
    maps[3][0, 0, 0] = [logit(0.3), logit(0.06), 1, 1, 1, 1, 20]
    selection = Selection(1000, NMS(None, 0.6, 9), pairs_above=0.05)
    found, _ = detect(maps, selection, jit)
    expected = {(9, 0): 0.45, (9, 1): 0.35, (64, 0): 0.3, (64, 1): 0.06, (54, 1): 0.008}
    assert rows(found) == list(expected)
    np.testing.assert_allclose(found.scores[0, :5], list(expected.values()), rtol=1e-4)
    np.testing.assert_allclose(found.boxes[0, 0], [2, 2, 10, 10], atol=1e-5)
    np.testing.assert_allclose(found.boxes[0, 2], [0, 0, 12, 12], atol=1e-5)  # cut to the image
    np.testing.assert_array_equal(found.index[0, 5:], 0)


@pytest.mark.parametrize("jit", [True, False])
def test_boxes_are_cut_to_the_image_before_or_after_suppression(jit: bool) -> None:
    """What lies outside tells two boxes apart; a box that lies outside as a whole is one of three until the end."""
    maps = silent()
    maps[3][0, 3, 3] = [logit(0.95), -20, -1, 1, 3, 1, 5]  # none inside of the image
    maps[2][0, 1, 0] = [logit(0.9), -20, 5, 1, 2, 1, 5]  # from -18 to 10
    maps[2][0, 1, 1] = [logit(0.8), -20, 1.5, 1, 1, 1, 5]  # from 0 to 10
    maps[2][0, 6, 6] = [logit(0.7), -20, 1, 1, 1, 1, 5]
    suppression = NMS(None, 0.6, 3)
    before, _ = detect(maps, Selection(1000, suppression, pairs_above=0.05), jit)
    after, _ = detect(maps, Selection(1000, suppression, pairs_above=0.05, clip="after"), jit)
    assert rows(before) == [(8, 0), (54, 0)]
    assert rows(after) == [(8, 0), (9, 0)]
    np.testing.assert_array_equal(after.valid[0], [True, True, False])
    np.testing.assert_allclose(after.boxes[0, :2], [[0, 2, 10, 10]] * 2, atol=1e-5)
    np.testing.assert_allclose(after.scores[0, :2], before.scores[0, 0] * np.array([1, 8 / 9]), rtol=1e-5)
    np.testing.assert_array_equal(after.index[0, 2:], 0)


def test_the_best_pairs_of_a_level_by_class_alone() -> None:
    """Three pairs of a level: two of them are of one place, and the quality has no say."""
    maps = silent()
    maps[2][0, 0, 0] = [logit(0.9), logit(0.8), 1, 1, 1, 1, -3]
    maps[2][0, 4, 4] = [logit(0.7), -20, 1, 1, 1, 1, -3]
    maps[2][0, 7, 7] = [logit(0.6), -20, 1, 1, 1, 1, 5]
    found, _ = detect(maps, Selection(3, NMS(None, 0.6, 9), pairs_above=0.05))
    assert rows(found) == [(0, 0), (0, 1), (36, 0)]
    # Exactly at the threshold is not above it.
    maps = silent()
    maps[2][0, 0, 0, :2] = [0, 0.1]
    found, _ = detect(maps, Selection(3, NMS(None, 0.6, 9), pairs_above=0.5))
    assert rows(found) == [(0, 1)]
    found, _ = detect(maps, Selection(3, NMS(None, 1.0, 9), pairs_above=0.0))
    assert len(rows(found)) == 6  # every pair is above 0: three of each level


def test_pairs_without_a_quality() -> None:
    maps = two_classes()
    maps[2][0, 3, 3, :2] = [2, 1]
    detector = make_retina()

    def run(maps: Any) -> Detections:
        outputs = detector.apply({}, Features(maps), HW, CLASSES)
        return detector.detections(outputs, HW, Selection(1000, NMS(None, 0.5, 4), pairs_above=0.05))

    found = jax.jit(run)(maps)
    assert rows(found) == [(27, 0), (27, 1)]
    np.testing.assert_allclose(found.scores[0, :2], 1 / (1 + np.exp([-2.0, -1.0])), rtol=1e-5)


def test_what_is_no_number_is_no_detection() -> None:
    maps = silent()
    maps[2][0, 0, 0] = [5, np.nan, 1, 1, 1, 1, 0]
    maps[2][0, 0, 4] = [5, -20, 1, np.nan, 1, 1, 0]
    maps[2][0, 4, 0] = [5, -20, 1, 1, 1, 1, np.nan]
    maps[2][0, 4, 4] = [1, -20, 1, 1, 1, 1, 0]
    for selection in (
        Selection(1000, NMS(None, 0.6, 3), pairs_above=0.05),
        Selection(1000, NMS(0.05, 0.6, 3)),
        Selection(1000, FastNMS(0.05, 0.6, 9, 3)),
    ):
        found, _ = detect(maps, selection)
        assert rows(found) == [(36, 0)]
        np.testing.assert_allclose(found.boxes[0, 0], [14, 14, 22, 22], atol=1e-5)


def test_pairs_and_fast_nms_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="pairs_above=None"):
        detect(silent(), Selection(1000, FastNMS(), pairs_above=0.05))


def test_origins_are_the_places_and_codes_of_an_index() -> None:
    """Of all levels in order; each place's code is its number, and another one in the second image."""
    maps = {level: np.concatenate([x, x]) for level, x in silent().items()}
    numbers = np.split(np.arange(80.0), [64])
    for (level, x), number in zip(maps.items(), numbers, strict=True):
        code = np.stack([number, 100 + number]).reshape(*x.shape[:3], 1)
        maps[level] = np.concatenate([x, code, -code], -1).astype(np.float32)
    outputs = fcos().apply({}, Features(maps), np.tile(HW, (2, 1)), CLASSES)
    index = np.int32([[0, 63, 64, 79], [7, 7, 65, 0]])
    origins = outputs.origins(jnp.asarray(index))
    expected = index + np.array([[0], [100]])
    np.testing.assert_array_equal(origins.codes, np.stack([expected, -expected], -1))
    places = np.concatenate([CELLS_OF_POINTS.grid(level, *CELLS[level]) for level in CELLS])
    np.testing.assert_array_equal(origins.places, places[index])
    none = fcos().apply({}, Features(silent()), HW, CLASSES).origins(jnp.asarray(index[:1]))
    assert none.codes is None
    np.testing.assert_array_equal(none.places, places[index[:1]])
    named = fcos().intermediates(outputs, "dense")
    assert {"dense/2/quality", "dense/3/quality", "dense/2/codes"} <= set(named)
    np.testing.assert_array_equal(named["dense/3/quality"], np.zeros((2, 16)))


def test_a_head_of_points_with_anchors_is_an_error_that_says_how_many() -> None:
    detector = make_retina(head=FCOSHead(channels=4, convs=0, groups=2))
    maps = {level: np.zeros((1, *hw, 4), np.float32) for level, hw in CELLS.items()}
    points, anchors = (detector.clone(places=places) for places in (CELLS_OF_POINTS, Anchors(levels=(2, 3))))
    jax.eval_shape(lambda: points.init(KEY, Features(maps), HW, CLASSES))
    with pytest.raises(ValueError, match=r"have 3 .*: FCOSHead has a single one, take Points as model\.dense\.places"):
        jax.eval_shape(lambda: anchors.init(KEY, Features(maps), HW, CLASSES))
