import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.anchors import Points
from jaxdet.ops.boxes import DeltaCoder, DistanceCoder, area, clip, coverage, intersection, iou, safe
from tests.ops import oracles
from tests.ops.golden import INPUTS, OPS, compare, normal

HW = jnp.array([250.0, 310.0])
STDS = {"s1": (1.0, 1.0, 1.0, 1.0), "s01": (0.1, 0.1, 0.2, 0.2), "s0033": (0.033, 0.033, 0.067, 0.067)}


def test_two_boxes_by_hand() -> None:
    a, b = jnp.array([[0.0, 0.0, 4.0, 2.0]]), jnp.array([[2.0, 1.0, 6.0, 5.0], [4.0, 0.0, 5.0, 2.0]])
    np.testing.assert_array_equal(area(b), [16.0, 2.0])
    np.testing.assert_array_equal(intersection(a, b), [[2.0, 0.0]])
    np.testing.assert_allclose(iou(a, b), [[2 / 22, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(coverage(a, b), [[0.25, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(coverage(b, a), [[0.125], [0.0]], rtol=1e-6)


def test_degenerate_boxes_have_no_area_and_overlap_nothing() -> None:
    degenerate = jnp.array([[3.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 9.0], [5.0, 5.0, 1.0, 1.0]])
    whole = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    np.testing.assert_array_equal(area(degenerate), 0.0)
    np.testing.assert_array_equal(iou(degenerate, whole), 0.0)
    np.testing.assert_array_equal(coverage(degenerate, whole), 0.0)


def test_clip_by_hand() -> None:
    boxes = jnp.array([[-5.0, -2.0, 400.0, 300.0], [10.0, 20.0, 30.0, 40.0], [400.0, 300.0, 500.0, 310.0]])
    expected = [[0.0, 0.0, 310.0, 250.0], [10.0, 20.0, 30.0, 40.0], [310.0, 250.0, 310.0, 250.0]]
    np.testing.assert_array_equal(clip(boxes, HW), expected)


@pytest.mark.parametrize("seed", range(3))
def test_iou_against_the_oracle_and_its_invariances(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = oracles.random_boxes(rng, 9), oracles.random_boxes(rng, 7)
    expected = np.array([[oracles.iou(p, q) for q in b] for p in a])
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(iou(b, a).T, expected, atol=1e-6)
    np.testing.assert_allclose(iou(a * 4, b * 4), expected, atol=1e-6)  # scale
    mirror = np.float32([-1, 1, -1, 1])
    flipped = [(x * mirror)[:, [2, 1, 0, 3]] for x in (a, b)]
    np.testing.assert_allclose(iou(*flipped), expected, atol=1e-6)
    np.testing.assert_allclose(np.diag(iou(a, a)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_an_invalid_box_leaves_the_others_alone(value: float) -> None:
    rng = np.random.default_rng(0)
    a, b = oracles.random_boxes(rng, 5), oracles.random_boxes(rng, 4)
    more = oracles.padded(a, 2, value)
    for op in (iou, coverage, intersection):
        np.testing.assert_array_equal(op(more, b)[:5], op(a, b))
        np.testing.assert_array_equal(op(b, more)[:, :5], op(b, a))
    coder = DeltaCoder()
    np.testing.assert_array_equal(coder.decode(more, jnp.zeros_like(more))[:5], coder.decode(a, jnp.zeros_like(a)))
    np.testing.assert_array_equal(clip(more, HW)[:5], clip(a, HW))


def test_delta_by_hand() -> None:
    """A box twice as wide, moved right by half the reference's width; the mean of two corners moves by 5 + 5."""
    coder = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
    reference, box = jnp.array([0.0, 0.0, 10.0, 20.0]), jnp.array([5.0, 0.0, 25.0, 20.0])
    np.testing.assert_allclose(coder.encode(reference, box), [10.0, 0.0, np.log(2) / 0.2, 0.0], rtol=1e-6)


@pytest.mark.parametrize("stds", STDS.values())
def test_decode_undoes_encode(stds: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(1)
    references, boxes = oracles.random_boxes(rng, 30), oracles.random_boxes(rng, 30)
    coder = DeltaCoder(stds, max_ratio=1e4)
    np.testing.assert_allclose(coder.decode(references, coder.encode(references, boxes)), boxes, atol=2e-4)


def test_growth_is_bounded_and_shrinking_if_asked() -> None:
    unit, wild = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 100.0, -100.0])
    bounded, grown = DeltaCoder().decode(unit, wild), DeltaCoder(clip_shrink=False).decode(unit, wild)
    np.testing.assert_allclose(bounded[2:] - bounded[:2], [62.5, 0.016], rtol=1e-4)
    np.testing.assert_allclose(grown[2:] - grown[:2], [62.5, 0.0], atol=1e-5)


def test_decode_computes_in_float32_whatever_the_head_does() -> None:
    deltas = jnp.full((3, 4), 0.5, jnp.bfloat16)
    assert DeltaCoder().decode(jnp.ones((3, 4)), deltas).dtype == jnp.float32


def test_safe_keeps_gradients_of_encode_finite() -> None:
    boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [np.nan] * 4, [0.0] * 4])
    valid = jnp.array([True, False, False])

    def total(boxes: jax.Array) -> jax.Array:
        deltas = DeltaCoder().encode(safe(boxes, valid), safe(boxes + 1.0, valid))
        return jnp.where(valid[:, None], deltas, 0.0).sum()

    gradient = jax.grad(total)(boxes)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:], 0.0)


@pytest.mark.parametrize("name", STDS)
def test_golden_coder(name: str) -> None:
    coder, proposals = DeltaCoder(STDS[name]), OPS["coder/proposals"]
    compare(f"coder/enc_{name}", coder.encode(proposals, OPS["coder/gt"]))
    decoded = coder.decode(proposals, OPS[f"coder/delta_{name}"])
    scale = np.abs(OPS[f"coder/dec_noclip_{name}"]).max()  # rows 0 and 1 of the deltas are +-100
    np.testing.assert_allclose(decoded, OPS[f"coder/dec_noclip_{name}"], rtol=1e-5, atol=2e-7 * scale)
    compare(f"coder/dec_{name}", clip(decoded, HW), 1e-4)


def test_golden_coder_of_eighty_classes() -> None:
    proposals = OPS["coder/proposals"]
    deltas = normal("ops/delta80", (len(proposals), 320)).astype(np.float32).reshape(-1, 80, 4)
    decoded = clip(DeltaCoder(STDS["s01"]).decode(jnp.asarray(proposals)[:, None], jnp.asarray(deltas)), HW)
    compare("coder/dec_80cls_s01", decoded.reshape(-1, 320), 1e-4)


def test_golden_overlaps() -> None:
    compare("assign/iou", iou(INPUTS["gt_boxes"], INPUTS["fixed_proposals"]))
    ignored = jnp.array([[200.0, 30.0, 300.0, 140.0]])
    compare("assign/iof_ignore", coverage(INPUTS["fixed_proposals"], ignored))


def test_a_box_keeps_a_pixel_wherever_it_lies() -> None:
    """mmdetection 1.x cuts first and last pixel of a box to the image; in jaxdet a box ends behind the last one."""
    boxes = jnp.array(
        [
            [-5.0, -2.0, 400.0, 300.0],
            [400.0, 300.0, 500.0, 310.0],
            [-50.0, -30.0, -20.0, -10.0],
            [309.5, 10.0, 320.0, 249.75],
            [20.0, 30.0, 20.25, 30.5],
        ]
    )
    behind = np.float32([0, 0, 1, 1])
    expected = np.clip(np.asarray(boxes) - behind, 0, [309, 249, 309, 249]) + behind
    found = clip(boxes, HW, 1.0)
    np.testing.assert_array_equal(found[:4], expected[:4])
    assert (np.asarray(found[:4, 2:] - found[:4, :2]) >= 1).all()
    np.testing.assert_array_equal(found[4], boxes[4])  # a smaller one stays as it is
    np.testing.assert_array_equal(clip(boxes, HW, 0.0), clip(boxes, HW))


# Distances to the sides, of points.


def test_distances_by_hand() -> None:
    """From the point (12, 20) of a cell of 8 pixels, in units of it."""
    cell, box = jnp.array([8.0, 16.0, 16.0, 24.0]), jnp.array([4.0, 12.0, 44.0, 36.0])
    np.testing.assert_array_equal(DistanceCoder().encode(cell, box), [1, 1, 4, 2])
    np.testing.assert_array_equal(DistanceCoder().decode(cell, jnp.array([1.0, 1, 4, 2])), box)
    np.testing.assert_array_equal(DistanceCoder().encode(cell, jnp.array([14.0, 12, 44, 18])), [-0.25, 1, 4, -0.25])


@pytest.mark.parametrize("seed", range(2))
def test_distances_decode_and_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells, boxes = Points().grid(3, 5, 6), oracles.random_boxes(rng, 30)
    coder = DistanceCoder()
    distances = coder.encode(jnp.asarray(cells), jnp.asarray(boxes))
    np.testing.assert_allclose(coder.decode(jnp.asarray(cells), distances), boxes, atol=1e-5)
    np.testing.assert_allclose(coder.encode(jnp.asarray(4 * cells), jnp.asarray(4 * boxes)), distances, rtol=1e-5)
    mirror = np.float32([-1, 1, -1, 1])
    flipped = [jnp.asarray((x * mirror)[:, [2, 1, 0, 3]]) for x in (cells, boxes)]
    np.testing.assert_allclose(coder.encode(*flipped), distances[:, jnp.array([2, 1, 0, 3])], rtol=1e-5, atol=1e-6)
    more = coder.decode(jnp.asarray(oracles.padded(cells, 2, np.nan)), jnp.zeros((32, 4)))
    np.testing.assert_array_equal(more[:30], coder.decode(jnp.asarray(cells), jnp.zeros((30, 4))))
    assert coder.decode(jnp.asarray(cells), jnp.zeros((30, 4), jnp.bfloat16)).dtype == jnp.float32
