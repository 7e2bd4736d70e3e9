"""Stages written out and stages rolled into a scan: the same numbers, and a program that does not grow."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.roi import loop, scan
from jaxdet.models.roi.scan import choose, stack, why_not_rolled
from jaxdet.models.roi.schedule import Stage, make_stages
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.losses import SmoothL1
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Detections, Features, Proposals
from tests.models.small import FIRST, make_box_branch, make_mask_branch, make_model, make_targets
from tests.programs import executions

KEY = jax.random.key(1)
HW = jnp.array([[60.0, 56.0], [60.0, 56.0]])
FEATURES = Features(
    {level: jax.random.normal(jax.random.key(level), (2, 64 >> level, 64 >> level, 8)) for level in (2, 3, 4, 5)}
)
TARGETS = jax.tree.map(lambda *leaves: jnp.stack(leaves), make_targets(0), make_targets(1, "nothing"))


def make_proposals() -> Proposals:
    """Some near the objects, some anywhere, some invalid."""
    noise = jax.random.uniform(KEY, (2, 20, 4), minval=-6.0, maxval=6.0)
    near = jnp.tile(TARGETS.boxes[:1, :3], (2, 7, 1))[:, :20] + noise
    return Proposals(near, jnp.ones((2, 20)), jnp.arange(20)[None] < jnp.array([[20], [15]]))


PROPOSALS = make_proposals()
ORDERS = {"r3": (0, 0, 0), "deeper": (0, 0, 1), "htc": (0, 1, 2)}


STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def box_branch(index: int) -> Any:
    head = BoxHead(FC2(channels=8), class_agnostic=True)
    return make_box_branch(head=head, coder=DeltaCoder(stds=STDS[index]), box_loss=SmoothL1(1.0))


def mask_branch(linked: bool = True) -> Any:
    return make_mask_branch(head=FCN(channels=6, convs=1, linked=linked))


def make_loop(name: str, mask_passes: Any = "stage", score: bool = False, **changes: Any) -> TwoStage:
    order = ORDERS[name]
    number = max(order) + 1
    masks = MaskPrediction(tuple(mask_branch(linked=(name, h) != ("htc", 0)) for h in range(number)))
    scores = (MaskScoring(MaskIoUHead(FC2(channels=8), channels=8)),) if score else ()
    stages = make_stages(order, (0.3, 0.5, 0.6), (1.0, 0.75, 0.5), mask_passes=mask_passes, sampler=FIRST)
    heads = tuple(box_branch(h) for h in range(number))
    return make_model(**{"heads": heads, "stages": stages, "parts": (masks, *scores)} | changes)


def single(stages: tuple[Stage, ...], linked: bool = True, **changes: Any) -> TwoStage:
    """One head at all of these stages."""
    return make_model(heads=(box_branch(0),), stages=stages, parts=(MaskPrediction((mask_branch(linked),)),), **changes)


def train(model: TwoStage) -> Any:
    return model.stage_losses(FEATURES, PROPOSALS, TARGETS, HW, KEY)


def test(model: TwoStage) -> Detections:
    return model.detect(FEATURES, PROPOSALS, HW)


test.__test__ = False  # type: ignore[attr-defined]


def random_weights(model: TwoStage) -> Any:
    """Weights with which the heads say something: the reference's initial outputs are all but 0."""
    shapes = jax.eval_shape(lambda: model.init(KEY, method=train))
    return jax.tree.map(lambda s: 0.2 * jax.random.normal(jax.random.key(s.size), s.shape), shapes)


@cache
def variables(name: str) -> Any:
    return random_weights(make_loop(name))


@cache
def losses_of(model: TwoStage) -> Any:
    return jax.jit(lambda w: model.apply(w, method=train)[0])


def losses_and_gradients(model: TwoStage, weights: Any) -> Any:
    def total(weights: Any) -> Any:
        found = model.apply(weights, method=train)
        return sum(found[0].values()), found

    (_, found), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(weights)
    return found, grads


def detections(model: TwoStage, weights: Any) -> Detections:
    return jax.jit(lambda w: model.apply(w, method=test))(weights)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("r3", {"score": True}),
        ("deeper", {}),
        ("deeper", {"mask_passes": "head"}),
        ("htc", {}),
    ],
    ids=["r3-scores", "deeper", "deeper-head", "htc"],
)
def test_rolled_equals_written_out(name: str, changes: dict[str, Any]) -> None:
    models = [make_loop(name, unroll=unroll, **changes) for unroll in (True, False)]
    weights = random_weights(models[0])
    (found, grads), (rolled, rolled_grads) = (losses_and_gradients(model, weights) for model in models)
    assert found[0].keys() == rolled[0].keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, rolled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), grads, rolled_grads)
    assert max(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads)) > 0.01


def test_rolled_detections_equal_written_out() -> None:
    weights = variables("htc")
    found = [detections(make_loop("htc", unroll=unroll), weights) for unroll in (True, False)]
    assert found[0].valid.sum() > 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found)


@pytest.mark.parametrize("name", ["r3", "htc"])
def test_both_forms_compute_in_the_dtype_of_the_features(name: str) -> None:
    """In bfloat16 the same shapes and dtypes come out, float32 where numbers are judged."""
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), FEATURES)

    def run(model: TwoStage) -> Any:
        found = model.detect(low, PROPOSALS, HW)
        return model.stage_losses(low, PROPOSALS, TARGETS, HW, KEY), (found.boxes, found.scores, found.masks.values)

    models = [make_loop(name, score=True, unroll=unroll) for unroll in (True, False)]
    weights = jax.eval_shape(lambda: models[0].init(KEY, method=run))
    said = [jax.eval_shape(lambda w, model=model: model.apply(w, method=run), weights) for model in models]
    assert said[0] == said[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(said)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("unroll", [True, False])
def test_the_last_stage_of_0_0_1_belongs_to_the_second_head(unroll: bool) -> None:
    """The second head's deltas move nothing but the last stage's loss; the first head's move all."""
    model, weights = make_loop("deeper", unroll=unroll), variables("deeper")
    bias = ("head", "deltas", "bias")

    def terms_with(head: int) -> dict[str, float]:
        changed = jax.tree.map(lambda a: a, weights)
        leaf = changed["params"][f"heads_{head}"]
        for key in bias[:-1]:
            leaf = leaf[key]
        leaf[bias[-1]] = leaf[bias[-1]] + 1.0
        return losses_of(model)(changed)

    before = losses_of(model)(weights)
    second = terms_with(1)
    moved = {key for key in before if abs(float(before[key] - second[key])) > 1e-6}
    assert "s2.loss_bbox" in moved
    assert moved <= {"s2.loss_bbox", "s2.loss_mask"}  # interleaved: the mask branch sees the moved boxes
    first = terms_with(0)
    assert all(abs(float(before[f"s{t}.loss_bbox"] - first[f"s{t}.loss_bbox"])) > 1e-6 for t in (0, 1))


def test_the_program_does_not_grow_with_stages() -> None:
    def size(number: int, unroll: bool) -> int:
        stages = make_stages((0,) * number, (0.5, 0.6, 0.7)[:number], (1.0,) * number, sampler=FIRST)
        model = single(stages, unroll=unroll)
        grad = jax.grad(lambda w: sum(model.apply(w, method=train)[0].values()))
        return len(jax.jit(grad).lower(weights).as_text().splitlines())

    weights = variables("r3")
    assert size(3, unroll=False) <= 1.3 * size(1, unroll=False)
    assert size(3, unroll=True) > 1.3 * size(1, unroll=True)


def test_rolled_keeps_weights_of_a_single_head_once() -> None:
    """For the gradient; those of several heads are kept once a stage, and once a mask pass."""

    def kept(name: str, place: str, times: int) -> set[str]:
        model, weights = make_loop(name, unroll=False), variables(name)
        program = str(jax.make_jaxpr(jax.grad(lambda w: sum(model.apply(w, method=train)[0].values())))(weights))
        leaves = flatten_dict(weights["params"], sep="/")
        shapes = {path: ",".join(map(str, (times, *leaf.shape))) for path, leaf in leaves.items() if leaf.ndim > 1}
        shapes = {path: shape for path, shape in shapes.items() if path.startswith(place)}
        return {path for path, shape in shapes.items() if f"f32[{shape}]" in program}

    assert kept("r3", "heads_0", 3) == kept("r3", "masks/heads_0", 6) == set()
    assert "heads_0/head/trunk/fc2/kernel" in kept("deeper", "heads_0", 3)
    assert "masks/heads_0/head/conv1/kernel" in kept("deeper", "masks/heads_0", 6)


@pytest.mark.parametrize("mask_passes", ["stage", "head", "none"])
def test_mask_passes_that_do_not_run_are_not_there(mask_passes: Any) -> None:
    """Rolled and written out, the same number of products and convolutions runs, whichever loop they stand in."""

    def run(unroll: bool) -> int:
        model = make_loop("deeper", mask_passes, unroll=unroll)
        program = jax.make_jaxpr(lambda w: model.apply(w, method=train))(variables("deeper"))
        return executions(program.jaxpr, ("conv_general_dilated", "dot_general"))

    assert run(unroll=False) == run(unroll=True)


def test_test_stages_may_be_fewer_or_more_than_training_stages() -> None:
    weights = variables("r3")
    scores = [detections(make_loop("r3", test_heads=(0,) * n), weights).scores for n in (1, 3, 5)]
    np.testing.assert_array_equal(scores[1], detections(make_loop("r3"), weights).scores)
    assert np.abs(scores[0] - scores[1]).max() > 1e-4
    assert np.abs(scores[2] - scores[1]).max() > 1e-4


UNLIKE = (Stage(sampler=FIRST), Stage(sampler=Sampler(8, 0.5)))
"""Stages that cannot be rolled."""


def test_what_cannot_be_rolled_is_named() -> None:
    with pytest.raises(ValueError, match=r"samplers.* cannot be rolled into a scan; set model\.unroll=true"):
        single(UNLIKE, unroll=False).apply(variables("r3"), method=train)
    stages = make_stages((0, 1), (0.5, 0.6), (1, 1), sampler=FIRST)
    wider = make_box_branch(head=BoxHead(FC2(channels=9), class_agnostic=True))
    other = make_mask_branch(head=FCN(channels=6, convs=2, linked=True))
    pairs = [
        ((box_branch(0), wider), (mask_branch(), mask_branch())),
        ((box_branch(0), box_branch(1)), (mask_branch(), other)),
    ]
    for heads, branches in pairs:
        model = make_model(heads=heads, stages=stages, parts=(MaskPrediction(branches),))
        shapes = jax.eval_shape(lambda model=model: model.init(KEY, method=train))
        weights = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
        with pytest.raises(ValueError, match="heads differ in more than"):
            jax.eval_shape(lambda w, model=model: model.clone(unroll=False).apply(w, method=train), weights)


def test_which_form_runs() -> None:
    """A single stage is never rolled; on a CPU, and where it cannot be done, stages are written out."""
    several = make_stages((0, 0), (0.5, 0.6), (1, 1), sampler=FIRST)
    assert choose((), several, None) is choose((), several, True) is loop
    assert choose((), several, False) is scan
    assert choose((), several[:1], None) is loop
    assert choose((), UNLIKE, None) is loop


def test_a_missing_link_is_a_link_of_zeros() -> None:
    stacked = stack([{"a": {"k": jnp.ones(2)}}, {"a": {"k": jnp.ones(2)}, "link": {"k": jnp.ones(3)}}])
    np.testing.assert_array_equal(stacked["link"]["k"], [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(stacked["a"]["k"], 1)


def test_what_else_is_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="a/k is not in all heads"):
        stack([{"a": {"k": jnp.ones(2)}}, {"b": {"k": jnp.ones(2)}}])


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("first", [train, test], ids=["losses", "predict"])
def test_parameters_of_all_heads_are_made_whatever_runs_first(unroll: bool, first: Any) -> None:
    """At test linked heads share the last one's crops, and test_heads may leave heads out: training needs them all."""

    def extractor(size: int) -> GRoIE:
        return GRoIE(size=size, pre=ConvReLU(1), levels=(2, 3))

    parts = (
        MaskPrediction(tuple(mask_branch().clone(extractor=extractor(6)) for _ in range(2))),
        MaskScoring(MaskIoUHead(FC2(channels=8), channels=8)),
    )
    model = make_loop("deeper", parts=parts, test_heads=(0,), unroll=unroll)
    weights = jax.eval_shape(lambda: model.init(KEY, method=first))
    masks = weights["params"]["masks"]
    assert set(masks["heads_0"]) == set(masks["heads_1"]) == {"extractor", "head"}
    assert set(weights["params"]["heads_0"]) == set(weights["params"]["heads_1"]) == {"head"}
    assert set(weights["params"]) == {"heads_0", "heads_1", "masks", "mask_scores"}
    for method in (train, test):
        jax.eval_shape(lambda w, method=method: model.apply(w, method=method), weights)


def test_what_cannot_be_rolled_is_written_out_unless_asked_for() -> None:
    assert why_not_rolled((), UNLIKE) == "stages differ in their samplers or kinds of matching"
    jax.eval_shape(lambda w: single(UNLIKE).apply(w, method=train), variables("r3"))


@pytest.mark.parametrize("test_heads", [(), (0, 2), (-1,)])
def test_heads_at_test_must_be_there(test_heads: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"test_heads: expected (one or more of the heads \[0, 1\]|a number from 0)"):
        jax.eval_shape(lambda: make_loop("deeper", test_heads=test_heads).init(KEY, method=test))


def test_layers_shared_between_branches_are_refused() -> None:
    pre = ConvReLU(1)
    head = make_box_branch(extractor=GRoIE(size=3, pre=pre))
    masks = MaskPrediction((make_mask_branch(extractor=GRoIE(size=6, pre=pre)),))
    with pytest.raises(ValueError, match=r"listed twice, as heads\[0\].extractor.pre and parts\[0\].heads\[0\].extr"):
        jax.eval_shape(lambda: make_model(heads=(head,), parts=(masks,)).init(KEY, method=test))


@pytest.mark.parametrize(("number", "method"), [(1, train), (1, test), (3, train)])
def test_there_are_as_many_mask_branches_as_box_heads(number: int, method: Any) -> None:
    """A branch too many would never be trained."""
    stages = make_stages((0, 1), (0.5, 0.6), (1, 1), mask_passes="none", sampler=FIRST)
    masks = MaskPrediction(tuple(mask_branch() for _ in range(number)))
    model = make_model(heads=(box_branch(0), box_branch(1)), stages=stages, parts=(masks,))
    with pytest.raises(ValueError, match=rf"heads \[0, 1\], the mask branch has {number}: give it one for each"):
        jax.eval_shape(lambda: model.init(KEY, method=method))


def test_matchers_may_fall_too() -> None:
    """R3-CNN Table 1 row 5: thresholds that fall."""
    assert [s.matcher.positive_iou for s in make_stages((0, 0, 0), (0.7, 0.6, 0.5))] == [0.7, 0.6, 0.5]
    assert make_stages((0,), (0.7,), (1.0,))[0].matcher == Matcher(0.7, 0.7, 0.7)


def test_stages_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="mask_passes: expected one of"):
        make_stages((0, 0, 0), mask_passes="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an IoU and a weight for each stage"):
        make_stages((0, 0), (0.5,), (1.0,))
    for method in (train, test):
        with pytest.raises(ValueError, match=r"stage 1 wants 1 mask passes .* mask head 0 is not linked"):
            jax.eval_shape(lambda method=method: single(make_stages((0, 0, 0)), linked=False).init(KEY, method=method))


@pytest.mark.parametrize("passes", [2, 3])
def test_mask_passes_are_those_of_the_stages_before(passes: int) -> None:
    stages = (Stage(sampler=FIRST), Stage(sampler=FIRST, mask_passes=passes))
    with pytest.raises(ValueError, match=f"stage 1 has 1 stages before it: expected 0 to 1 .* got {passes}"):
        jax.eval_shape(lambda: single(stages).init(KEY, method=train))


def test_mask_passes_by_stage_by_head_or_none() -> None:
    def passes(how: Any) -> list[int]:
        return [stage.mask_passes for stage in make_stages((0, 0, 1), mask_passes=how)]

    assert (passes("stage"), passes("head"), passes("none")) == ([0, 1, 2], [0, 0, 1], [0, 0, 0])
