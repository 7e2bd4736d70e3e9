"""Extractors and box branches that are given a guide, a map for each box by which its samples are multiplied."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.roi.heads import BoxBranch
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.semantic import PlusSemantic
from jaxdet.structures import Features
from tests.models.small import CLASSES, make_box_branch

KEY = jax.random.key(0)
EXTRACTORS = {
    "one level": SingleLevel(size=2, sampling_ratio=2, finest=14.0),
    "sum": GRoIE(size=2),
    "random": GRoIE(size=2, combine="random"),
    "with layers": GRoIE(size=2, pre=ConvReLU(3), combine="concat"),
    "semantic": PlusSemantic(SingleLevel(size=2, finest=14.0)),
}
BOXES, VALID = jnp.asarray([[[8.0, 8, 40, 56], [20, 4, 29, 17], [3, 5, 60, 20]]]), jnp.asarray([[True, True, False]])


def pyramid(value: float | None = None) -> Features:
    """Of an image of 64 pixels: drawn, or all of one value."""
    shapes = {level: (1, 64 >> level, 64 >> level, 3) for level in (2, 3, 4, 5)}
    drawn = {k: jnp.full(s, value) if value else jax.random.normal(KEY, s) for k, s in shapes.items()}
    return Features(drawn, semantic=drawn[3])


def make(name: str, **changes: Any) -> tuple[nn.Module, Any]:
    """An extractor and its parameters."""
    extractor = EXTRACTORS[name]
    return extractor, jax.jit(extractor.init)(KEY, pyramid(), BOXES, VALID)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_guide_of_ones_changes_nothing(name: str) -> None:
    extractor, variables = make(name)
    apply = jax.jit(extractor.apply)
    plain = apply(variables, pyramid(), BOXES, VALID)
    guided = apply(variables, pyramid(), BOXES, VALID, jnp.ones((1, 3, 5, 4)))
    np.testing.assert_allclose(guided, plain, atol=1e-5)
    assert np.abs(guided[0, :2]).max() > 0.1


@pytest.mark.parametrize(("name", "factor"), [("one level", 1), ("sum", 4), ("random", 1)])
def test_by_hand(name: str, factor: int) -> None:
    """Samples at -1/4, 1/4, 3/4 and 5/4 of the guide's pixels, of which the outer ones count beyond their centres."""
    extractor, variables = make(name)
    guide = jnp.broadcast_to(jnp.asarray([[1, 0.5], [0.25, 0]]), (1, 3, 2, 2))
    crops = jax.jit(extractor.apply)(variables, pyramid(2.0), BOXES, VALID, guide)
    shown = np.array([[0.84765625, 0.49609375], [0.30859375, 0.09765625]])
    np.testing.assert_allclose(crops[0, 0, :, :, 0], 2 * factor * shown, rtol=1e-5)
    np.testing.assert_array_equal(crops[0, 2], 0.0)


@pytest.mark.parametrize("name", ["with layers", "semantic"])
def test_a_guide_gets_a_gradient_and_a_slot_that_does_not_count_has_none(name: str) -> None:
    extractor, variables = make(name)

    @jax.jit
    def slopes(guide: jax.Array) -> Any:
        def total(guide: jax.Array, features: Features) -> jax.Array:
            return jnp.cos(extractor.apply(variables, features, BOXES, VALID, guide)[0, :2]).sum()

        return jax.grad(total, (0, 1))(guide, pyramid())

    drawn = jax.random.uniform(KEY, (1, 3, 4, 4))
    to_guide, to_features = slopes(drawn)
    assert (np.abs(to_guide[0, :2]).max((1, 2)) > 1e-3).all()
    np.testing.assert_array_equal(to_guide[0, 2], 0.0)
    again = slopes(drawn.at[0, 2].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, again, (to_guide, to_features))


def test_a_box_branch_hands_it_to_its_extractor() -> None:
    """By place or by name, rematerialised or not; value and gradient are those of the head on guided crops."""
    branch = make_box_branch()
    again = branch.clone(remat=True)
    variables = jax.jit(branch.init, static_argnums=4)(KEY, pyramid(), BOXES, VALID, CLASSES)
    given = pyramid(), BOXES, VALID

    def logits(guide: jax.Array) -> list[jax.Array]:
        crops = branch.extractor.apply({}, *given, guide)
        head = {"params": variables["params"]["head"]}
        return [
            branch.head.apply(head, crops.reshape(3, *crops.shape[2:]), CLASSES)[0].reshape(1, 3, -1),
            branch.apply(variables, *given, CLASSES, guide)[0],
            again.apply(variables, *given, CLASSES, guide=guide)[0],
        ]

    guide, weights = jax.random.uniform(KEY, (1, 3, 4, 4)), jax.random.normal(KEY, (1, 3, CLASSES + 1))

    @jax.jit
    def all_slopes(guide: jax.Array) -> Any:
        found, back = jax.vjp(logits, guide)
        return found, [back([weights * (i == k) for i in range(3)])[0] for k in range(3)]

    found, slopes = all_slopes(guide)
    for ours, slope in zip(found[1:], slopes[1:], strict=True):
        np.testing.assert_allclose(ours, found[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slope, slopes[0], atol=1e-5)
    assert np.abs(slopes[0]).max() > 1e-3


class Corners(nn.Module):
    """An extractor as it was before there were guides: the first four pixels of the finest level for every box."""

    def __call__(self, features: Features, boxes: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.broadcast_to(features.levels[2][:, None, :2, :2], (*valid.shape, 2, 2, 3))


def test_an_extractor_without_guides_serves_a_branch_without() -> None:
    branch = BoxBranch(Corners(), make_box_branch().head)
    (logits, _), _ = jax.jit(branch.init_with_output, static_argnums=4)(KEY, pyramid(), BOXES, VALID, CLASSES)
    assert logits.shape == (1, 3, CLASSES + 1)
