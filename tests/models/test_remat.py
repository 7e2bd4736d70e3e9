"""Rematerialisation changes what is kept for the backward pass, and nothing else."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.roi.schedule import make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads.mask import FCN
from jaxdet.structures import Features, Proposals
from tests.models.small import (
    FIRST,
    initialize,
    make_batch,
    make_box_branch,
    make_mask_branch,
    make_model,
    make_targets,
)
from tests.programs import equations

BATCH = make_batch([make_targets(0), make_targets(1)])
TARGETS = jax.tree.map(jnp.asarray, BATCH.targets)
FEATURES = Features(
    {level: jax.random.normal(jax.random.key(level), (2, 64 >> level, 64 >> level, 8)) for level in (2, 3, 4, 5)}
)


def model(remat: bool, unroll: bool = True) -> TwoStage:
    """Two stages of one box head and one linked mask head."""
    masks = make_mask_branch(head=FCN(channels=8, convs=1, linked=True), remat=remat)
    backbone = ResNet(depth=18, width=8, remat=remat)
    stages = make_stages((0, 0), (0.5, 0.6), (1.0, 1.0), sampler=FIRST)
    heads, parts = (make_box_branch(remat=remat),), (MaskPrediction((masks,)),)
    return make_model(heads=heads, backbone=backbone, stages=stages, parts=parts, unroll=unroll)


@pytest.fixture(scope="module")
def variables() -> Any:
    return initialize(model(False), BATCH)


def backbone_loss(net: TwoStage, variables: Any) -> Callable[[Any], jax.Array]:
    stats = variables["batch_stats"]["backbone"]
    image = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))

    def loss(params: Any) -> jax.Array:
        features = net.backbone.apply({"params": params["backbone"], "batch_stats": stats}, image)
        return sum((jnp.square(f).mean() for f in features.values()), jnp.float32(0))

    return loss


def heads_loss(net: TwoStage, variables: Any) -> Callable[[Any], jax.Array]:
    boxes = jnp.repeat(TARGETS.boxes[:, :3], 5, 1) + jax.random.uniform(jax.random.key(3), (2, 15, 4), maxval=4.0)
    proposals = Proposals(boxes, jnp.ones((2, 15)), jnp.ones((2, 15), bool))

    def loss(params: Any) -> jax.Array:
        given = FEATURES, proposals, TARGETS, BATCH.true_hw, jax.random.key(2)
        terms, _ = net.apply({**variables, "params": params}, *given, method="stage_losses")
        return sum(terms.values(), jnp.float32(0))

    return loss


def kept_bytes(loss: Callable[[Any], jax.Array], params: Any) -> int:
    """Size of everything that waits for the backward pass, other than what has the shape of a parameter."""
    residuals = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    kept = [leaf for leaf in jax.tree.leaves(residuals) if leaf.shape not in shapes]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)


@pytest.mark.parametrize("part", [backbone_loss, heads_loss])
def test_losses_and_gradients_are_the_same_from_less_memory(part: Any, variables: Any) -> None:
    params = variables["params"]
    losses = [part(model(remat), variables) for remat in (False, True)]
    assert kept_bytes(losses[1], params) < 0.6 * kept_bytes(losses[0], params)
    plain, again = (jax.jit(jax.value_and_grad(loss))(params) for loss in losses)
    for ours, theirs in zip(*map(jax.tree.leaves, (again, plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(np.abs(theirs).max()))


def test_parameters_keep_their_names_and_shapes(variables: Any) -> None:
    fresh = jax.eval_shape(lambda: model(True).init(jax.random.key(0), BATCH, method="predict"))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("unroll", [True, False])
def test_more_is_computed_and_no_convolution_moves_into_a_loop(variables: Any, unroll: bool) -> None:
    """Weight gradients of convolutions inside loops are tens of times slower on a CPU."""
    loops, number = {}, {}
    for remat in (False, True):
        loss = heads_loss(model(remat, unroll), variables)
        program = jax.make_jaxpr(jax.grad(loss))(variables["params"]).jaxpr
        found = [outer for e, outer in equations(program) if e.primitive.name == "conv_general_dilated"]
        number[remat] = len(found)
        loops[remat] = {name for outer in found for name in outer} & {"while", "scan"}
    assert number[True] > number[False]
    assert loops[True] == loops[False] == (set() if unroll else {"scan"})
