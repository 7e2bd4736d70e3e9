"""The region proposal network around a head that says what the feature map holds."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from jaxdet.models.proposals import RPN

from jaxdet.ops.anchors import Anchors
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Proposals, Targets

ANCHORS = Anchors(levels=(2, 3), scales=(4.0,), ratios=(1.0,))
"""Squares of 16 pixels at stride 4 and of 32 pixels at stride 8."""
CELLS = {2: (8, 8), 3: (4, 4)}
HW = np.float32([[32, 32]])


class Reads(nn.Module):
    """First channel objectness, four more deltas."""

    @nn.compact
    def __call__(self, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        return level[..., :1], level[..., 1:]


def make_rpn(**changes: Any) -> RPN:
    return RPN(**{"head": Reads(), "anchors": ANCHORS, "pad_multiple": 8} | changes)


def quiet(cells: dict[int, tuple[int, int]] = CELLS, fill: float = 0.0) -> dict[int, np.ndarray]:
    """Maps on which every anchor is all but impossible and stays where it is."""
    maps = {level: np.full((1, *hw, 5), fill, np.float32) for level, hw in cells.items()}
    for level, (height, width) in CELLS.items():
        maps[level][:, :height, :width] = [-20, 0, 0, 0, 0]
    return maps


def propose(features: dict[int, np.ndarray], hw: np.ndarray = HW, **changes: Any) -> Proposals:
    rpn = make_rpn(**changes)
    return jax.jit(lambda f, hw: rpn.apply({}, f, hw, method="proposals"))(features, hw)


def test_the_best_anchor_moves_and_is_cut_to_the_image() -> None:
    features = quiet()
    features[2][0, 3, 6] = [5, 0.25, 0, np.log(2), 0]  # 16 x 16 at (24, 12): 4 to the right, twice as wide
    features[3][0, 2, 2] = [6, 0, 0, 0, 0]  # 32 x 32 at (16, 16)
    found = propose(features, post_nms_test=2)
    np.testing.assert_allclose(found.boxes[0], [[0, 0, 32, 32], [12, 4, 32, 20]], atol=1e-5)
    np.testing.assert_allclose(found.scores[0], 1 / (1 + np.exp([-6.0, -5.0])), rtol=1e-5)
    assert found.valid.all()


def test_levels_do_not_suppress_each_other_and_one_level_does() -> None:
    features = quiet()
    features[2][0, 4, 4] = [5, 0, 0, np.log(2), np.log(2)]  # the same box as below, from another level
    features[3][0, 2, 2] = [6, 0, 0, 0, 0]
    features[3][0, 2, 3] = [4, -0.25, 0, 0, 0]  # the same box again, from the same level
    found = propose(features, post_nms_test=3)
    np.testing.assert_allclose(found.boxes[0, :2], [[0, 0, 32, 32]] * 2, atol=1e-5)
    assert found.scores[0, 2] < 1e-6


def test_pre_nms_counts_by_level() -> None:
    features = quiet()
    features[2][..., 0] = np.arange(64).reshape(8, 8) / 10
    found = propose(features, pre_nms_test=3, nms_iou=1.0)
    assert int(found.valid.sum()) == 6
    np.testing.assert_allclose(found.scores[0, :3], 1 / (1 + np.exp([-6.3, -6.2, -6.1])), rtol=1e-6)


def test_nan_and_infinite_outputs_are_no_proposals() -> None:
    features = quiet()
    features[2][0, 0, 0, 0] = np.nan
    features[2][0, 0, 1, 0] = np.inf
    features[2][0, 0, 2] = [9, np.nan, 0, 0, 0]
    features[2][0, 5, 5] = [1, 0, 0, 0, 0]
    found = propose(features, post_nms_test=80, nms_iou=1.0)
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
    found, expected = propose(large, hw, post_nms_test=30), propose(small, hw, post_nms_test=30)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    terms, wanted = (loss_terms(features, truth_of([[4, 4, 20, 20]]), hw) for features in (large, small))
    assert terms == pytest.approx(wanted, rel=1e-5)


def truth_of(boxes: list[list[float]], slots: int = 3) -> Targets:
    filled = np.full((1, slots, 4), np.nan, np.float32)
    filled[0, : len(boxes)] = np.float32(boxes).reshape(-1, 4)
    valid, none = np.arange(slots)[None] < len(boxes), np.zeros((1, slots), bool)
    return Targets(filled, none.astype(np.int32), np.zeros((1, slots, 2, 2), np.uint8), filled, none, valid)


def loss_terms(
    features: dict[int, np.ndarray], targets: Targets, hw: np.ndarray = HW, **changes: Any
) -> dict[str, float]:
    rpn = make_rpn(**{"sampler": Sampler(20, 0.5, "first"), "matcher": Matcher(0.7, 0.3, 0.3)} | changes)
    run = jax.jit(lambda *args: rpn.apply({}, *args, jax.random.key(0), method="losses")[0])
    return {name: float(value) for name, value in run(features, hw, targets).items()}


def test_losses_by_hand() -> None:
    """One anchor fits and predicts a delta that is off by 2 in all; 19 negatives are sure, the positive is not."""
    features = quiet()
    features[2][0, 3, 3] = [0, 0.5, -0.5, 1, 0]
    terms = loss_terms(features, truth_of([[4, 4, 20, 20]]))
    assert terms["loss_rpn_cls"] == pytest.approx(np.log(2) / 20, rel=1e-4)
    assert terms["loss_rpn_bbox"] == pytest.approx(2 / 20, rel=1e-5)
    smooth = loss_terms(features, truth_of([[4, 4, 20, 20]]), beta=1.0)
    assert smooth["loss_rpn_bbox"] == pytest.approx((0.125 + 0.125 + 0.5) / 20, rel=1e-5)


def test_an_image_without_objects_counts_one_more() -> None:
    """The reference's normaliser: at least one positive an image, though there is none."""
    features = quiet()
    features[2][..., 0] = 0
    terms = loss_terms(features, truth_of([]))
    assert terms["loss_rpn_cls"] == pytest.approx(20 * np.log(2) / 21, rel=1e-5)
    assert terms["loss_rpn_bbox"] == 0


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
    loss = loss_terms(features, truth_of([]), sampler=sampler, border=border)["loss_rpn_cls"] / np.log(2)
    return round(loss / (1 - loss))


def test_no_gradient_flows_into_proposals() -> None:
    rpn = make_rpn()

    def total(features: Any) -> jax.Array:
        found = rpn.apply({}, features, HW, method="proposals")
        return found.boxes.sum() + found.scores.sum()

    gradients = jax.jit(jax.grad(total))(quiet())
    assert not any(np.any(g) for g in gradients.values())
