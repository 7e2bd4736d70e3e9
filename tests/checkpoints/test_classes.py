"""Weights for other classes: each output goes to the class of its name, and what is new keeps its own values."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.classes import ClassMatch, rearrange
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.checkpoints.tree import unflatten
from jaxdet.config import load_config
from jaxdet.experiment import Run
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.dense import RetinaHead, YOLACTHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.training.weights import start_variables, with_weights

THEIRS = ("cat", "dog", "cow")
OURS = ("cow", "horse", "cat", "goat")
#: label in OURS -> label in THEIRS
SAME = {0: 2, 2: 0}
X = jax.random.normal(jax.random.key(1), (2, 7, 7, 5))
MASK = jax.random.normal(jax.random.key(2), (2, 14, 14))


def softmax_logits(module: nn.Module, variables: Any, classes: int) -> Any:
    return module.apply(variables, X, classes)[0]


def deltas(module: nn.Module, variables: Any, classes: int) -> Any:
    return jnp.moveaxis(module.apply(variables, X, classes)[1], 1, -1)


def mask_logits(module: nn.Module, variables: Any, classes: int) -> Any:
    return module.apply(variables, X, classes)


def ious(module: nn.Module, variables: Any, classes: int) -> Any:
    return module.apply(variables, X, MASK, classes)


def place_softmax(module: nn.Module, variables: Any, classes: int) -> Any:
    return module.apply(variables, X, classes + 1).logits.reshape(2, -1, classes + 1)


def place_logits(module: nn.Module, variables: Any, classes: int) -> Any:
    return module.apply(variables, X, classes).logits.reshape(2, -1, classes)  # as the dense detector reads them


@pytest.mark.parametrize(
    ("module", "place", "outputs"),
    [
        (BoxHead(FC2(8)), "heads_1/head", softmax_logits),
        (BoxHead(FC2(8)), "heads_1/head", deltas),
        (FCN(channels=4, convs=1), "masks/heads_0/head", mask_logits),
        (MaskIoUHead(FC2(8), channels=4), "mask_scores/head", ious),
        (RetinaHead(anchors=2, channels=4, convs=1), "dense/head", place_logits),
        (YOLACTHead(anchors=2, channels=4, code=3), "dense/head", place_softmax),
    ],
)
def test_a_class_that_both_have_is_predicted_as_before(module: nn.Module, place: str, outputs: Any) -> None:
    arguments = (X, MASK) if isinstance(module, MaskIoUHead) else (X,)
    path = ("params", *place.split("/"))

    def fresh(seed: int, classes: int) -> Any:
        columns = classes + isinstance(module, YOLACTHead)
        made = module.init(jax.random.key(seed), *arguments, columns)["params"]
        # Biases are no zeros, so that they too are looked at.
        return jax.tree.map(lambda leaf: np.asarray(leaf) + np.arange(leaf.shape[-1], dtype=np.float32), made)

    ours, theirs = fresh(3, len(OURS)), fresh(4, len(THEIRS))
    here, there = unflatten({path: ours}), unflatten({path: theirs})
    node, names = rearrange(here, there, ClassMatch(OURS, THEIRS))
    assert names
    for key in path:
        node = node[key]
    after = outputs(module, {"params": node}, len(OURS))
    before = outputs(module, {"params": theirs}, len(THEIRS))
    # Products of another width may be summed in another order.
    same = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-5)
    for label, source in SAME.items():
        same(after[..., label], before[..., source])
    if outputs in (softmax_logits, place_softmax):  # the background is a class that both have
        same(after[..., -1], before[..., -1])
    layer = {softmax_logits: "logits", deltas: "deltas", ious: "iou"}.get(outputs, "logits")
    size, groups = (4 if outputs is deltas else 1), (2 if outputs in (place_logits, place_softmax) else 1)
    columns = len(OURS) + (outputs is place_softmax)
    for part in ("kernel", "bias"):
        new, own = (
            np.asarray(tree[layer][part])[..., : groups * columns * size].reshape(-1, groups, columns, size)
            for tree in (node, ours)
        )
        np.testing.assert_array_equal(new[:, :, [1, 3]], own[:, :, [1, 3]])


@pytest.mark.parametrize(("name", "size"), [("heads_0/head/deltas/bias", 4), ("masks/heads_0/head/logits/bias", 1)])
def test_a_box_and_a_mask_for_all_classes_belong_to_none_of_them(name: str, size: int) -> None:
    path = ("params", *name.split("/"))
    here, there = (
        unflatten({path: np.zeros(size, np.float32)}),
        unflatten({path: np.arange(size, dtype=np.float32) + 1}),
    )
    moved, names = rearrange(here, there, ClassMatch(OURS, THEIRS))
    np.testing.assert_equal(moved, there)
    assert names == {f"params/{name}"}
    # Of two models of one class each, it is that class's mask.
    moved, _ = rearrange(here, there, ClassMatch(("dog",), ("cat",)))
    np.testing.assert_equal(moved, there if size == 4 else here)


def test_what_does_not_depend_on_classes_or_does_not_fit_stays() -> None:
    there = unflatten(
        {
            ("params", "neck", "lateral2", "kernel"): np.ones((4, 3), np.float32),
            ("params", "heads_0", "head", "logits", "bias"): np.ones(9, np.float32),
        }
    )
    moved, names = rearrange(there, there, ClassMatch(OURS, THEIRS))
    np.testing.assert_equal(moved, there)
    assert not names


def test_a_name_that_occurs_twice_matches_nothing() -> None:
    assert ClassMatch(("a", "b", "b"), ("b", "b", "a")).sources == (2, None, None)
    assert ClassMatch(("a", "b", "b"), ("a", "b", "b")).complete
    assert not ClassMatch(("a",), ("a", "b")).complete


MODEL = load_config(Path(__file__).parents[1] / "training" / "tiny.py").model


def variables(classes: int, value: float = 0.0) -> dict[str, Any]:
    logits = value + np.arange(classes + 1, dtype=np.float32)
    stem = np.full((1, 2), value, np.float32)
    params = {"backbone": {"conv1": {"kernel": stem}}, "heads_0": {"head": {"logits": {"bias": logits}}}}
    return {"params": params, "batch_stats": {}}


@pytest.fixture
def trained(tmp_path: Path) -> str:
    categories = [{"id": i, "name": name} for i, name in enumerate(THEIRS, 1)]
    with CheckpointStore(tmp_path / "run") as store:
        store.save(1, {"variables": {"params": variables(3, 10)["params"]}}, {"categories": categories})
    return str(tmp_path / "run")


def bias(tree: Any) -> list[float]:
    return np.asarray(tree["params"]["heads_0"]["head"]["logits"]["bias"]).tolist()


def test_another_order_is_matched_by_name(trained: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        started, _ = with_weights(MODEL, variables(3), Run(init_from=trained), ("cow", "dog", "cat"))
    assert bias(started) == [12, 11, 10, 13]
    assert "1 as they were (dog); 2 moved to another label (cow 2 -> 0, cat 0 -> 2)" in caplog.text


def test_other_classes_are_refused_and_then_matched_by_name(trained: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError, match=r"only in the data: horse, goat; only in the weights: dog; .*new_classes=true"
    ):
        with_weights(MODEL, variables(4), Run(init_from=trained), OURS)
    with caplog.at_level(logging.INFO):
        started, _ = with_weights(MODEL, variables(4), Run(init_from=trained, init_new_classes=True), OURS)
    assert bias(started) == [12, 1, 10, 3, 13]
    assert "2 started anew (horse, goat); 1 not taken (dog)" in caplog.text
    # Without any of them in common the whole layer is the model's own.
    started, _ = with_weights(MODEL, variables(2), Run(init_from=trained, init_new_classes=True), ("hen", "cock"))
    assert bias(started) == [0, 1, 2]
    skipped, _ = with_weights(MODEL, variables(4), Run(init_from=trained, init_skip=("/logits/",)), OURS)
    assert bias(skipped) == [0, 1, 2, 3, 4]


def test_hints_name_settings_as_they_are_written(trained: str) -> None:
    with pytest.raises(ValueError, match=r"'run\.init_skip=\^params/neck/'; .*run\.init_new_classes=true"):
        with_weights(MODEL, variables(7), Run(init_from=trained))


def test_a_frozen_part_without_weights_is_named(trained: str, caplog: pytest.LogCaptureFixture) -> None:
    start_variables(MODEL, variables(3), Run(init_from=trained), THEIRS)
    assert "random values" not in caplog.text
    start_variables(MODEL.clone(backbone=MODEL.backbone.clone(frozen_stages=-1)), variables(3), Run())
    assert "random values" not in caplog.text
    for run in (Run(), Run(init_from=trained, init_skip=("conv1",))):
        caplog.clear()
        start_variables(MODEL, variables(3), run, THEIRS)
        assert "(backbone/conv1/kernel, ...) are not trained and keep random values" in caplog.text
        assert "model.backbone.frozen_stages=-1" in caplog.text


def test_a_part_that_the_weights_may_lack_is_theirs_where_they_have_it(trained: str) -> None:
    """Half of it is an error as ever."""
    run = Run(init_from=trained, init_fresh=("heads_0", "boundaries"))
    ours = variables(3)
    ours["params"]["boundaries"] = {"bias": np.float32([7]), "weights": np.float32([8])}
    started, loaded = with_weights(MODEL, ours, run)
    assert bias(started) == [10, 11, 12, 13]
    assert started["params"]["boundaries"] == {"bias": [7], "weights": [8]}
    assert not [name for name in loaded if "boundaries" in name]
    with pytest.raises(ValueError, match=r"only here .*: 2"):
        with_weights(MODEL, ours, Run(init_from=trained))
    ours["params"]["heads_0"]["head"]["deltas"] = {"bias": np.float32([9])}
    with pytest.raises(ValueError, match=r"(?s)only here .*: 1\n    params/heads_0/head/deltas/bias"):
        with_weights(MODEL, ours, run)
    with pytest.raises(ValueError, match=r"run\.init_fresh: .* it has no 'boundary'"):
        with_weights(MODEL, ours, Run(init_from=trained, init_fresh=("boundary",)))
