import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.anchors import Anchors, Points, by_place, inside, on_image
from jaxdet.ops.devices import traced_for
from tests.ops.golden import OPS, compare

RETINA = Anchors(levels=(3, 4, 5, 6, 7), scales=tuple(4 * 2 ** (k / 3) for k in range(3)))
PYRAMID = ((64, 80), (32, 40), (16, 20), (8, 10), (4, 5))
"""Cells of a 256 x 320 canvas at strides 4 to 64."""


def test_a_cell_by_hand() -> None:
    """Stride 4, scale 8: a 32 pixel square, and the same area twice as tall, centred on the cell's corner."""
    anchors = Anchors(levels=(2,), ratios=(1.0, 4.0))
    assert anchors.per_cell == 2
    np.testing.assert_array_equal(anchors.cell(2), [[-16, -16, 16, 16], [-8, -32, 8, 32]])
    grid = anchors.grid(2, 2, 3)
    assert grid.shape == (12, 4)
    np.testing.assert_array_equal(grid[2], [-12, -16, 20, 16])  # one cell to the right
    np.testing.assert_array_equal(grid[6], [-16, -12, 16, 20])  # one row down


def test_order_in_a_cell_is_ratio_major() -> None:
    cell = Anchors(scales=(1.0, 2.0), ratios=(1.0, 4.0)).cell(0)
    np.testing.assert_allclose(cell[:, 2] * 2, [1.0, 2.0, 0.5, 1.0])


def test_inside_touches_low_sides_only() -> None:
    boxes = jnp.array([[0.0, 0.0, 9.9, 5.0], [0.0, 0.0, 10.0, 5.0], [-0.1, 0.0, 5.0, 5.0], [0.0, 0.0, 5.0, 8.0]])
    hw = jnp.array([8.0, 10.0])
    np.testing.assert_array_equal(inside(boxes, hw, 0.0), [True, False, False, False])
    np.testing.assert_array_equal(inside(boxes, hw, 0.5), True)
    np.testing.assert_array_equal(inside(boxes, hw, -1.0), True)
    np.testing.assert_array_equal(inside(jnp.full((1, 4), jnp.nan), hw, 0.0), False)


@pytest.mark.parametrize("numbers", [1, 2])
@pytest.mark.parametrize("kind", ["cpu", "tpu"])
def test_maps_by_place(kind: str, numbers: int) -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = maps.reshape(2, -1, numbers)
    with traced_for(kind):
        found, back = jax.vjp(lambda maps: by_place(maps, numbers), jnp.asarray(maps))
        (gradient,) = back(jnp.asarray(expected))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(gradient, maps)


def test_on_image_counts_begun_cells() -> None:
    mask = on_image(jnp.array([[1.5, 2.0], [0.0, 0.0], [9.0, 9.0]]), 3, 4, 2)
    assert mask.shape == (3, 24)
    expected = np.zeros((3, 4, 2), bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(mask[0].reshape(3, 4, 2), expected)
    assert not mask[1].any()
    assert mask[2].all()


@pytest.mark.parametrize(("name", "anchors"), [("rpn", Anchors()), ("retina", RETINA)])
def test_golden_anchors(name: str, anchors: Anchors) -> None:
    for i, level in enumerate(anchors.levels):
        compare(f"anchors/{name}_base{i}", anchors.cell(level))
    for i in (0, 3):
        compare(f"anchors/{name}_grid{i}_5x6", anchors.grid(anchors.levels[i], 5, 6))


@pytest.mark.parametrize("border", [-1, 0])
def test_golden_number_inside(border: int) -> None:
    anchors = Anchors()
    grids = [anchors.grid(level, *cells) for level, cells in zip(anchors.levels, PYRAMID, strict=True)]
    count = inside(jnp.concatenate(grids), jnp.array([250.0, 310.0]), float(border)).sum()
    assert count == OPS[f"anchors/inside_count_border{border}"]


def test_a_larger_canvas_adds_anchors_and_moves_none() -> None:
    small, large = (Anchors().grid(3, *hw).reshape(*hw, 3, 4) for hw in ((3, 4), (5, 6)))
    np.testing.assert_array_equal(large[:3, :4], small)


def test_points_by_hand() -> None:
    points = Points(levels=(2, 3))
    assert (points.per_cell, points.least_side) == (1, 0)
    grid = points.grid(2, 2, 3)
    assert grid.dtype == np.float32
    np.testing.assert_array_equal(grid[:4], [[0, 0, 4, 4], [4, 0, 8, 4], [8, 0, 12, 4], [0, 4, 4, 8]])
    np.testing.assert_array_equal((grid[:, :2] + grid[:, 2:]) / 2 % 4, 2)  # FCOS: half a stride into the cell
    np.testing.assert_array_equal(points.grid(3, 1, 1), [[0, 0, 8, 8]])
    with pytest.raises(ValueError, match=r"Points\.levels: expected a number from 0 to 12 in each place, got \(3, 40"):
        Points(levels=(3, 40))
    with pytest.raises(ValueError, match=r"Points\.levels"):
        Points(levels=())


def test_an_offset_moves_anchors_into_their_cells() -> None:
    corner, centre = Anchors(levels=(3,)), Anchors(levels=(3,), offset=0.5)
    np.testing.assert_array_equal(centre.grid(3, 3, 4), corner.grid(3, 3, 4) + 4)
    with pytest.raises(ValueError, match=r"Anchors\.offset: expected a number from 0 to 1, got 8"):
        Anchors(offset=8)


@pytest.mark.parametrize(("level", "cells"), [(3, 69), (4, 35), (5, 18), (6, 9), (7, 5)])
def test_even_anchors_are_yolacts(level: int, cells: int) -> None:
    """Of 550 pixels: 24 pixels and doubled from level to level, around centres at (i + 0.5) * 550 / cells."""
    anchors = Anchors(levels=(3, 4, 5, 6, 7), scales=(3.0,), offset=0.5, even=True)
    grid = anchors.grid(level, cells, cells, (550, 550)).reshape(cells, cells, 3, 4)
    size = 24 * 2 ** (level - 3)
    for i, j in ((0, 0), (cells - 1, 1), (cells // 2, cells - 1)):
        y, x = (i + 0.5) * 550 / cells, (j + 0.5) * 550 / cells
        for ratio, found in zip((0.5, 1, 2), grid[i, j], strict=True):
            w, h = size / ratio**0.5, size * ratio**0.5
            np.testing.assert_allclose(found, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-5, atol=1e-3)
    # The sides of a canvas are divided each by its own cells; without a canvas the step is the stride.
    other = anchors.grid(level, cells, 2, (550, 40)).reshape(cells, 2, 3, 4)
    np.testing.assert_allclose((other[0, :, 1, 0] + other[0, :, 1, 2]) / 2, [10, 30], atol=1e-3)
    strides = Anchors(levels=(3, 4, 5, 6, 7), scales=(3.0,), offset=0.5)
    np.testing.assert_array_equal(anchors.grid(level, 2, 3), strides.grid(level, 2, 3))
    np.testing.assert_array_equal(strides.grid(level, 2, 3, (550, 550)), strides.grid(level, 2, 3))


def old_anchors(stride: int, scales: tuple[float, ...], ratios: tuple[float, ...]) -> np.ndarray:
    """``AnchorGenerator.gen_base_anchors`` of mmdetection 1.x, in whose boxes x2 is the last pixel."""
    found = []
    centre = 0.5 * (stride - 1)
    for ratio in ratios:
        for scale in scales:
            w, h = stride * scale / ratio**0.5, stride * scale * ratio**0.5
            side = [centre - 0.5 * (w - 1), centre - 0.5 * (h - 1), centre + 0.5 * (w - 1), centre + 0.5 * (h - 1)]
            found.append([round(x) for x in side])  # half to even, as torch
    return np.array(found)


@pytest.mark.parametrize("level", RETINA.levels)
def test_legacy_anchors_are_those_of_mmdetection_1(level: int) -> None:
    """In their own convention, in which a box of one pixel has x1 = x2: sides, centres and steps."""
    legacy = Anchors(RETINA.levels, RETINA.scales, RETINA.ratios, legacy=True)
    stride = 2**level
    cell = legacy.cell(level)
    np.testing.assert_array_equal(cell - [0, 0, 1, 1], old_anchors(stride, RETINA.scales, RETINA.ratios))
    np.testing.assert_array_equal(cell % 1, 0)
    # The anchors lie around the middle of the cell's pixels.
    np.testing.assert_allclose((cell[:, :2] + cell[:, 2:]) / 2, stride / 2, atol=0.5)
    grid = legacy.grid(level, 2, 3).reshape(2, 3, 9, 4)
    np.testing.assert_array_equal(grid[1, 2], cell + np.array([2, 1, 2, 1]) * stride)
    assert (legacy.least_side, RETINA.least_side) == (1, 0)


def test_a_legacy_anchor_by_hand() -> None:
    """Stride 8, 32 pixels: from pixel -12 to pixel 19, both included."""
    anchors = Anchors(levels=(3,), scales=(4.0,), ratios=(1.0,), legacy=True)
    np.testing.assert_array_equal(anchors.cell(3), [[-12, -12, 20, 20]])


def test_rounded_anchors_by_hand() -> None:
    """torchvision's: 32 * 2^(1/3) = 40.3 becomes 40, and halves go to even numbers: 50.5 to 50."""
    anchors = Anchors(levels=(3,), scales=(4 * 2 ** (1 / 3),), ratios=(0.5, 1.0, 2.0), rounded=True)
    # 40 / sqrt(0.5) = 56.57 wide, 28.28 high.
    np.testing.assert_array_equal(anchors.cell(3), [[-28, -14, 28, 14], [-20, -20, 20, 20], [-14, -28, 14, 28]])
    odd = Anchors(levels=(4,), scales=(4 * 2 ** (2 / 3),), ratios=(1.0,), rounded=True)  # 64 * 2^(2/3) = 101.6
    np.testing.assert_array_equal(odd.cell(4), [[-50, -50, 50, 50]])
    np.testing.assert_array_equal(odd.grid(4, 1, 2)[1], [-34, -50, 66, 50])
    with pytest.raises(ValueError, match=r"expected legacy .* or rounded .* got both"):
        Anchors(legacy=True, rounded=True)
