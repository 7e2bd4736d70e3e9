"""Grids of points against literal loops of the reference's rules, by hand, and under shifts, scales and flips."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.grids import Jitter, displaced, grid_boxes, grid_targets, region_starts


def random_boxes(number: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (number, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 60, (number, 2))], 1).astype(np.float32)


def near(boxes: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Boxes whose sides are up to that share of their size away."""
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + np.float32(size * np.random.default_rng(seed).uniform(-share, share, boxes.shape))


def slow_starts(points: int, side: int) -> list[int]:
    starts = []
    for c in range(points):
        if c in (0, points - 1):
            starts.append(0 if c == 0 else side)
        else:
            starts.append(max(int((c / (points - 1) - 0.25) * 2 * side), 0))
    return starts


def slow_targets(boxes: np.ndarray, truth: np.ndarray, points: int, side: int, radius: int) -> np.ndarray:
    """Whole maps, a circle for each point, and then the regions cut out of them."""
    starts, out = slow_starts(points, side), np.zeros((len(boxes), side, side, points**2))
    for n, (box, its) in enumerate(zip(boxes, truth, strict=True)):
        width, height = (box[2] - box[0]) * 2, (box[3] - box[1]) * 2
        left, top = box[0] - (box[2] - box[0]) / 2, box[1] - (box[3] - box[1]) / 2
        if width <= points or height <= points:
            continue
        for k in range(points**2):
            column, row = k // points, k % points
            x = its[0] + (its[2] - its[0]) * column / (points - 1)
            y = its[1] + (its[3] - its[1]) * row / (points - 1)
            at_x, at_y = int((x - left) / width * 2 * side), int((y - top) / height * 2 * side)
            whole = np.zeros((2 * side, 2 * side))
            for i, j in np.ndindex(whole.shape):
                whole[i, j] = (i - at_y) ** 2 + (j - at_x) ** 2 <= radius**2
            rows, columns = starts[row], starts[column]
            out[n, :, :, k] = whole[rows : rows + side, columns : columns + side]
    return out


def slow_boxes(boxes: np.ndarray, logits: np.ndarray) -> np.ndarray:
    number, side, _, count = logits.shape
    points = int(count**0.5)
    starts, out = slow_starts(points, side), np.zeros((number, 4))
    for n, box in enumerate(boxes.astype(np.float64)):
        sides: list[list[tuple[float, float]]] = [[], [], [], []]
        for k in range(count):
            column, row = k // points, k % points
            probability = 1 / (1 + np.exp(-logits[n, :, :, k].astype(np.float64)))
            i, j = np.unravel_index(probability.argmax(), probability.shape)
            width, height = box[2] - box[0], box[3] - box[1]
            x = box[0] - width / 2 + (j + starts[column] + 0.5) / (2 * side) * 2 * width
            y = box[1] - height / 2 + (i + starts[row] + 0.5) / (2 * side) * 2 * height
            for at, place, own in ((0, column == 0, x), (1, row == 0, y)):
                if place:
                    sides[at].append((own, probability[i, j]))
            for at, place, own in ((2, column == points - 1, x), (3, row == points - 1, y)):
                if place:
                    sides[at].append((own, probability[i, j]))
        out[n] = [sum(v * w for v, w in some) / sum(w for _, w in some) for some in sides]
    return out


@pytest.mark.parametrize(("points", "side"), [(2, 6), (3, 28), (3, 5), (4, 7)])
def test_regions(points: int, side: int) -> None:
    starts = region_starts(points, side)
    assert starts.tolist() == slow_starts(points, side)
    assert starts[-1] + side == 2 * side


def test_regions_of_the_paper() -> None:
    """Nine points on maps of 56: each sees 28, around its place in the box."""
    assert region_starts(3, 28).tolist() == [0, 14, 28]


@pytest.mark.parametrize(("points", "side", "radius"), [(3, 28, 1), (2, 6, 0), (4, 8, 2)])
def test_targets(points: int, side: int, radius: int) -> None:
    boxes = random_boxes(12, seed=points)
    truth = near(boxes, seed=side, share=0.7)
    boxes[3, 2] = boxes[3, 0] + points / 2  # its whole map is as wide as there are points, and no wider
    boxes[4, 3] = boxes[4, 1]
    found = grid_targets(jnp.asarray(boxes), jnp.asarray(truth), points, side, radius)
    wanted = slow_targets(boxes, truth, points, side, radius)
    np.testing.assert_array_equal(found, wanted)
    assert not wanted[3:5].any()
    per_point = wanted.sum((1, 2))
    assert (per_point == 0).any()
    assert (per_point == per_point.max()).any()
    compiled = jax.jit(grid_targets, static_argnums=(2, 3, 4))(boxes, truth, points, side, radius)
    np.testing.assert_array_equal(compiled, found)


def test_targets_by_hand() -> None:
    """A box that is right has each of its points in the middle of its region; a cross of five cells."""
    box = jnp.float32([[20.0, 30, 34, 58]])
    found = np.asarray(grid_targets(box, box, 3, 28, 1))[0]
    cross = {(13, 14), (14, 13), (14, 14), (14, 15), (15, 14)}
    assert all({(int(i), int(j)) for i, j in np.argwhere(found[:, :, k])} == cross for k in range(9))
    # A quarter of the width to the right are seven cells of 14 / 28 pixels.
    moved = np.asarray(grid_targets(box, box + jnp.float32([3.5, 0, 3.5, 0]), 3, 28, 1))[0]
    np.testing.assert_array_equal(moved, np.roll(found, 7, axis=1))


def test_a_point_less_than_a_cell_before_the_map_counts_as_in_its_first_cell() -> None:
    """The reference cuts numbers off towards 0."""
    box = jnp.float32([[0.0, 0, 12, 12]])  # the whole map is of -6 to 18, 2 pixels a cell
    found = [grid_targets(box, jnp.float32([[x, 0, 20, 12]]), 2, 6, 0)[0, 3, :, 0] for x in (-6, -7.9, -8)]
    assert [np.flatnonzero(row).tolist() for row in found] == [[0], [0], []]


@pytest.mark.parametrize(("points", "side"), [(3, 28), (2, 6), (4, 7)])
def test_boxes(points: int, side: int) -> None:
    boxes = random_boxes(8, seed=1)
    logits = np.random.default_rng(points).normal(0, 3, (8, side, side, points**2)).astype(np.float32)
    for found in (grid_boxes(boxes, logits), jax.jit(grid_boxes)(boxes, logits)):
        np.testing.assert_allclose(found, slow_boxes(boxes, logits), rtol=1e-5, atol=1e-4)
        assert (found[:, :2] < found[:, 2:]).all()


def test_the_targets_give_the_box_back() -> None:
    """To half a cell, where all points are inside their regions."""
    boxes = random_boxes(20, seed=5)
    truth = near(boxes, seed=6, share=0.2)
    targets = grid_targets(jnp.asarray(boxes), jnp.asarray(truth), 3, 28, 0)
    cell = np.tile(boxes[:, 2:] - boxes[:, :2], 2) / 28
    assert (np.abs(grid_boxes(boxes, 20 * targets - 10) - truth) <= 0.501 * cell).all()


def test_sides_are_weighed_by_how_sure_their_points_are() -> None:
    logits = np.full((1, 4, 4, 4), -9.0, np.float32)
    logits[0, 0, 1, 0], logits[0, 0, 3, 1] = 0.0, np.log(3)  # left points: half sure of column 1, 3/4 of column 3
    box = grid_boxes(jnp.float32([[0.0, 0, 8, 8]]), logits)
    places = np.array([1.5, 3.5]) * 2 - 4
    np.testing.assert_allclose(box[0, 0], np.average(places, weights=[0.5, 0.75]), rtol=1e-6)


def test_of_cells_that_are_certain_the_first_is_the_peak() -> None:
    """As of the probabilities of the reference, which are all 1 there; and nothing is certain in vain."""
    logits = np.full((1, 4, 4, 4), -200.0, np.float32)
    logits[0, 0, 1, 0], logits[0, 2, 3, 0] = 30.0, 40.0
    box = np.asarray(grid_boxes(jnp.float32([[0.0, 0, 8, 8]]), logits))
    assert box[0, 0] == pytest.approx(1.5 * 2 - 4)
    assert np.isfinite(box).all()
    assert np.isfinite(grid_boxes(jnp.float32([[0.0, 0, 8, 8]]), np.full_like(logits, -200))).all()


def mirrored(boxes: Any, width: float = 128.0) -> np.ndarray:
    boxes = np.asarray(boxes)
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def flipped(maps: Any) -> np.ndarray:
    """Heat maps of a mirrored image: columns of cells and columns of points turn round."""
    maps = np.asarray(maps)
    points = int(maps.shape[-1] ** 0.5)
    return maps.reshape(*maps.shape[:-1], points, points)[:, :, ::-1, ::-1].reshape(maps.shape)


def test_flip() -> None:
    boxes = random_boxes(10, seed=7)
    truth = near(boxes, seed=8, share=0.4)
    here = grid_targets(jnp.asarray(boxes), jnp.asarray(truth), 3, 28, 1)
    there = grid_targets(jnp.asarray(mirrored(boxes)), jnp.asarray(mirrored(truth)), 3, 28, 1)
    np.testing.assert_array_equal(flipped(here), there)
    logits = np.random.default_rng(0).normal(0, 2, here.shape).astype(np.float32)
    np.testing.assert_allclose(
        grid_boxes(mirrored(boxes), flipped(logits)), mirrored(grid_boxes(boxes, logits)), atol=1e-3
    )


def test_scale_and_shift() -> None:
    boxes = random_boxes(6, seed=9)
    truth = near(boxes, seed=10, share=0.3)
    here, there = (grid_targets(4 * b + 64, 4 * t + 64, 3, 14, 1) for b, t in ((boxes, truth), (boxes, truth)))
    np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(here, grid_targets(jnp.asarray(boxes), jnp.asarray(truth), 3, 14, 1))
    logits = np.random.default_rng(1).normal(0, 2, here.shape).astype(np.float32)
    np.testing.assert_allclose(grid_boxes(4 * boxes + 64, logits), 4 * grid_boxes(boxes, logits) + 64, rtol=1e-5)


def test_other_slots_do_not_matter() -> None:
    boxes, truth = random_boxes(4, seed=11), random_boxes(4, seed=12)
    logits = np.random.default_rng(2).normal(0, 2, (4, 6, 6, 4)).astype(np.float32)
    with_targets, with_boxes = grid_targets(boxes, truth, 2, 6, 1), grid_boxes(boxes, logits)
    for fill in (0.0, 7.0, np.nan):
        other, its, maps = boxes.copy(), truth.copy(), logits.copy()
        other[1], its[1], maps[1] = fill, fill, fill
        kept = np.arange(4) != 1
        np.testing.assert_array_equal(grid_targets(other, its, 2, 6, 1)[kept], with_targets[kept])
        np.testing.assert_array_equal(grid_boxes(other, maps)[kept], with_boxes[kept])


def test_a_box_without_extent_stays() -> None:
    box = jnp.float32([[5.0, 6, 5, 6]])
    np.testing.assert_array_equal(grid_boxes(box, np.zeros((1, 6, 6, 4), np.float32)), box)


def test_displaced_by_hand() -> None:
    box, hw = jnp.float32([[10.0, 20, 30, 60]]), jnp.float32([70, 50])
    # The centre (20, 40) moves by 2 and -4, the sides 20 and 40 become 22 and 30.
    np.testing.assert_allclose(
        displaced(box, jnp.float32([[0.1, -0.1, 0.1, -0.25]]), hw), [[11, 21, 33, 51]], rtol=1e-6
    )
    np.testing.assert_allclose(displaced(box, jnp.float32([[0.9, -0.9, 1, 1]]), hw), [[18, 0, 49, 44]], rtol=1e-6)


def test_jitter() -> None:
    boxes = np.tile(np.float32([[40, 40, 60, 80]]), (2000, 1))
    found = np.asarray(Jitter(0.15)(jnp.asarray(boxes), jnp.float32([200, 200]), jax.random.key(0)))
    size, centre = found[:, 2:] - found[:, :2], (found[:, :2] + found[:, 2:]) / 2
    shares = np.concatenate([(centre - [50, 60]) / [20, 40], size / [20, 40] - 1], 1)
    assert (np.abs(shares) <= 0.1501).all()
    np.testing.assert_allclose(shares.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(shares.std(0), 0.15 / 3**0.5, rtol=0.05)
    assert np.abs(np.corrcoef(shares.T) - np.eye(4)).max() < 0.1
    with pytest.raises(ValueError, match=r"Jitter\.amplitude: expected a number from 0 to 0\.99, got 1"):
        Jitter(1.0)
