"""Stages and branches around heads that say what they are told to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.models.roi.boxes import PredictedStage, TrainedStage, box_losses, move, of_class, sample
from jaxdet.models.roi.heads import MaskBranch
from jaxdet.models.roi.loop import by_stage, predict_boxes, predict_masks, slots_of, train_boxes, train_masks
from jaxdet.models.roi.masks import candidates
from jaxdet.models.roi.schedule import Stage
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.losses import BoxLoss, CrossEntropy, GIoU, SmoothL1
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Detections, Features, Masks, Proposals, Samples, Targets
from tests.models.small import make_mask_branch

K = 2
HW = jnp.array([[100.0, 100.0]])
KEY = jax.random.key(0)
NO_FEATURES = Features({})


@dataclasses.dataclass
class TellsBoxes:
    """Gives every box the same logits and deltas."""

    logits: tuple[float, ...] = (0.0, 0.0, 0.0)
    deltas: tuple[tuple[float, ...], ...] = ((0.0,) * 4, (0.0,) * 4)
    coder: DeltaCoder = DeltaCoder()
    box_loss: BoxLoss = SmoothL1(1e-9)  #: as good as the absolute difference
    class_loss: CrossEntropy = CrossEntropy()

    def __call__(
        self, features: Features, boxes: jax.Array, valid: jax.Array, num_classes: int
    ) -> tuple[jax.Array, jax.Array]:
        logits, deltas = jnp.asarray(self.logits), jnp.asarray(self.deltas)
        return tuple(jnp.broadcast_to(a, (*valid.shape, *a.shape)) for a in (logits, deltas))


@dataclasses.dataclass
class TellsMasks:
    """Gives every pixel the label times the number of passes; a pass of this branch counts ``by``."""

    linked: bool = True
    by: float = 1.0
    method: None = None  # of sampling

    def crops(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.zeros((boxes.shape[0] * boxes.shape[1], 1, 1, 1))

    def empty_features(self, crops: jax.Array) -> jax.Array:
        return crops

    def features(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        return previous + self.by if self.linked else crops + self.by

    def logits(self, features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
        logits = labels * features.reshape(labels.shape)
        return jnp.broadcast_to(logits[..., None, None], (*labels.shape, 2, 2))


def make_targets(fill: float = np.nan) -> Targets:
    """Objects of class 1 and 0, a crowd, an empty slot."""
    boxes = np.float32([[[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 90, 90], [fill] * 4]])
    targets = Targets(
        boxes=boxes,
        labels=np.int32([[1, 0, 1, 9]]),
        masks=Masks(np.ones((1, 4, 2, 2), np.uint8), boxes),
        crowd=np.array([[False, False, True, False]]),
        valid=np.array([[True, True, True, False]]),
    )
    return jax.tree.map(jnp.asarray, targets)


def make_proposals() -> Proposals:
    boxes = np.float32([[[20, 20, 40, 38], [50, 50, 90, 90], [0, 0, 10, 4], [0, 0, 10, 10], [np.nan] * 4]])
    return Proposals(boxes, np.ones((1, 5), np.float32), np.array([[True, True, True, False, False]]))


STAGE = Stage(sampler=Sampler(8, 0.5, "first"), matcher=Matcher(0.5, 0.5, 0.5))


def samples_of(targets: Targets | None = None) -> Samples:
    return sample(STAGE, make_proposals(), make_targets() if targets is None else targets, K, KEY)


def train(heads: list[Any], stages: tuple[Stage, ...], proposals: Proposals | None = None) -> list[TrainedStage]:
    proposals = jax.tree.map(jnp.asarray, make_proposals() if proposals is None else proposals)
    return train_boxes(heads, stages, NO_FEATURES, proposals, make_targets(), HW, K, KEY)


def test_samples_by_hand() -> None:
    """Both objects stand for themselves, the first proposal for the second; crowd and small overlap are background."""
    samples = samples_of()
    np.testing.assert_array_equal(samples.valid[0], np.arange(8) < 5)
    np.testing.assert_array_equal(samples.positive[0], np.arange(8) < 3)
    np.testing.assert_array_equal(samples.is_truth[0], np.arange(8) < 2)
    np.testing.assert_array_equal(samples.gt_index[0], [0, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(samples.labels[0], [1, 0, 0, K, K, K, K, K])
    np.testing.assert_array_equal(
        samples.boxes[0, :5], [[0, 0, 10, 10], [20, 20, 40, 40], [20, 20, 40, 38], [50, 50, 90, 90], [0, 0, 10, 4]]
    )


def test_box_losses_by_hand() -> None:
    """Uniform logits: log 3 each; the third box needs dy = 1/18 and dh = log(20/18), the other two nothing."""
    targets, samples = make_targets(), samples_of()
    logits, deltas = TellsBoxes()(NO_FEATURES, samples.boxes, samples.valid, K)

    def losses(deltas: jax.Array, **changes: Any) -> dict[str, jax.Array]:
        return box_losses(TellsBoxes(**changes), logits, deltas, samples, targets)

    found = losses(deltas)
    np.testing.assert_allclose(found["loss_cls"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(found["loss_bbox"], (1 / 18 + np.log(20 / 18)) / 5, rtol=1e-5)
    smooth = losses(deltas, box_loss=SmoothL1(1.0))
    np.testing.assert_allclose(smooth["loss_bbox"], (1 / 18**2 + np.log(20 / 18) ** 2) / 2 / 5, rtol=1e-5)
    # Two of the five are of class 0, one of class 1, and two are background.
    rare = losses(deltas, class_loss=CrossEntropy(weights=(1.0, 8.0)))
    np.testing.assert_allclose(rare["loss_cls"], np.log(3) * (2 + 8 + 2) / 5, rtol=1e-6)
    by_overlap = losses(deltas, box_loss=GIoU())
    np.testing.assert_allclose(by_overlap["loss_bbox"], (1 - 18 / 20) / 5, rtol=1e-5)
    # deltas of other classes and of negatives
    only_own = deltas.at[0, 0, 0].set(5.0).at[0, 1:3, 1].set(5.0).at[0, 3:].set(5.0)
    for changes in ({}, {"box_loss": SmoothL1(1.0)}, {"box_loss": GIoU()}):
        expected = losses(deltas, **changes)["loss_bbox"]
        np.testing.assert_allclose(losses(only_own, **changes)["loss_bbox"], expected, rtol=1e-6)


def test_what_a_mask_loss_looks_at_is_harmless() -> None:
    """The slots that may be positive; those that are not hold the unit box and label 0."""
    few = candidates(samples_of(), STAGE)
    assert few.valid.shape == (1, 4)
    np.testing.assert_array_equal(few.positive[0], [True, True, True, False])
    np.testing.assert_array_equal(few.labels[0], [1, 0, 0, 0])
    np.testing.assert_array_equal(few.boxes[0, 2:], [[20, 20, 40, 38], [0, 0, 1, 1]])


def test_mask_loss_reads_the_bitmap_of_the_class() -> None:
    """Logits equal the label, all targets are 1: softplus(-1) for class 1, softplus(0) for class 0, twice."""
    samples = samples_of()

    def loss(samples: Samples) -> jax.Array:
        trained = train_masks([TellsMasks()], (STAGE,), NO_FEATURES, [samples], make_targets(), K)
        return trained[0].losses["loss_mask"]

    np.testing.assert_allclose(loss(samples), (np.log1p(np.exp(-1)) + 2 * np.log(2)) / 3, rtol=1e-5)
    assert loss(samples.replace(positive=jnp.zeros_like(samples.positive))) == 0


def test_mask_losses_weigh_by_stage() -> None:
    """The second stage has one pass before its own, so its logits are twice the label."""
    stages = (STAGE, dataclasses.replace(STAGE, weight=0.5, mask_passes=1))
    first, last = train_masks([TellsMasks()], stages, NO_FEATURES, [samples_of()] * 2, make_targets(), K)
    np.testing.assert_allclose(first.losses["loss_mask"], (np.log1p(np.exp(-1)) + 2 * np.log(2)) / 3, rtol=1e-5)
    np.testing.assert_allclose(last.losses["loss_mask"], (np.log1p(np.exp(-2)) + 2 * np.log(2)) / 6, rtol=1e-5)
    np.testing.assert_array_equal(last.view.logits[0, :3, 0, 0], [2, 0, 0])
    np.testing.assert_array_equal(last.bitmaps[0, :3], 1)
    np.testing.assert_array_equal(last.bitmaps[0, 3:], 0)


def test_passes_are_by_the_mask_heads_of_the_first_stages() -> None:
    """Heads 0, 0, 1, whose passes count 1 and 10: the third stage sees 1 + 1 + 10 of class 1."""
    stages = tuple(dataclasses.replace(STAGE, head=h, mask_passes=t) for t, h in enumerate((0, 0, 1)))
    branches = [TellsMasks(), TellsMasks(by=10.0)]
    trained = train_masks(branches, stages, NO_FEATURES, [samples_of()] * 3, make_targets(), K)
    assert [float(stage.view.logits[0, 0, 0, 0]) for stage in trained] == [1, 2, 12]


def test_a_real_mask_branch_returns_the_channel_of_the_label() -> None:
    branch = make_mask_branch()
    features = Features({level: jnp.ones((1, 64 >> level, 64 >> level, 4)) for level in (2, 3, 4, 5)})
    boxes, labels, valid = jnp.array([[[0.0, 0, 20, 20]] * 3]), jnp.array([[0, 2, 1]]), jnp.ones((1, 3), bool)

    def masks(branch: MaskBranch) -> jax.Array:
        crops = branch.crops(features, boxes, valid)
        return branch.logits(branch.features(crops, branch.empty_features(crops)), labels, 3)

    variables = branch.init(KEY, method=masks)
    variables["params"]["head"]["logits"]["kernel"] *= 0
    variables["params"]["head"]["logits"]["bias"] = jnp.array([10.0, 20.0, 30.0])
    logits = branch.apply(variables, method=masks)
    assert logits.shape == (1, 3, 12, 12)
    np.testing.assert_array_equal(logits[0, :, 0, 0], [10.0, 30.0, 20.0])


def test_of_class_takes_the_only_column_where_there_is_one() -> None:
    deltas, labels = jnp.arange(24.0).reshape(1, 2, 3, 4), jnp.array([[2, 0]])
    np.testing.assert_array_equal(of_class(deltas, labels)[0, :, 0], [8, 12])
    np.testing.assert_array_equal(of_class(deltas[:, :, :1], labels)[0, :, 0], [0, 12])
    np.testing.assert_array_equal(of_class(deltas, jnp.array([[3, 3]]))[0, :, 0], [8, 20])  # background: any column


def test_move_follows_the_likeliest_class_that_is_not_background() -> None:
    boxes = jnp.array([[[10.0, 10, 20, 20], [90.0, 90, 100, 100]]])
    told = TellsBoxes(logits=(1.0, 2.0, 9.0), deltas=((5.0, 5, 0, 0), (0.5, 0, 0, 0)))
    moved = move(told, boxes, *told(NO_FEATURES, boxes, boxes[..., 0] > 0, K), HW)
    np.testing.assert_allclose(moved[0], [[15, 10, 25, 20], [95, 90, 100, 100]])


def test_stages_at_test_begin_where_the_one_before_ended() -> None:
    """The first head moves a box by its width, twice; the second down by its height, or twice that for class 1."""
    heads = [
        TellsBoxes((0.0, 3.0, 0.0), ((1.0, 0, 0, 0),) * 2),
        TellsBoxes((3.0, 0.0, 0.0), ((0.0, 1, 0, 0), (0.0, 2, 0, 0))),
    ]
    proposals = Proposals(jnp.array([[[0.0, 0, 10, 10]]]), jnp.ones((1, 1)), jnp.ones((1, 1), bool))
    seen: list[PredictedStage] = predict_boxes(heads, (Stage(0), Stage(0), Stage(1)), NO_FEATURES, proposals, HW, K)
    np.testing.assert_allclose(jnp.stack([stage.logits[0, 0] for stage in seen]).mean(0), [1, 2, 0])
    np.testing.assert_allclose(
        [stage.boxes[0, 0] for stage in seen], [[10, 0, 20, 10], [20, 0, 30, 10], [20, 10, 30, 20]]
    )
    np.testing.assert_allclose(seen[-1].by_class[0, 0], [[20, 10, 30, 20], [20, 20, 30, 30]])


def found_two() -> Detections:
    """Of class 0 and of class 1."""
    labels, yes = jnp.array([[0, 1]]), jnp.ones((1, 2), bool)
    return Detections(jnp.zeros((1, 2, 4)), jnp.ones((1, 2)), labels, yes, jnp.zeros((1, 2), int))


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_masks_at_test_average_probabilities() -> None:
    drawn = predict_masks([TellsMasks()], (Stage(), Stage()), NO_FEATURES, found_two(), K)
    np.testing.assert_allclose(drawn.probabilities[0, :, 0, 0], [0.5, (sigmoid(1) + sigmoid(2)) / 2], rtol=1e-6)
    np.testing.assert_array_equal(drawn.view.logits[0, :, 0, 0], [0, 2])


def test_branches_that_are_not_linked_look_at_their_own_crops() -> None:
    branches = [TellsMasks(linked=False), TellsMasks(linked=False, by=3.0)]
    drawn = predict_masks(branches, (Stage(0), Stage(1)), NO_FEATURES, found_two(), K)
    np.testing.assert_allclose(drawn.probabilities[0, 1, 0, 0], (sigmoid(1) + sigmoid(3)) / 2, rtol=1e-6)


def test_stages_weigh_and_hand_on_the_moved_boxes() -> None:
    """The first stage moves boxes out of every object's reach, so the second has only the objects themselves."""
    away = TellsBoxes(deltas=((9.0, 0, 0, 0),) * 2)
    stages = (dataclasses.replace(STAGE, head=0), dataclasses.replace(STAGE, head=1, weight=0.5))
    trained = train([away, TellsBoxes()], stages)
    terms, metrics = by_stage([t.losses for t in trained]), by_stage([t.metrics for t in trained])
    assert set(terms) == {f"s{t}.loss_{name}" for t in range(2) for name in ("cls", "bbox")}
    np.testing.assert_allclose(terms["s0.loss_cls"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(terms["s1.loss_cls"], np.log(3) / 2, rtol=1e-6)
    assert (metrics["s0.positives"], metrics["s1.positives"]) == (3, 2)
    np.testing.assert_allclose(terms["s1.loss_bbox"], 0.0, atol=1e-6)


def test_moved_boxes_have_room_and_leave_out_the_ground_truth() -> None:
    """Three of the five samples are proposals; slots are those of the largest sampler, or of the proposals."""
    large = dataclasses.replace(STAGE, sampler=Sampler(11, 0.5, "first"))
    assert slots_of((STAGE, large)) == 11
    first, second = (stage.proposals for stage in train([TellsBoxes()], (STAGE, large)))
    np.testing.assert_array_equal(first.valid[0], np.isin(np.arange(11), (2, 3, 4)))
    np.testing.assert_array_equal(first.boxes[0, 2:5], [[20, 20, 40, 38], [50, 50, 90, 90], [0, 0, 10, 4]])
    assert second.boxes.shape == (1, 11, 4)
    small = dataclasses.replace(STAGE, sampler=Sampler(3, 0.5, "first"))
    assert train([TellsBoxes()], (small,))[0].proposals.boxes.shape == (1, 5, 4)


def test_interleaved_masks_train_on_the_moved_boxes() -> None:
    """Moved onto the second object, the first proposal overlaps it by all; the box branch is judged by what it got."""
    down = TellsBoxes(deltas=((0.0, 1 / 18, 0, float(np.log(20 / 18))),) * 2)
    plain, interleaved = (train([down], (dataclasses.replace(STAGE, interleaved=how),))[0] for how in (False, True))
    np.testing.assert_array_equal(plain.samples.boxes[0, 2], [20, 20, 40, 38])
    np.testing.assert_allclose(interleaved.samples.boxes[0, 2], [20, 20, 40, 40], rtol=1e-6)
    np.testing.assert_array_equal(interleaved.samples.positive[0], np.arange(8) < 3)
    np.testing.assert_array_equal(interleaved.samples.is_truth[0], np.arange(8) < 2)
    for name in ("losses", "metrics", "proposals"):
        jax.tree.map(np.testing.assert_array_equal, getattr(plain, name), getattr(interleaved, name))


def test_no_gradient_flows_through_moved_boxes() -> None:
    def moved(delta: jax.Array) -> jax.Array:
        return train([TellsBoxes(deltas=((delta, 0, 0, 0),) * 2)], (STAGE,))[0].proposals.boxes.sum()

    assert moved(jnp.float32(0.1)) != moved(jnp.float32(0.0))
    assert jax.grad(moved)(jnp.float32(0.1)) == 0


def test_metrics_count_positives_by_overlap() -> None:
    """Of boxes that are 95, 55 and 40 % of an object two are positive; the objects themselves do not count."""
    boxes = np.float32([[[0, 0, 10, 9.5], [20, 20, 40, 31], [0, 0, 10, 4], [np.nan] * 4]])
    proposals = Proposals(jnp.asarray(boxes), jnp.ones((1, 4)), jnp.arange(4)[None] < 3)
    metrics = train([TellsBoxes()], (STAGE,), proposals)[0].metrics
    assert metrics["positives"] == 4
    assert [metrics[f"positives_iou{t}"] for t in (50, 60, 70, 80, 90)] == [1, 0, 0, 0, 1]


def test_terms_of_one_stage_have_no_prefix() -> None:
    assert set(by_stage([train([TellsBoxes()], (STAGE,))[0].losses])) == {"loss_cls", "loss_bbox"}


def test_samples_are_per_image() -> None:
    """Two images with each other's ground truth."""
    one, proposals = make_targets(), make_proposals()
    none = one.replace(valid=np.zeros((1, 4), bool))
    targets = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, none)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), proposals)
    samples = sample(STAGE, twice, targets, K, KEY)
    alone: Samples = sample(STAGE, proposals, one, K, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:1], b), samples, alone)
    np.testing.assert_array_equal(samples.positive[1], False)
    np.testing.assert_array_equal(samples.valid[1], np.arange(8) < 3)
