"""Maps at another size, on each of the grids, against loops and against OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.bilinear import Grid, positions, resize
from tests.ops.oracles import resize as slow_resize

KEY = jax.random.key(0)


@pytest.mark.parametrize("before", [(8, 12), (3, 5), (1, 2), (1, 1), (4, 6)])
@pytest.mark.parametrize("after", [(4, 6), (7, 3), (1, 1)])
@pytest.mark.parametrize("grid", ["cells", "corners"])
def test_resize(before: tuple[int, int], after: tuple[int, int], grid: Grid) -> None:
    x = jax.random.normal(KEY, (2, *before, 3))
    np.testing.assert_allclose(resize(x, after, grid), slow_resize(np.asarray(x), after, grid), atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [((3, 4), (6, 8)), ((2, 3), (8, 12)), ((1, 2), (4, 2))])
def test_strided_grids_are_multiples(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = jax.random.normal(KEY, (1, *before, 2))
    np.testing.assert_allclose(resize(x, after, "strided"), slow_resize(np.asarray(x), after, "strided"), atol=1e-6)
    with pytest.raises(ValueError, match="whole factor, got 3 -> 7"):
        positions(3, 7, "strided")


def test_strided_grids_take_no_product() -> None:
    """XLA:GPU cannot compile the gradient of that for maps of one channel whose width is not a multiple of 16."""

    def loss(x: jax.Array, grid: Grid) -> jax.Array:
        return resize(x, (6, 10), grid).sum()

    def program(grid: Grid) -> str:
        return str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(jnp.ones((3, 5, 1)), grid))

    assert "dot_general" in program("cells")
    assert "dot_general" not in program("strided")


def test_by_hand() -> None:
    row = jnp.asarray([[[[0.0], [6.0]]]])
    np.testing.assert_allclose(resize(row, (1, 4), "corners")[0, 0, :, 0], [0, 2, 4, 6], atol=1e-6)
    np.testing.assert_allclose(resize(row, (1, 4), "cells")[0, 0, :, 0], [0, 1.5, 4.5, 6], atol=1e-6)
    # Pixel 2 i of the doubled map is half a pixel before pixel i, pixel 2 i + 1 is pixel i itself.
    np.testing.assert_allclose(resize(row, (1, 4), "strided")[0, 0, :, 0], [0, 0, 3, 6], atol=1e-6)
    assert resize(jnp.ones((1, 3, 3, 1), jnp.bfloat16), (5, 5), "corners").dtype == jnp.bfloat16


def test_cells_are_those_of_opencv() -> None:
    x = np.random.default_rng(0).normal(size=(9, 14, 3)).astype(np.float32)
    np.testing.assert_allclose(
        resize(jnp.asarray(x), (20, 31), "cells"), cv2.resize(x, (31, 20), interpolation=cv2.INTER_LINEAR), atol=1e-4
    )
