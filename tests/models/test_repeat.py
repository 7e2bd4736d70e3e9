"""Steps written out and steps rolled into a scan: the same numbers, and a program that does not grow."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxdet.models.repeat import stack, why_not_rolled
from jaxdet.models.schedule import Step, make_schedule

from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Detections, Proposals
from tests.models.small import FIRST, make_head, make_model, make_targets
from tests.programs import executions

KEY = jax.random.key(1)
HW = jnp.array([[60.0, 56.0], [60.0, 56.0]])
FEATURES = {level: jax.random.normal(jax.random.key(level), (2, 64 >> level, 64 >> level, 8)) for level in (2, 3, 4, 5)}
TARGETS = jax.tree.map(lambda *leaves: jnp.stack(leaves), make_targets(0), make_targets(1, "nothing"))


def make_proposals() -> Proposals:
    """Some near the objects, some anywhere, some invalid."""
    noise = jax.random.uniform(KEY, (2, 20, 4), minval=-6.0, maxval=6.0)
    near = jnp.tile(TARGETS.boxes[:1, :3], (2, 7, 1))[:, :20] + noise
    return Proposals(near, jnp.ones((2, 20)), jnp.arange(20)[None] < jnp.array([[20], [15]]))


PROPOSALS = make_proposals()
SCHEDULES = {"r3": (0, 0, 0), "deeper": (0, 0, 1), "htc": (0, 1, 2)}


def make_loop_head(index: int, linked: bool = True) -> Any:
    stds = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))[index]
    return make_head(
        box_head=BoxHead(FC2(channels=8), class_agnostic=True),
        mask_head=FCN(channels=6, convs=1, linked=linked),
        coder=DeltaCoder(stds=stds),
        beta=1.0,
    )


def make_loop(name: str, mask_passes: Any = "step", **changes: Any) -> TwoStage:
    order = SCHEDULES[name]
    ious, weights = (0.3, 0.5, 0.6), (1.0, 0.75, 0.5)
    heads = tuple(make_loop_head(h, linked=(name, h) != ("htc", 0)) for h in range(max(order) + 1))
    schedule = make_schedule(order, ious, weights, mask_passes=mask_passes, sampler=FIRST)
    return make_model(heads=heads, schedule=schedule, **changes)


def train(model: TwoStage) -> Any:
    return model.head_losses(FEATURES, PROPOSALS, TARGETS, HW, KEY)


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


def losses_of(model: TwoStage) -> Any:
    return jax.jit(lambda w: model.apply(w, method=train)[0])


def losses(model: TwoStage, weights: Any) -> dict[str, jax.Array]:
    return losses_of(model)(weights)


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
        ("r3", {"mask_iou": MaskIoUHead(FC2(channels=8), channels=8)}),
        ("deeper", {}),
        ("deeper", {"mask_passes": "head"}),
        ("htc", {}),
    ],
    ids=["r3-mask_iou", "deeper", "deeper-head", "htc"],
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


@pytest.mark.parametrize("unroll", [True, False])
def test_the_last_step_of_0_0_1_belongs_to_the_second_head(unroll: bool) -> None:
    """The second head's deltas move nothing but the last step's loss; the first head's move all."""
    model, weights = make_loop("deeper", unroll=unroll), variables("deeper")
    bias = ("box_head", "deltas", "bias")

    def terms_with(head: int) -> dict[str, float]:
        changed = jax.tree.map(lambda a: a, weights)
        leaf = changed["params"][f"heads_{head}"]
        for key in bias[:-1]:
            leaf = leaf[key]
        leaf[bias[-1]] = leaf[bias[-1]] + 1.0
        return losses(model, changed)

    before = losses(model, weights)
    second = terms_with(1)
    moved = {key for key in before if abs(float(before[key] - second[key])) > 1e-6}
    assert "s2.loss_bbox" in moved
    assert moved <= {"s2.loss_bbox", "s2.loss_mask"}  # interleaved: the mask branch sees the moved boxes
    first = terms_with(0)
    assert all(abs(float(before[f"s{t}.loss_bbox"] - first[f"s{t}.loss_bbox"])) > 1e-6 for t in (0, 1))


def test_the_program_does_not_grow_with_steps() -> None:
    def size(steps: int, unroll: bool) -> int:
        schedule = make_schedule((0,) * steps, (0.5, 0.6, 0.7)[:steps], (1.0,) * steps, sampler=FIRST)
        model = make_model(heads=(make_loop_head(0),), schedule=schedule, unroll=unroll)
        grad = jax.grad(lambda w: sum(model.apply(w, method=train)[0].values()))
        return len(jax.jit(grad).lower(weights).as_text().splitlines())

    weights = variables("r3")
    assert size(3, unroll=False) <= 1.3 * size(1, unroll=False)
    assert size(3, unroll=True) > 1.3 * size(1, unroll=True)


def test_rolled_keeps_weights_of_a_single_head_once() -> None:
    """For the gradient; those of several heads are kept once a step, and once a mask pass."""

    def kept(name: str, times: int) -> set[str]:
        model, weights = make_loop(name, unroll=False), variables(name)
        program = str(jax.make_jaxpr(jax.grad(lambda w: sum(model.apply(w, method=train)[0].values())))(weights))
        leaves = flatten_dict(weights["params"]["heads_0"], sep="/")
        shapes = {path: ",".join(map(str, (times, *leaf.shape))) for path, leaf in leaves.items() if leaf.ndim > 1}
        return {path for path, shape in shapes.items() if f"f32[{shape}]" in program}

    assert kept("r3", 3) == kept("r3", 6) == set()
    assert "box_head/trunk/fc2/kernel" in kept("deeper", 3)
    assert "mask_head/conv1/kernel" in kept("deeper", 6)


@pytest.mark.parametrize("mask_passes", ["step", "head", "none"])
def test_mask_passes_that_do_not_run_are_not_there(mask_passes: Any) -> None:
    """Rolled and written out, the same number of products and convolutions runs, whichever loop they stand in."""

    def run(unroll: bool) -> int:
        model = make_loop("deeper", mask_passes, unroll=unroll)
        program = jax.make_jaxpr(lambda w: model.apply(w, method=train))(variables("deeper"))
        return executions(program.jaxpr, ("conv_general_dilated", "dot_general"))

    assert run(unroll=False) == run(unroll=True)


def test_test_steps_may_be_fewer_or_more_than_training_steps() -> None:
    weights = variables("r3")
    scores = [detections(make_loop("r3", test_heads=(0,) * n), weights).scores for n in (1, 3, 5)]
    np.testing.assert_array_equal(scores[1], detections(make_loop("r3"), weights).scores)
    assert np.abs(scores[0] - scores[1]).max() > 1e-4
    assert np.abs(scores[2] - scores[1]).max() > 1e-4


def test_what_cannot_be_rolled_is_named() -> None:
    schedule = (Step(sampler=FIRST), Step(sampler=Sampler(8, 0.5)))
    model = make_model(heads=(make_loop_head(0),), schedule=schedule, unroll=False)
    with pytest.raises(ValueError, match="samplers"):
        model.apply(variables("r3"), method=train)
    other = make_head(box_head=BoxHead(FC2(channels=9), class_agnostic=True), mask_head=FCN(6, 1, linked=True))
    model = make_model(heads=(make_loop_head(0), other), schedule=make_schedule((0, 1), (0.5, 0.6), (1, 1)))
    shapes = jax.eval_shape(lambda: model.init(KEY, method=train))
    weights = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
    with pytest.raises(ValueError, match="heads differ in more than"):
        model.clone(unroll=False).apply(weights, method=train)


def test_a_missing_link_is_a_link_of_zeros() -> None:
    stacked = stack([{"a": {"k": jnp.ones(2)}}, {"a": {"k": jnp.ones(2)}, "link": {"k": jnp.ones(3)}}])
    np.testing.assert_array_equal(stacked["link"]["k"], [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(stacked["a"]["k"], 1)


def test_what_else_is_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="a/k is not in all heads"):
        stack([{"a": {"k": jnp.ones(2)}}, {"b": {"k": jnp.ones(2)}}])


@pytest.mark.parametrize("unroll", [True, False])
def test_prediction_makes_the_parameters_of_all_heads(unroll: bool) -> None:
    """At test linked heads share the last one's crops, and test_heads may leave heads out: training needs them all."""
    heads = tuple(
        make_loop_head(h).clone(mask_extractor=GRoIE(size=6, pre=ConvReLU(1), levels=(2, 3))) for h in range(2)
    )
    schedule = make_schedule((0, 0, 1), (0.3, 0.5, 0.6), (1, 1, 1), sampler=FIRST)
    model = make_model(heads=heads, schedule=schedule, test_heads=(0,), unroll=unroll)
    weights = jax.eval_shape(lambda: model.init(KEY, method=test))
    assert set(weights["params"]["heads_0"]) == set(weights["params"]["heads_1"]) >= {"mask_extractor"}
    jax.eval_shape(lambda w: model.apply(w, method=train), weights)


def test_what_cannot_be_rolled_is_written_out_unless_asked_for() -> None:
    schedule = (Step(sampler=FIRST), Step(sampler=Sampler(8, 0.5)))
    assert why_not_rolled((), schedule) == "steps differ in their samplers or kinds of matching"
    jax.eval_shape(
        lambda w: make_model(heads=(make_loop_head(0),), schedule=schedule).apply(w, method=train), variables("r3")
    )


@pytest.mark.parametrize("test_heads", [(), (0, 2), (-1,)])
def test_heads_at_test_must_be_there(test_heads: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"test_heads: expected one or more of the heads \[0, 1\]"):
        jax.eval_shape(lambda: make_loop("deeper", test_heads=test_heads).init(KEY, method=test))


def test_parts_shared_inside_a_head_are_refused() -> None:
    pre = ConvReLU(1)
    head = make_head(box_extractor=GRoIE(size=3, pre=pre), mask_extractor=GRoIE(size=6, pre=pre))
    with pytest.raises(ValueError, match=r"listed twice, as heads\[0\].box_extractor.pre and heads\[0\].mask_extr"):
        jax.eval_shape(lambda: make_model(heads=(head,)).init(KEY, method=test))


def test_mask_branches_are_for_all_heads_or_none() -> None:
    heads = (make_loop_head(0), make_head(mask_head=None, mask_extractor=None))
    model = make_model(heads=heads, schedule=make_schedule((0, 1), (0.5, 0.6), (1, 1), mask_passes="none"))
    with pytest.raises(ValueError, match="some heads have a mask branch"):
        jax.eval_shape(lambda: model.init(KEY, method=test))


def test_matchers_may_fall_too() -> None:
    """R3-CNN Table 1 row 5: thresholds that fall."""
    assert [s.matcher.positive_iou for s in make_schedule((0, 0, 0), (0.7, 0.6, 0.5))] == [0.7, 0.6, 0.5]
    assert make_schedule((0,), (0.7,), (1.0,))[0].matcher == Matcher(0.7, 0.7, 0.7)


def test_schedules_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="mask_passes: expected one of"):
        make_schedule((0, 0, 0), mask_passes="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an IoU and a weight for each step"):
        make_schedule((0, 0), (0.5,), (1.0,))
    model = make_model(heads=(make_loop_head(0, linked=False),), schedule=make_schedule((0, 0, 0)))
    with pytest.raises(ValueError, match="no mask head that is linked"):
        model.init(KEY, method=train)
    head = make_loop_head(0)
    model = make_model(heads=(head, head), schedule=make_schedule((0, 1), (0.5, 0.6), (1, 1)))
    with pytest.raises(ValueError, match="listed twice"):
        model.init(KEY, method=train)


@pytest.mark.parametrize("passes", [-1, 2])
def test_mask_passes_are_those_of_the_steps_before(passes: int) -> None:
    schedule = (Step(sampler=FIRST), Step(sampler=FIRST, mask_passes=passes))
    with pytest.raises(ValueError, match=f"step 1 has 1 steps before it: expected 0 to 1 .* got {passes}"):
        make_model(heads=(make_loop_head(0),), schedule=schedule).init(KEY, method=train)


def test_mask_passes_by_step_by_head_or_none() -> None:
    def passes(how: Any) -> list[int]:
        return [step.mask_passes for step in make_schedule((0, 0, 1), mask_passes=how)]

    assert (passes("step"), passes("head"), passes("none")) == ([0, 1, 2], [0, 0, 1], [0, 0, 0])
