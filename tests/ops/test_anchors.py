import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.anchors import Anchors, inside, on_image
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
