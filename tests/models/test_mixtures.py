"""The refining step on other models, and other parts behind it: they are made, trained and asked as one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.copies import with_copies
from jaxdet.checkpoints.tree import flatten
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment
from jaxdet.models.parts.boundaries import BoundaryRefinement
from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.roi.schedule import make_stages
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from tests.models.small import (
    FIRST,
    Pooled,
    Same,
    initialize,
    make_batch,
    make_box_branch,
    make_mask_branch,
    make_model,
    make_targets,
)
from tests.training import tiny

KEY = jax.random.key(0)
BATCH = make_batch([make_targets(0), make_targets(1, "nothing")])


def experiment(heads: tuple[int, ...], linked: tuple[bool, ...], *, score: bool = False) -> Experiment:
    """Stages that use these heads, class-agnostic ones if there are several; mask heads with and without link."""
    number, many = len(linked), len(heads) > 1
    masks = [make_mask_branch(head=FCN(channels=8, convs=1, linked=link)) for link in linked]
    parts: tuple[Any, ...] = (MaskPrediction(tuple(masks)),)
    if score:
        parts += (MaskScoring(MaskIoUHead(FC2(channels=8), channels=8)),)
    ious, weights = (0.5, 0.6, 0.7)[: len(heads)], (1.0, 0.5, 0.25)[: len(heads)]
    passes: Any = "stage" if linked[-1] else "none"
    stages = make_stages(
        heads, ious, weights, interleaved=linked[-1], mask_passes=passes, low_quality=False, sampler=FIRST
    )
    branches = tuple(make_box_branch(head=BoxHead(FC2(channels=8), class_agnostic=many)) for _ in range(number))
    model = make_model(backbone=Pooled(), neck=Same(), heads=branches, stages=stages, parts=parts)
    return Experiment(model, tiny.get_config().data)


def mask_rcnn() -> Experiment:
    return experiment((0,), (False,))


def groie(size: int) -> GRoIE:
    return GRoIE({7: 3, 14: 6}[size], pre=ConvReLU(1), sampling_ratio=1)


LINK = {f"params/masks/refine_mask/head/link/{leaf}" for leaf in ("kernel", "bias")}
PRE = {
    f"params/masks/refine_{branch}/extractor/pre/conv/{leaf}"
    for branch in ("box", "mask")
    for leaf in ("kernel", "bias")
}
MIXTURES: Mapping[str, tuple[Callable[[], Experiment], set[str]]] = {
    "cascade": (lambda: refined(lambda: experiment((0, 1, 2), (False, False, False))), LINK),
    "htc": (lambda: refined(lambda: experiment((0, 1, 2), (False, True, True))), set()),
    "groie": (lambda: refined(mask_rcnn, groie), LINK | PRE),
}
"""Experiments, and which parameters of the refining heads are not among those that they copy."""


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_made_and_its_heads_are_copies(name: str) -> None:
    make, fresh = MIXTURES[name]
    both = make()
    model, before = both.model, both.before
    assert before is not None
    variables, losses, found = jax.eval_shape(
        lambda: (
            (made := model.init(KEY, BATCH, method="predict")),
            model.apply(made, BATCH, KEY, method="losses")[0],
            model.apply(made, BATCH, method="predict"),
        )
    )
    stages = model.stages
    prefix = [""] if len(stages) == 1 else [f"s{t}." for t in range(len(stages))]
    assert {f"{stage}loss_mask" for stage in prefix} < set(losses)
    assert {"refine.loss_cls", "refine.loss_bbox", "refine.loss_mask"} < set(losses)
    assert found.masks.values.shape == (2, 100, 12, 12)
    base = jax.eval_shape(lambda: before.model.init(KEY, BATCH, method="predict"))
    copied, afresh = with_copies(variables, base, both.run.init_copy)
    assert set(afresh) == fresh
    for name, leaf in flatten(copied["params"]["masks"]).items():
        assert leaf.shape == flatten(variables["params"]["masks"])[name].shape, name


def test_a_loop_with_scores_behind_it_and_boundaries_behind_these() -> None:
    both = refined(lambda: experiment((0, 0), (True,), score=True), behind=(BoundaryRefinement(),))
    model = both.model
    assert both.run.init_fresh == ("boundaries",)
    variables = initialize(model, BATCH)

    def total(params: Any) -> Any:
        losses, metrics = model.apply({**variables, "params": params}, BATCH, KEY, method="losses")
        return sum(losses.values()), (losses, metrics)

    grads, (losses, metrics) = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    assert {"s0.loss_mask", "s1.loss_mask", "refine.loss_mask", "loss_mask_iou", "loss_boundaries"} < set(losses)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, losses, metrics)))
    for part in (*(grads["masks"][name] for name in ("heads_0", "refine_box", "refine_mask")), grads["mask_scores"]):
        assert any(leaf.any() for leaf in jax.tree.leaves(part))

    moved = jax.tree.map(lambda p, g: p - 1e-3 * g / (1 + jnp.abs(g)), variables["params"], grads)
    found = jax.jit(lambda params: model.apply({**variables, "params": params}, BATCH, method="predict"))(moved)
    assert found.valid[0].any()
    assert np.isfinite(found.mask_scores[found.valid]).all()
    boxes = found.boxes[found.valid]
    # Frames stay where the mask head looked; boxes are whole pixels, where masks end.
    np.testing.assert_array_equal(boxes, np.round(boxes))
    assert not np.allclose(boxes, found.masks.frames[found.valid])
