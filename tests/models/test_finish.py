"""From scores to detections, at the edges."""

import jax
import numpy as np
import pytest
from jaxdet.models.finish import Finish


@pytest.mark.parametrize("jit", [True, False])
def test_no_boxes_give_no_detections(jit: bool) -> None:
    finish = Finish(max_detections=4)
    call = jax.jit(finish) if jit else finish
    found = call(np.zeros((0, 1, 4), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, bool))
    assert found.boxes.shape == (4, 4)
    assert not found.valid.any()
    for leaf in (found.boxes, found.scores, found.labels):
        np.testing.assert_array_equal(leaf, 0)


def test_detections_by_hand() -> None:
    """Two classes on one box are two detections; a lower score of the same class on nearly the same box is none."""
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30]])[:, None]
    scores = np.float32([[0.9, 0.6], [0.8, 0.0], [0.04, 0.7]])
    found = Finish(max_detections=5)(boxes, scores, np.ones(3, bool))
    np.testing.assert_array_equal(found.valid, [True, True, True, False, False])
    np.testing.assert_array_equal(found.labels[:3], [0, 1, 1])
    np.testing.assert_allclose(found.scores[:3], [0.9, 0.7, 0.6])
    np.testing.assert_array_equal(found.boxes[:3], boxes[[0, 2, 0], 0])
