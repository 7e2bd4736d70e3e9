"""Heads of dense detectors: layouts, names, and what they compute, by slow ones."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.heads.codes import Codes, read_codes
from jaxdet.nn.heads.dense import DenseMaps, FCOSHead, RetinaHead, RPNHead, YOLACTHead
from tests.nn.blocks import random_variables, slow_layer

KEY = jax.random.key(0)


def test_rpn_head_shapes() -> None:
    head = RPNHead(anchors=3, channels=8)
    maps, variables = jax.eval_shape(lambda: head.init_with_output(KEY, jnp.zeros((2, 4, 6, 16)), 1))
    assert (maps.logits.shape, maps.deltas.shape, maps.codes) == ((2, 4, 6, 3), (2, 4, 6, 12), None)
    assert set(variables["params"]) == {"conv", "objectness", "deltas"}


def test_retina_head_shapes() -> None:
    head = RetinaHead(anchors=2, channels=8, convs=2)
    maps, variables = jax.eval_shape(lambda: head.init_with_output(KEY, jnp.zeros((2, 4, 6, 16)), 5))
    assert (maps.logits.shape, maps.deltas.shape, maps.codes) == ((2, 4, 6, 10), (2, 4, 6, 8), None)
    towers = {f"{tower}_conv{i}" for tower in ("class", "box") for i in (1, 2)}
    assert set(variables["params"]) == towers | {"logits", "deltas"}


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_retina_head_begins_with_its_prior(prior: float) -> None:
    """On a map of zeros every place has that probability of each class, and stays where it is."""
    head = RetinaHead(anchors=2, channels=4, convs=1, prior=prior)
    maps, _ = head.init_with_output(KEY, jnp.zeros((1, 2, 3, 4)), 3)
    np.testing.assert_allclose(jax.nn.sigmoid(maps.logits), prior, rtol=1e-5)
    np.testing.assert_array_equal(maps.deltas, 0)
    noisy, _ = head.init_with_output(KEY, jax.random.normal(KEY, (1, 2, 3, 4)), 3)
    np.testing.assert_allclose(jax.nn.sigmoid(noisy.logits), prior, rtol=0.1)


def test_retina_head_against_loops() -> None:
    """Each tower sees the map, not the other tower; the last convolutions have no ReLU."""
    head, rng = RetinaHead(anchors=2, channels=3, convs=2), np.random.default_rng(0)
    level = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    variables = random_variables(head, level, 3)
    params, maps = variables["params"], head.apply(variables, level, 3)
    for i, x in enumerate(level):
        for tower, last, found in (("class", "logits", maps.logits), ("box", "deltas", maps.deltas)):
            seen = x
            for j in (1, 2):
                seen = np.maximum(slow_layer(seen, params[f"{tower}_conv{j}"], pad=1), 0)
            np.testing.assert_allclose(found[i], slow_layer(seen, params[last], pad=1), atol=1e-5)


# Heads of dense detectors that say more of a place.


@pytest.mark.parametrize(("groups", "code"), [(2, 3), (None, 3), (2, 0)])
def test_retina_head_with_groups_and_code_against_loops(groups: int | None, code: int) -> None:
    """A third tower for the codes; where towers are normalised their convolutions have no bias."""
    head, rng = RetinaHead(anchors=2, channels=4, convs=2, groups=groups, code=code), np.random.default_rng(0)
    level = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    variables = random_variables(head, level, 3)
    params, maps = variables["params"], jax.jit(head.apply, static_argnums=2)(variables, level, 3)
    towers = {"class": ("logits", maps.logits), "box": ("deltas", maps.deltas)} | (
        {"code": ("codes", codes_of(maps))} if code else {}
    )
    layers = ("conv",) if groups is None else ("conv", "norm")
    assert set(params) == {f"{t}_{layer}{j}" for t in towers for layer in layers for j in (1, 2)} | {
        last for last, _ in towers.values()
    }
    assert ("bias" in params["class_conv1"]) == (groups is None)
    for i, x in enumerate(level):
        for tower, (last, found) in towers.items():
            expected = slow_layer(slow_tower(x, params, tower, 2, groups), params[last], pad=1)
            np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)
    assert maps.quality is None
    assert (maps.codes is None) == (not code)


def codes_of(maps: DenseMaps) -> jax.Array:
    """Codes of all places as maps ``[B, h, w, A * c]``, and those of each place read by itself are the same."""
    every, (height, width) = maps.codes.everywhere(), maps.logits.shape[1:3]
    index = jnp.arange(every.shape[1])[::-1]
    read = read_codes([maps.codes], jnp.stack([index, index]))
    np.testing.assert_allclose(read, every[:, ::-1], rtol=1e-5, atol=1e-5)
    return every.reshape(len(every), height, width, -1)


def slow_tower(x: np.ndarray, params: Any, name: str, convs: int, groups: int | None) -> np.ndarray:
    """Convolutions of one image, each with its group normalisation if there is one, and a ReLU."""
    for j in range(1, convs + 1):
        layer = params[f"{name}_conv{j}"]
        x = slow_layer(x, {"bias": 0.0, **layer}, pad=1)
        if groups is not None:
            norm, grouped = params[f"{name}_norm{j}"], x.reshape(*x.shape[:2], groups, -1)
            mean, var = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
            x = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
            x = x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
        x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("code", [0, 3])
def test_fcos_head_against_loops(code: int) -> None:
    """Distances, centerness and code from the box tower, distances times the factor of the level and not below 0."""
    head, rng = FCOSHead(channels=4, convs=2, groups=2, code=code), np.random.default_rng(1)
    level = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    variables = random_variables(head, level, 3, 1)
    params = variables["params"]
    assert params["factor1"].shape == ()
    params["factor1"] = np.float32(-1.5)
    maps = jax.jit(head.apply, static_argnums=(2, 3))(variables, level, 3, 1)
    for i, x in enumerate(level):
        classes, boxes = (slow_tower(x, params, tower, 2, 2) for tower in ("class", "box"))
        distances = np.maximum(slow_layer(boxes, params["deltas"], pad=1) * -1.5, 0)
        pairs = [(maps.logits, slow_layer(classes, params["logits"], pad=1)), (maps.deltas, distances)]
        pairs.append((maps.quality, slow_layer(boxes, params["centerness"], pad=1)))
        if code:
            pairs.append((codes_of(maps), slow_layer(boxes, params["codes"], pad=1)))
        for found, expected in pairs:
            np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)
    assert 0.1 < (np.asarray(maps.deltas) == 0).mean() < 0.9
    assert "bias" in params["class_conv1"], "FCOS keeps the biases before its normalisation"
    assert (maps.codes is None) == (not code)


def test_each_level_has_a_factor_of_its_own_and_all_else_in_common() -> None:
    class Levels(nn.Module):
        """The head on three levels, as the dense detector calls it."""

        head: nn.Module

        def __call__(self, x: jax.Array) -> list[Any]:
            return [self.head(x, 2, i) for i in range(3)]

    x = jax.random.normal(KEY, (1, 3, 4, 5))
    model = Levels(FCOSHead(channels=4, convs=1, groups=2))
    first, variables = model.init_with_output(KEY, x)
    params = variables["params"]["head"]
    assert {f"factor{i}" for i in range(3)} <= set(params)
    assert [float(params[f"factor{i}"]) for i in range(3)] == [1, 1, 1]
    changed = {"params": {"head": {**params, "factor1": jnp.float32(2)}}}
    found = model.apply(changed, x)
    np.testing.assert_allclose(found[1].deltas, 2 * first[1].deltas, rtol=1e-5)
    for i in (0, 2):
        np.testing.assert_array_equal(found[i].deltas, first[i].deltas)
    np.testing.assert_array_equal(found[1].logits, first[1].logits)


def test_fcos_head_begins_with_its_prior() -> None:
    maps, _ = FCOSHead(channels=4, convs=1, groups=2).init_with_output(KEY, jnp.zeros((1, 2, 3, 4)), 3)
    np.testing.assert_allclose(jax.nn.sigmoid(maps.logits), 0.01, rtol=1e-5)
    np.testing.assert_allclose(maps.quality, 0)

    def low() -> Any:
        head = FCOSHead(channels=4, convs=1, groups=2, code=2)
        maps, _ = head.init_with_output(KEY, jnp.zeros((1, 2, 3, 4), jnp.bfloat16), 3)
        assert maps.codes is not None
        # What codes are computed from has their parameters, which are float32.
        return maps.logits, maps.deltas, maps.quality, maps.codes.everywhere()

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(low))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("code", [0, 3])
def test_yolact_head_against_loops(code: int) -> None:
    head, rng = YOLACTHead(anchors=2, channels=4, code=code), np.random.default_rng(2)
    level = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    variables = random_variables(head, level, 3)
    params, maps = variables["params"], jax.jit(head.apply, static_argnums=2)(variables, level, 3)
    assert set(params) == {"conv", "logits", "deltas"} | ({"codes"} if code else set())
    for i, x in enumerate(level):
        shared = np.maximum(slow_layer(x, params["conv"], pad=1), 0)
        np.testing.assert_allclose(maps.logits[i], slow_layer(shared, params["logits"], pad=1), atol=1e-5)
        np.testing.assert_allclose(maps.deltas[i], slow_layer(shared, params["deltas"], pad=1), atol=1e-5)
        if code:
            expected = np.tanh(slow_layer(shared, params["codes"], pad=1))
            np.testing.assert_allclose(codes_of(maps)[i], expected, atol=1e-5)
    assert maps.quality is None
    assert (maps.codes is None) == (not code)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RetinaHead(groups=0), "RetinaHead.groups"),
        (lambda: RetinaHead(code=-1), "RetinaHead.code"),
        (lambda: FCOSHead(prior=0.0), "FCOSHead.prior"),
        (lambda: YOLACTHead(anchors=0), "YOLACTHead.anchors"),
    ],
)
def test_ranges_of_heads(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        make()


def test_rpn_head_of_two_convolutions() -> None:
    head = RPNHead(anchors=1, channels=2, convs=2)
    level = np.float32(np.random.default_rng(0).normal(size=(1, 3, 4, 2)))
    variables = random_variables(head, level, 1)
    params = variables["params"]
    assert set(params) == {"conv", "conv2", "objectness", "deltas"}
    x = np.maximum(slow_layer(level[0], params["conv"], 1), 0)
    x = np.maximum(slow_layer(x, params["conv2"], 1), 0)
    found = head.apply(variables, level, 1)
    np.testing.assert_allclose(found.logits[0], slow_layer(x, params["objectness"], 0), rtol=1e-4, atol=1e-5)


def test_codes_of_places_of_several_levels() -> None:
    """The same numbers and gradients as by the whole convolution, at corners and twice at one place too."""
    rng = np.random.default_rng(4)
    kernel, bias = rng.normal(size=(3, 3, 5, 2 * 3)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    maps = [rng.normal(size=(2, *hw, 5)).astype(np.float32) for hw in ((3, 4), (2, 2), (1, 1))]
    index = np.int32([[0, 23, 24, 31, 33], [32, 5, 5, 18, 30]])  # 24, 8 and 2 places
    weights = rng.normal(size=(2, 5, 3)).astype(np.float32)

    def read(maps: list[jax.Array], kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = read_codes([Codes(x, kernel, bias, 2, bounded=True) for x in maps], jnp.asarray(index))
        return (codes * weights).sum(), codes

    def every(maps: list[jax.Array], kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = jnp.concatenate([Codes(x, kernel, bias, 2, bounded=True).everywhere() for x in maps], 1)
        codes = codes[np.arange(2)[:, None], index]
        return (codes * weights).sum(), codes

    results = [jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(maps, kernel, bias) for f in (read, every)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
