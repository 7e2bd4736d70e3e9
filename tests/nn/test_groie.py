"""The generic RoI extractor: the reference's numbers, the papers' tables, and its parts by slow formulations."""

from collections import Counter
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE, RectangularReLU, hashed
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.ops.roi_align import roi_align
from jaxdet.structures import Features
from tests.nn.test_attention import named_params
from tests.ops import oracles
from tests.ops.golden import INPUTS, compare, normal
from tests.parity.weights import named_weight

KEY = jax.random.key(0)
GOLDEN = {
    "sum": GRoIE(),
    "v1": GRoIE(pre=ConvReLU(5), post=Attention()),
    "v2": GRoIE(pre=ConvReLU(7), post=NonLocal(7)),
}

RANDOM, SUM, CONCAT = GRoIE(combine="random"), GRoIE(), GRoIE(combine="concat")
TABLES = {
    # GRoIE, Table I
    "I random": (RANDOM, 0),
    "I sum": (SUM, 0),
    # Table II
    "II sum": (SUM, 0),
    "II sum+": (GRoIE(post=ConvReLU(1)), 65_792),
    "II concat": (CONCAT, 262_400),
    # Table III
    "III conv 1x1": (GRoIE(pre=ConvReLU(1)), 65_792),
    "III conv 3x3": (GRoIE(pre=ConvReLU(3)), 590_080),
    "III conv 5x5": (GRoIE(pre=ConvReLU(5)), 1_638_656),
    "III non-local": (GRoIE(pre=NonLocal(1)), 131_712),
    "III attention": (GRoIE(pre=Attention()), 258_305),
    # Table IV
    "IV conv 1x1": (GRoIE(post=ConvReLU(1)), 65_792),
    "IV conv 3x3": (GRoIE(post=ConvReLU(3)), 590_080),
    "IV conv 5x5": (GRoIE(post=ConvReLU(5)), 1_638_656),
    "IV non-local": (GRoIE(post=NonLocal(1)), 131_712),
    "IV attention": (GRoIE(post=Attention()), 258_305),
    # Table V
    "V GRoIE": (GOLDEN["v1"], 1_896_961),
    # SBR-CNN, Table 8
    "8 conv 3x3": (GRoIE(pre=ConvReLU(3)), 590_080),
    "8 conv 5x5": (GRoIE(pre=ConvReLU(5)), 1_638_656),
    "8 conv 7x7": (GRoIE(pre=ConvReLU(7)), 3_211_520),
    "8 conv 7x3 -> 3x7": (GRoIE(pre=RectangularReLU()), 2_753_024),
    "8 non-local 1x1": (GRoIE(pre=NonLocal(1)), 131_712),
    "8 non-local 7x7": (GRoIE(pre=NonLocal(7)), 6_423_168),
    # Table 9
    "9 conv 3x3": (GRoIE(post=ConvReLU(3)), 590_080),
    "9 conv 5x5": (GRoIE(post=ConvReLU(5)), 1_638_656),
    "9 conv 7x7": (GRoIE(post=ConvReLU(7)), 3_211_520),
    "9 conv 7x3 -> 3x7": (GRoIE(post=RectangularReLU()), 2_753_024),
    "9 non-local 1x1": (GRoIE(post=NonLocal(1)), 131_712),
    "9 non-local 7x7": (GRoIE(post=NonLocal(7)), 6_423_168),
    # Table 10
    "10 GRoIE": (GOLDEN["v2"], 9_634_688),
}
"""Every row but the baseline, which is ``SingleLevel``, with its number of parameters at 256 channels."""


def named_conv(name: str, out: int, into: int, kernel: int) -> dict:
    weight = named_weight(f"{name}.weight", (out, into, kernel, kernel))
    return {"kernel": weight.transpose(2, 3, 1, 0), "bias": named_weight(f"{name}.bias", (out,))}


def golden_params(kind: str, size: int) -> dict:
    if kind == "sum":
        return {}
    name = f"groie.{kind}_{size}"
    pre = {"conv": named_conv(f"{name}.pre_module.conv", 256, 256, 5 if kind == "v1" else 7)}
    if kind == "v1":
        return {"pre": pre, "post": named_params(f"{name}.post_module")}
    post = {part: named_conv(f"{name}.post_module.{part}.conv", 128, 256, 7) for part in ("g", "theta", "phi")}
    return {"pre": pre, "post": post | {"out": named_conv(f"{name}.post_module.conv_out.conv", 256, 128, 7)}}


def constant_pyramid(channels: int = 1, sign: float = 1.0) -> Features:
    """Every pixel of a level holds the level's number, so crops say which levels they read."""
    shape = {k: (1, 64 >> k, 64 >> k, channels) for k in (2, 3, 4, 5)}
    return Features({k: jnp.full(shape[k], sign * k, jnp.float32) for k in shape})


def random_case(seed: int, batch: int = 2, boxes: int = 5) -> tuple[Features, np.ndarray, np.ndarray]:
    """A pyramid of an image of 32 pixels with 4 channels, boxes, all valid."""
    rng = np.random.default_rng(seed)
    pyramid = {k: rng.standard_normal((batch, 32 >> k, 32 >> k, 4)).astype(np.float32) for k in (2, 3, 4, 5)}
    found = np.stack([oracles.random_boxes(rng, boxes, 32.0) for _ in range(batch)])
    return Features(pyramid), found, np.ones((batch, boxes), bool)


def random_params(extractor: nn.Module, case: tuple, seed: int = 0) -> dict:
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(extractor.init, KEY, *case)
    draw = lambda s: (rng.standard_normal(s.shape) / 4).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


def crops_of_levels(pyramid: Features, boxes: np.ndarray, valid: np.ndarray, size: int) -> list[jax.Array]:
    """RoIAlign of every level alone."""
    level = np.zeros(valid.shape, np.int32)
    align = partial(roi_align, boxes=boxes, level=level, valid=valid, size=(size, size), sampling_ratio=2)
    return jax.jit(lambda maps: [align([m], (2.0**-k,)) for k, m in sorted(maps.items())])(pyramid.levels)


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("kind", GOLDEN)
def test_golden(kind: str, size: int) -> None:
    shapes = [(1, 256, 64 >> i, 80 >> i) for i in range(4)]
    pyramid = {i + 2: normal(f"ops/pyr{i}", s).astype(np.float32).transpose(0, 2, 3, 1) for i, s in enumerate(shapes)}
    inputs = Features(pyramid), INPUTS["fixed_rois"][None], np.ones((1, 12), bool)
    crops = jax.jit(GOLDEN[kind].clone(size=size).apply)({"params": golden_params(kind, size)}, *inputs)
    compare(f"groie.{kind}_{size}/out", np.asarray(crops[0]).transpose(0, 3, 1, 2), 1e-4)


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("row", TABLES)
def test_the_papers_tables(row: str, size: int) -> None:
    """Each row is a composition of values, for boxes and for masks, with the reference's number of parameters."""
    extractor, count = TABLES[row]
    pyramid = {k: jnp.zeros((2, 64 >> k, 64 >> k, 256)) for k in (2, 3, 4, 5)}
    inputs = Features(pyramid), jnp.zeros((2, 3, 4)), jnp.ones((2, 3), bool)
    crops, variables = jax.eval_shape(extractor.clone(size=size).init_with_output, KEY, *inputs)
    assert crops.shape == (2, 3, size, size, 256)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


def test_a_sum_by_hand() -> None:
    box, valid = np.float32([[[10, 10, 40, 50], [3, 3, 9, 9]]]), np.array([[True, False]])
    crops = jax.jit(GRoIE(size=2).apply)({}, constant_pyramid(), box, valid)
    np.testing.assert_allclose(crops[0, :, 0, 0, 0], [2 + 3 + 4 + 5, 0], rtol=1e-6)
    fewer = jax.jit(GRoIE(size=2, levels=(2, 4)).apply)({}, constant_pyramid(), box, valid)
    np.testing.assert_allclose(fewer[0, 0, 0, 0, 0], 6, rtol=1e-6)


@pytest.mark.parametrize("combine", ["sum", "concat", "random"])
def test_relu_of_the_first_release_by_hand(combine: str) -> None:
    """Negative features end as zeros before they are combined, although there is no pre-module."""
    box, valid = np.float32([[[10, 10, 40, 50]]]), np.array([[True]])
    extractor = GRoIE(size=2, combine=combine, relu=True)
    params = {"params": {"reduce": {"kernel": -jnp.ones((1, 1, 4, 1)), "bias": jnp.zeros(1)}}}
    apply = jax.jit(partial(extractor.apply, params if combine == "concat" else {}))
    negative, positive = (apply(constant_pyramid(sign=sign), box, valid) for sign in (-1.0, 1.0))
    np.testing.assert_array_equal(negative, 0.0)
    assert (positive > 0).all() or combine == "concat"


def test_one_pre_module_serves_each_level_alone() -> None:
    """The sum of what the module makes of each level's crops, and then the post-module."""
    case = random_case(0)
    extractor = GRoIE(size=3, pre=ConvReLU(3), post=ConvReLU(1))
    params = random_params(extractor, case)
    crops = jax.jit(extractor.apply)(params, *case)

    def apply(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        return jax.jit(module.apply)({"params": params["params"][name]}, x)

    total = sum(apply(ConvReLU(3), "pre", each.reshape(10, 3, 3, 4)) for each in crops_of_levels(*case, 3))
    np.testing.assert_allclose(crops, apply(ConvReLU(1), "post", total).reshape(crops.shape), atol=1e-5)


def test_concatenation_stacks_channels_level_by_level() -> None:
    """As a sum of one matrix product a level."""
    case = random_case(1)
    extractor = GRoIE(size=2, combine="concat")
    params = random_params(extractor, case)
    crops, reduce = jax.jit(extractor.apply)(params, *case), params["params"]["reduce"]
    assert reduce["kernel"].shape == (1, 1, 16, 4)
    parts = np.split(reduce["kernel"][0, 0], 4)
    total = sum(np.asarray(each) @ part for each, part in zip(crops_of_levels(*case, 2), parts, strict=True))
    np.testing.assert_allclose(crops, np.maximum(total + reduce["bias"], 0), atol=1e-5)


def test_random_reads_one_level_a_box() -> None:
    boxes = np.stack([oracles.random_boxes(np.random.default_rng(2), 400, 60.0)])
    read = jax.jit(GRoIE(size=1, combine="random").apply)({}, constant_pyramid(), boxes, np.ones((1, 400), bool))
    level = hashed(boxes, 4)
    np.testing.assert_allclose(read[0, :, 0, 0, 0], level[0] + 2, rtol=1e-6)
    assert min(Counter(level[0].tolist()).values()) > 70  # of 100 expected; a deviation is 9


def test_hash_depends_on_each_coordinate_and_on_nothing_else() -> None:
    """Also where coordinates are whole numbers, whose last bits are all zero."""
    boxes = np.random.default_rng(3).integers(0, 800, (200, 4)).astype(np.float32)
    level = hashed(boxes, 4)
    np.testing.assert_array_equal(jax.jit(hashed, static_argnums=1)(boxes[::-1], 4)[::-1], level)
    for axis in range(4):
        moved = hashed(boxes + np.eye(4, dtype=np.float32)[axis], 4)
        assert 0.6 < (moved != level).mean() < 0.9  # three in four
    assert set(np.asarray(hashed(boxes, 3)).tolist()) == {0, 1, 2}
    signed = np.where(boxes < 400, np.float32(-0.0), boxes)
    np.testing.assert_array_equal(jax.jit(hashed, static_argnums=1)(signed, 4), hashed(np.abs(signed), 4))


def test_rectangular_pair_against_a_slow_convolution() -> None:
    """7 rows x 3 columns padded by 1, then 3 x 7 padded by 3: between them, a 7x7 crop has 3 rows."""

    def slow(x: np.ndarray, p: dict, padding: int) -> np.ndarray:
        kh, kw = p["kernel"].shape[:2]
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        out = np.zeros((x.shape[0] - kh + 1, x.shape[1] - kw + 1, p["bias"].size))
        for i, j in np.ndindex(out.shape[:2]):
            out[i, j] = np.tensordot(x[i : i + kh, j : j + kw], p["kernel"], 3) + p["bias"]
        return np.maximum(out, 0)

    crop = np.random.default_rng(4).standard_normal((1, 7, 7, 4)).astype(np.float32)
    params = random_params(RectangularReLU(), (crop,))
    between = slow(crop[0], params["params"]["tall"], 1)
    assert between.shape == (3, 7, 4)
    out = RectangularReLU().apply(params, crop)
    np.testing.assert_allclose(out[0], slow(between, params["params"]["wide"], 3), atol=1e-4)


FULL = GRoIE(size=3, pre=ConvReLU(3), post=Attention(heads=2))


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_padding_changes_nothing(combine: str) -> None:
    """Neither crops nor gradients; and crops of invalid boxes are 0 in spite of biases."""
    pyramid, boxes, valid = random_case(5, batch=1)
    extractor = FULL.clone(combine=combine)
    params = random_params(extractor, (pyramid, boxes, valid))

    @jax.jit
    def run(boxes: jax.Array, valid: jax.Array) -> tuple:
        def total(params: dict, pyramid: Features) -> tuple[jax.Array, jax.Array]:
            crops = extractor.apply(params, pyramid, boxes, valid)
            return (jnp.cos(crops) * valid[..., None, None, None]).sum(), crops

        return jax.grad(total, (0, 1), has_aux=True)(params, pyramid)

    gradients, crops = run(boxes, valid)
    for value in oracles.GARBAGE:
        gradients_more, crops_more = run(oracles.padded(boxes[0], 3, value)[None], np.arange(8)[None] < 5)
        np.testing.assert_allclose(crops_more[:, :5], crops, atol=1e-5)
        np.testing.assert_array_equal(crops_more[:, 5:], 0.0)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), gradients, gradients_more)


def test_gradients_against_differences() -> None:
    """Along one random direction of every parameter and of every level."""
    pyramid, boxes, valid = random_case(6)
    params = random_params(FULL, (pyramid, boxes, valid))
    rng = np.random.default_rng(7)

    @jax.jit
    def total(params: dict, pyramid: Features) -> jax.Array:
        return jnp.sin(FULL.apply(params, pyramid, boxes, valid)).sum()

    leaves, tree = jax.tree.flatten((params, pyramid))
    found = jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(params, pyramid))
    for i, (leaf, gradient) in enumerate(zip(leaves, found, strict=True)):
        step = (rng.standard_normal(leaf.shape) * 1e-3).astype(np.float32)
        ends = [total(*jax.tree.unflatten(tree, [*leaves[:i], leaf + s * step, *leaves[i + 1 :]])) for s in (1, -1)]
        assert abs((gradient * step).sum() - (ends[0] - ends[1]) / 2) < 0.02 * np.linalg.norm(gradient * step) + 1e-4, i


def test_boxes_get_no_gradient_and_images_do_not_mix() -> None:
    pyramid, boxes, valid = random_case(8)
    params = random_params(FULL, (pyramid, boxes, valid))
    apply = jax.jit(FULL.apply)
    gradient = jax.jit(jax.grad(lambda b: FULL.apply(params, pyramid, b, valid).sum()))(boxes)
    np.testing.assert_array_equal(gradient, 0.0)
    together = apply(params, pyramid, boxes, valid)
    alone = apply(params, jax.tree.map(lambda m: m[1:], pyramid), boxes[1:], valid[1:])
    np.testing.assert_allclose(alone, together[1:], atol=1e-5)


def test_levels_are_pooled_as_by_the_extractor_of_one_level() -> None:
    """The same settings of RoIAlign reach it; here the first release's."""
    pyramid, boxes, valid = random_case(9)
    options = {"size": 3, "sampling_ratio": 1, "aligned": False, "levels": (3,)}
    ours = jax.jit(GRoIE(**options).apply)({}, pyramid, boxes, valid)
    np.testing.assert_allclose(ours, jax.jit(SingleLevel(**options).__call__)(pyramid, boxes, valid), atol=1e-6)


def test_no_boxes_give_no_crops() -> None:
    pyramid, boxes, valid = random_case(10)
    params = random_params(FULL, (pyramid, boxes, valid))
    assert jax.jit(FULL.apply)(params, pyramid, boxes[:, :0], valid[:, :0]).shape == (2, 0, 3, 3, 4)


def test_bfloat16_stays() -> None:
    pyramid, boxes, valid = random_case(11)
    params = random_params(FULL, (pyramid, boxes, valid))
    low = jax.tree.map(lambda m: jnp.asarray(m, jnp.bfloat16), pyramid)
    assert jax.eval_shape(FULL.apply, params, low, boxes, valid).dtype == jnp.bfloat16


def test_errors() -> None:
    pyramid, boxes, valid = random_case(12)
    with pytest.raises(ValueError, match='combine is "sum", "concat" or "random", got \'mean\''):
        GRoIE(combine="mean").apply({}, pyramid, boxes, valid)
    with pytest.raises(ValueError, match=r"the extractor reads levels \(2, 9\)"):
        GRoIE(levels=(2, 9)).apply({}, pyramid, boxes, valid)
