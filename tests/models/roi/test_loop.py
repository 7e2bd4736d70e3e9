"""Steps and branches around heads that say what they are told to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxdet.models.branches import Head, box_losses, of_class
from jaxdet.models.finish import Finished
from jaxdet.models.loop import refine, test_boxes, train_boxes
from jaxdet.models.mask_loop import test_masks, train_masks
from jaxdet.models.repeat import Unrolled
from jaxdet.models.samples import sample
from jaxdet.models.schedule import Step

from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Proposals, Samples, Targets
from tests.models.small import make_head

# Not tests, though pytest would take them for such by their names.
test_masks.__test__ = False
test_boxes.__test__ = False

K = 2
HW = jnp.array([[100.0, 100.0]])
KEY = jax.random.key(0)


@dataclasses.dataclass
class Told:
    """A head that gives every box the same logits and deltas, and mask logits that equal the label."""

    logits: tuple[float, ...] = (0.0, 0.0, 0.0)
    deltas: tuple[tuple[float, ...], ...] = ((0.0,) * 4, (0.0,) * 4)
    coder: DeltaCoder = DeltaCoder()
    beta: float | None = None
    mask_head: object | None = None
    linked: bool = False

    def boxes(
        self, features: object, boxes: jax.Array, valid: jax.Array, num_classes: int
    ) -> tuple[jax.Array, jax.Array]:
        logits, deltas = jnp.asarray(self.logits), jnp.asarray(self.deltas)
        return tuple(jnp.broadcast_to(a, (*valid.shape, *a.shape)) for a in (logits, deltas))

    def mask_crops(self, features: object, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.zeros((boxes.shape[1], 1, 1, 1))

    def no_mask_features(self, crops: jax.Array) -> jax.Array:
        return crops

    def mask_features(self, crops: jax.Array, previous: jax.Array) -> jax.Array:
        """One more than in the pass before."""
        return previous + 1

    def mask_logits(self, features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
        """The label times the number of passes."""
        logits = labels * features.reshape(labels.shape)
        return jnp.broadcast_to(logits[..., None, None], (*labels.shape, 2, 2))


def make_targets(fill: float = np.nan) -> Targets:
    """Objects of class 1 and 0, a crowd, an empty slot."""
    boxes = np.float32([[[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 90, 90], [fill] * 4]])
    return Targets(
        boxes=boxes,
        labels=np.int32([[1, 0, 1, 9]]),
        masks=np.ones((1, 4, 2, 2), np.uint8),
        frames=boxes,
        crowd=np.array([[False, False, True, False]]),
        valid=np.array([[True, True, True, False]]),
    )


def make_proposals() -> Proposals:
    boxes = np.float32([[[20, 20, 40, 38], [50, 50, 90, 90], [0, 0, 10, 4], [0, 0, 10, 10], [np.nan] * 4]])
    return Proposals(boxes, np.ones((1, 5), np.float32), np.array([[True, True, True, False, False]]))


STEP = Step(sampler=Sampler(8, 0.5, "first"), matcher=Matcher(0.5, 0.5, 0.5))


def test_samples_by_hand() -> None:
    """Both objects stand for themselves, the first proposal for the second; crowd and small overlap are background."""
    samples = sample(STEP, make_proposals(), make_targets(), K, KEY)
    np.testing.assert_array_equal(samples.valid[0], np.arange(8) < 5)
    np.testing.assert_array_equal(samples.positive[0], np.arange(8) < 3)
    np.testing.assert_array_equal(samples.truth[0], np.arange(8) < 2)
    np.testing.assert_array_equal(samples.gt_index[0], [0, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(samples.labels[0], [1, 0, 0, K, K, K, K, K])
    np.testing.assert_array_equal(
        samples.boxes[0, :5], [[0, 0, 10, 10], [20, 20, 40, 40], [20, 20, 40, 38], [50, 50, 90, 90], [0, 0, 10, 4]]
    )


def test_box_losses_by_hand() -> None:
    """Uniform logits: log 3 each; the third box needs dy = 1/18 and dh = log(20/18), the other two nothing."""
    targets = jax.tree.map(jnp.asarray, make_targets())
    samples = sample(STEP, make_proposals(), targets, K, KEY)
    logits, deltas = Told().boxes(None, samples.boxes, samples.valid, K)
    found = box_losses(Told(), logits, deltas, samples, targets)
    np.testing.assert_allclose(found["loss_cls"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(found["loss_bbox"], (1 / 18 + np.log(20 / 18)) / 5, rtol=1e-5)
    smooth = box_losses(Told(beta=1.0), logits, deltas, samples, targets)
    np.testing.assert_allclose(smooth["loss_bbox"], (1 / 18**2 + np.log(20 / 18) ** 2) / 2 / 5, rtol=1e-5)
    only_own = (
        deltas.at[0, 0, 0].set(5.0).at[0, 1:3, 1].set(5.0).at[0, 3:].set(5.0)
    )  # of other classes and of negatives
    np.testing.assert_allclose(box_losses(Told(), logits, only_own, samples, targets)["loss_bbox"], found["loss_bbox"])


def test_mask_loss_reads_the_bitmap_of_the_class() -> None:
    """Logits equal the label, all targets are 1: softplus(-1) for class 1, softplus(0) for class 0, twice."""
    targets = jax.tree.map(jnp.asarray, make_targets())
    samples = sample(STEP, make_proposals(), targets, K, KEY)

    def loss(samples: Samples) -> jax.Array:
        return train_masks(Unrolled([Told()], (STEP,)), {}, [samples], targets, K)[0]["loss_mask"]

    np.testing.assert_allclose(loss(samples), (np.log1p(np.exp(-1)) + 2 * np.log(2)) / 3, rtol=1e-5)
    assert loss(samples.replace(positive=jnp.zeros_like(samples.positive))) == 0


def test_mask_losses_weigh_by_step() -> None:
    """The second step has one pass before its own, so its logits are twice the label."""
    targets = jax.tree.map(jnp.asarray, make_targets())
    samples = sample(STEP, make_proposals(), targets, K, KEY)
    schedule = (STEP, dataclasses.replace(STEP, weight=0.5, mask_passes=1))
    terms, last = train_masks(Unrolled([Told()], schedule), {}, [samples, samples], targets, K)
    np.testing.assert_allclose(terms["s0.loss_mask"], (np.log1p(np.exp(-1)) + 2 * np.log(2)) / 3, rtol=1e-5)
    np.testing.assert_allclose(terms["s1.loss_mask"], (np.log1p(np.exp(-2)) + 2 * np.log(2)) / 6, rtol=1e-5)
    np.testing.assert_array_equal(last.logits[0, :3, 0, 0], [2, 0, 0])


def test_a_real_mask_branch_returns_the_channel_of_the_label() -> None:
    head = make_head()
    features = {level: jnp.ones((1, 64 >> level, 64 >> level, 4)) for level in (2, 3, 4, 5)}
    boxes, labels, valid = jnp.array([[[0.0, 0, 20, 20]] * 3]), jnp.array([[0, 2, 1]]), jnp.ones((1, 3), bool)

    def masks(head: Head) -> jax.Array:
        crops = head.mask_crops(features, boxes, valid)
        return head.mask_logits(head.mask_features(crops, head.no_mask_features(crops)), labels, 3)

    variables = head.init(KEY, method=masks)
    variables["params"]["mask_head"]["logits"]["kernel"] *= 0
    variables["params"]["mask_head"]["logits"]["bias"] = jnp.array([10.0, 20.0, 30.0])
    logits = head.apply(variables, method=masks)
    assert logits.shape == (1, 3, 12, 12)
    np.testing.assert_array_equal(logits[0, :, 0, 0], [10.0, 30.0, 20.0])


def test_masks_without_a_mask_branch_are_an_error() -> None:
    head = make_head(mask_head=None, mask_extractor=None)
    with pytest.raises(ValueError, match="no mask branch"):
        head.apply({}, {}, jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool), method="mask_crops")


def test_of_class_takes_the_only_column_where_there_is_one() -> None:
    deltas, labels = jnp.arange(24.0).reshape(1, 2, 3, 4), jnp.array([[2, 0]])
    np.testing.assert_array_equal(of_class(deltas, labels)[0, :, 0], [8, 12])
    np.testing.assert_array_equal(of_class(deltas[:, :, :1], labels)[0, :, 0], [0, 12])
    np.testing.assert_array_equal(of_class(deltas, jnp.array([[3, 3]]))[0, :, 0], [8, 20])  # background: any column


def test_refine_moves_by_the_likeliest_class_that_is_not_background() -> None:
    boxes = jnp.array([[[10.0, 10, 20, 20], [90.0, 90, 100, 100]]])
    told = Told(logits=(1.0, 2.0, 9.0), deltas=((5.0, 5, 0, 0), (0.5, 0, 0, 0)))
    moved = refine(told, boxes, *told.boxes(None, boxes, boxes[..., 0] > 0, K), HW)
    np.testing.assert_allclose(moved[0], [[15, 10, 25, 20], [95, 90, 100, 100]])


def test_test_boxes_average_logits_and_decode_the_last_step() -> None:
    heads = [Told((0.0, 3.0, 0.0), ((1.0, 0, 0, 0),) * 2), Told((3.0, 0.0, 0.0), ((0.0, 1, 0, 0), (0.0, 2, 0, 0)))]
    proposals = Proposals(jnp.array([[[0.0, 0, 10, 10]]]), jnp.ones((1, 1)), jnp.ones((1, 1), bool))
    logits, boxes = test_boxes(Unrolled(heads, (Step(0), Step(0), Step(1))), {}, proposals, HW, K)
    np.testing.assert_allclose(logits[0, 0], [1, 2, 0])
    np.testing.assert_allclose(boxes[0, 0], [[20, 10, 30, 20], [20, 20, 30, 30]])


def test_test_masks_average_probabilities() -> None:
    found = Finished(jnp.zeros((1, 2, 4)), jnp.ones((1, 2)), jnp.array([[0, 1]]), jnp.ones((1, 2), bool))
    masks = test_masks(Unrolled([Told(mask_head=object())], (Step(), Step())), {}, found, K).probabilities
    np.testing.assert_allclose(masks[0, :, 0, 0], [0.5, (1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-2))) / 2], rtol=1e-6)


def test_train_boxes_weigh_and_hand_on_the_moved_boxes() -> None:
    """The first step moves boxes out of every object's reach, so the second has only the objects themselves."""
    away = Told(deltas=((9.0, 0, 0, 0),) * 2)
    schedule = (dataclasses.replace(STEP, head=0), dataclasses.replace(STEP, head=1, weight=0.5))
    targets, proposals = jax.tree.map(jnp.asarray, (make_targets(), make_proposals()))
    terms, metrics, _ = train_boxes(Unrolled([away, Told()], schedule), {}, proposals, targets, HW, K, KEY)
    assert set(terms) == {f"s{t}.loss_{name}" for t in range(2) for name in ("cls", "bbox")}
    np.testing.assert_allclose(terms["s0.loss_cls"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(terms["s1.loss_cls"], np.log(3) / 2, rtol=1e-6)
    assert (metrics["s0.positives"], metrics["s1.positives"]) == (3, 2)
    np.testing.assert_allclose(terms["s1.loss_bbox"], 0.0, atol=1e-6)


def test_metrics_count_positives_by_overlap() -> None:
    """Of boxes that are 95, 55 and 40 % of an object two are positive; the objects themselves do not count."""
    boxes = np.float32([[[0, 0, 10, 9.5], [20, 20, 40, 31], [0, 0, 10, 4], [np.nan] * 4]])
    proposals = Proposals(jnp.asarray(boxes), jnp.ones((1, 4)), jnp.arange(4)[None] < 3)
    targets = jax.tree.map(jnp.asarray, make_targets())
    _, metrics, _ = train_boxes(Unrolled([Told()], (STEP,)), {}, proposals, targets, HW, K, KEY)
    assert metrics["positives"] == 4
    assert [metrics[f"positives_iou{t}"] for t in (50, 60, 70, 80, 90)] == [1, 0, 0, 0, 1]


def test_train_boxes_of_one_have_no_prefix() -> None:
    targets, proposals = jax.tree.map(jnp.asarray, (make_targets(), make_proposals()))
    terms, _, _ = train_boxes(Unrolled([Told()], (STEP,)), {}, proposals, targets, HW, K, KEY)
    assert set(terms) == {"loss_cls", "loss_bbox"}


def test_samples_are_per_image() -> None:
    """Two images with each other's ground truth."""
    one, proposals = make_targets(), make_proposals()
    none = one.replace(valid=np.zeros((1, 4), bool))
    targets = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, none)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), proposals)
    samples = sample(STEP, twice, targets, K, KEY)
    alone: Samples = sample(STEP, proposals, one, K, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:1], b), samples, alone)
    np.testing.assert_array_equal(samples.positive[1], False)
    np.testing.assert_array_equal(samples.valid[1], np.arange(8) < 3)
