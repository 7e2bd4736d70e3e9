"""Shape-aware RoIAlign: by hand, by loops over single samples, beside RoIAlign, and the reference's numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.roi_align import sa_roi_align
from tests.ops import oracles
from tests.ops.golden import normal
from tests.ops.test_roi_align import EXTENT, SCALES, SIZES, crops_of, make_maps, one_level, wild_boxes
from tests.parity import judge, operators

Array = np.ndarray
STATIC = ("scales", "size", "sampling_ratio", "aligned")
shown_crops = jax.jit(sa_roi_align, static_argnames=STATIC)
F = (4 * np.arange(4)[:, None] + np.arange(4)).astype(np.float32)[None, :, :, None]
P = np.float32([[1, 0.5], [0.25, 0]])[None, None]


@partial(jax.jit, static_argnames=STATIC)
def gradients(
    maps: list[jax.Array],
    scales: tuple[float, ...],
    boxes: jax.Array,
    level: jax.Array,
    valid: jax.Array,
    prob: jax.Array,
    cotangent: jax.Array,
    **options,
) -> tuple[list[jax.Array], jax.Array]:
    """Of the product of the crops with ``cotangent``, with respect to the maps and to ``prob``."""

    def total(maps: list[jax.Array], prob: jax.Array) -> jax.Array:
        return (sa_roi_align(maps, scales, boxes, level, valid, prob, **options) * cotangent).sum()

    return jax.grad(total, (0, 1))(maps, prob)


def random_case(seed: int, number: int, channels: int = 3, hw: tuple[int, int] = (3, 5)) -> tuple:
    """Maps, scales, boxes of all kinds in two images, levels, which of them count, and a map for each."""
    rng = np.random.default_rng(seed)
    maps = make_maps(rng, 2, channels)
    boxes = np.stack([np.concatenate([wild_boxes(), oracles.random_boxes(rng, number - 9, EXTENT)]) for _ in range(2)])
    level, valid = rng.integers(0, 2, (2, number)).astype(np.int32), rng.random((2, number)) < 0.9
    prob = rng.standard_normal((2, number, *hw)).astype(np.float32)
    return maps, SCALES, boxes, level, valid, prob


@pytest.mark.parametrize(
    ("box", "ratio", "aligned", "crop", "to_prob"),
    [
        ((0, 0, 4, 4), 1, True, [2.5, 2.25, 2.625, 0], [2.5, 4.5, 10.5, 12.5]),
        (
            (0, 0, 4, 4),
            2,
            True,
            [1.91015625, 2.0703125, 3.04296875, 1.0703125],
            [3.125, 4.875, 10.125, 11.875],
        ),
        ((1, 0.5, 3, 3.5), 2, True, [3.2412109375, 2.3662109375, 2.9423828125, 0.9658203125], None),
        ((1, 0.5, 3, 3.5), 2, False, [2.5859375, 1.6875, 1.515625, 0], None),
    ],
)
def test_by_hand(box: tuple, ratio: int, aligned: bool, crop: list[float], to_prob: list[float] | None) -> None:
    """f(y, x) = 4 y + x, and a map of four pixels, which the sides of the box replicate."""
    case = (1.0,), np.float32([[box]]), *one_level(1), P
    options = {"size": (2, 2), "sampling_ratio": ratio, "aligned": aligned}
    np.testing.assert_allclose(shown_crops([F], *case, **options).reshape(-1), crop, rtol=1e-6, atol=1e-6)
    to_maps, found = gradients([F], *case, np.ones((1, 1, 2, 2, 1), np.float32), **options)
    if to_prob:
        np.testing.assert_allclose(found.reshape(-1), to_prob, rtol=1e-6)
    if ratio == 1:  # each pixel of a quadrant is one of the four around the sample there
        np.testing.assert_allclose(to_maps[0][0, :, :, 0], np.kron(P[0, 0] / 4, np.ones((2, 2))), atol=1e-7)


def test_boxes_of_no_size_by_hand() -> None:
    """At a fixed number of samples a point of the map times the mean of its own map in each bin; else no sample."""
    point = np.float32([[[2.5, 1.5, 2.5, 1.5]]])  # the centre of the pixel with the value 6
    crop = shown_crops([F], (1.0,), point, *one_level(1), P, size=(2, 2), sampling_ratio=2)
    means = (1 + 0.875 + 0.8125 + 0.703125) / 4, (0.625 + 0.5 + 0.484375 + 0.375) / 4
    np.testing.assert_allclose(crop[0, 0, 0, :, 0], 6 * np.float64(means), rtol=1e-6)
    np.testing.assert_array_equal(shown_crops([F], (1.0,), point, *one_level(1), P, size=(2, 2)), 0.0)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_against_the_oracle(ratio: int, aligned: bool) -> None:
    """Boxes of all kinds on two levels of two images, more of them than fit one group, and maps that are not square."""
    case = random_case(0, 70)
    crops = shown_crops(*case, size=(3, 2), sampling_ratio=ratio, aligned=aligned)
    assert crops.shape == (2, 70, 3, 2, 3)
    maps, _, boxes, level, valid, prob = case
    for b, i in np.ndindex(2, 70):
        k = level[b, i]
        if not valid[b, i]:
            np.testing.assert_array_equal(crops[b, i], 0.0)
            continue
        expected = oracles.sa_roi_align(maps[k][b], prob[b, i], boxes[b, i], SCALES[k], (3, 2), ratio, aligned)
        np.testing.assert_allclose(crops[b, i], expected, atol=2e-5, err_msg=f"box {boxes[b, i]}")


@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, False)])
def test_gradients_are_the_transposes_of_the_oracle(ratio: int, aligned: bool) -> None:
    """The crop is linear in the map and in the box's own: the columns of Jacobians are crops with single pixels."""
    maps, scales, boxes, level, valid, prob = random_case(1, 12, channels=2, hw=(2, 3))
    cotangent = np.random.default_rng(2).standard_normal((2, 12, 3, 2, 2)).astype(np.float32)
    options = {"size": (3, 2), "sampling_ratio": ratio, "aligned": aligned}
    to_maps, to_prob = gradients(maps, scales, boxes, level, valid, prob, cotangent, **options)
    expected = [np.zeros(m.shape) for m in maps]
    for b, i in np.ndindex(2, 12):
        k = level[b, i]
        crop = partial(oracles.sa_roi_align, box=boxes[b, i], scale=SCALES[k], **_loops(options))
        pixels = np.eye(np.prod(SIZES[k])).reshape(*SIZES[k], -1)  # a channel for each pixel
        columns = crop(pixels, prob[b, i]) * valid[b, i]
        expected[k][b] += np.einsum("hwp,hwc->pc", columns, cotangent[b, i]).reshape(expected[k][b].shape)
        for place in np.ndindex(2, 3):
            one = np.zeros((2, 3))
            one[place] = valid[b, i]
            slope = (crop(maps[k][b], one) * cotangent[b, i]).sum()
            np.testing.assert_allclose(to_prob[b, i][place], slope, atol=5e-5, err_msg=f"box {boxes[b, i]}")
    jax.tree.map(partial(np.testing.assert_allclose, atol=5e-5), to_maps, expected)


def _loops(options: dict) -> dict:
    """The same options by the oracle's names."""
    return {"size": options["size"], "ratio": options["sampling_ratio"], "aligned": options["aligned"]}


@pytest.mark.parametrize("hw", [(1, 1), (2, 7), (28, 28)])
def test_a_constant_map_scales_roi_align(hw: tuple[int, int]) -> None:
    """Of any size; ones give RoIAlign, zeros give zeros."""
    *case, prob = random_case(3, 20, hw=hw)
    expected = crops_of(*case, size=(3, 2))
    for value in (1.0, 0.25, 0.0):
        crops = shown_crops(*case, np.full_like(prob, value), size=(3, 2))
        np.testing.assert_allclose(crops, value * np.asarray(expected), atol=1e-6)


def test_linear_in_the_map() -> None:
    *case, prob = random_case(4, 20)
    other = np.random.default_rng(5).standard_normal(prob.shape).astype(np.float32)
    crops = partial(shown_crops, *case, size=(3, 2), sampling_ratio=2)
    np.testing.assert_allclose(crops(3 * prob - other), 3 * crops(prob) - crops(other), atol=2e-5)
    plain = crops_of(*case, size=(3, 2), sampling_ratio=2)
    np.testing.assert_allclose(crops(1 + prob), plain + crops(prob), atol=1e-5)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_mirrored_image_box_and_map_give_the_mirrored_crop(axis: str) -> None:
    rng = np.random.default_rng(6)
    image, boxes = make_maps(rng, 1)[0], oracles.random_boxes(rng, 20, 17.0)
    prob = rng.standard_normal((1, 20, 4, 3)).astype(np.float32)
    # 9 rows and 11 columns of 2 pixels.
    order, signs, sides = {
        "x": ([2, 1, 0, 3], [-1, 1, -1, 1], [22, 0, 22, 0]),
        "y": ([0, 3, 2, 1], [1, -1, 1, -1], [0, 18, 0, 18]),
    }[axis]
    mirrored = boxes[:, order] * np.float32(signs) + np.float32(sides)
    of_map, of_crop = (2, 3) if axis == "x" else (1, 2)
    crops = shown_crops([image], (0.5,), boxes[None], *one_level(20), prob, size=(3, 2))
    flipped = shown_crops(
        [np.flip(image, of_map)], (0.5,), mirrored[None], *one_level(20), np.flip(prob, of_crop), size=(3, 2)
    )
    np.testing.assert_allclose(np.flip(flipped, of_crop), crops, atol=1e-5)


def test_outside_of_the_map_is_nothing() -> None:
    maps = make_maps(np.random.default_rng(0), 1)
    boxes, prob = np.float32([[[30, 30, 40, 40], [-9, -9, -5, -5]]]), np.ones((1, 2, 2, 2), np.float32)
    case = maps, SCALES, boxes, *one_level(2), prob
    np.testing.assert_array_equal(shown_crops(*case, size=(3, 2)), 0.0)
    found = gradients(*case, np.ones((1, 2, 3, 2, 3), np.float32), size=(3, 2))
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0.0), found)


def test_no_boxes_give_no_crops() -> None:
    maps, none = make_maps(np.random.default_rng(0)), np.zeros((2, 0), np.int32)
    case = maps, SCALES, np.zeros((2, 0, 4), np.float32), none, none.astype(bool), np.zeros((2, 0, 4, 4), np.float32)
    assert shown_crops(*case, size=(3, 2)).shape == (2, 0, 3, 2, 3)
    to_maps, to_prob = gradients(*case, np.zeros((2, 0, 3, 2, 3), np.float32), size=(3, 2))
    assert to_prob.shape == (2, 0, 4, 4)
    np.testing.assert_array_equal(to_maps[0], 0.0)


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_neither_crops_nor_gradients(value: float) -> None:
    """Also where the map of a box that is no box, or has no sample, holds a NaN."""
    rng = np.random.default_rng(7)
    maps, boxes, prob = make_maps(rng, 1), oracles.random_boxes(rng, 9, EXTENT), rng.random((9, 4, 3), np.float32)
    cotangent = rng.standard_normal((1, 13, 3, 2, 3)).astype(np.float32)
    level = np.zeros((1, 13), np.int32)
    case = maps, SCALES, boxes[None], level[:, :9], np.ones((1, 9), bool), prob[None]
    expected = shown_crops(*case, size=(3, 2))
    to_maps, to_prob = gradients(*case, cotangent[:, :9], size=(3, 2))
    slots = np.concatenate([oracles.padded(boxes, 2, value), np.float32([[np.nan] * 4, [5, 5, 5, 5]])])
    valid = np.array([[True] * 9 + [False] * 2 + [True] * 2])
    more = maps, SCALES, slots[None], level, valid, oracles.padded(prob, 4, value)[None]
    crops = shown_crops(*more, size=(3, 2))
    np.testing.assert_allclose(crops[:, :9], expected, atol=1e-6)
    np.testing.assert_array_equal(crops[:, 9:], 0.0)
    to_maps_more, to_prob_more = gradients(*more, cotangent, size=(3, 2))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), to_maps_more, to_maps)
    np.testing.assert_allclose(to_prob_more[:, :9], to_prob, atol=1e-5)
    np.testing.assert_array_equal(to_prob_more[:, 9:], 0.0)


def test_boxes_get_no_gradient() -> None:
    maps, scales, boxes, level, valid, prob = random_case(8, 10)
    total = jax.grad(lambda b: sa_roi_align(maps, scales, b, level, valid, prob, size=(3, 2)).sum())
    np.testing.assert_array_equal(total(jnp.asarray(boxes)), 0.0)


def test_with_jit_and_without() -> None:
    rng = np.random.default_rng(9)
    maps, boxes = make_maps(rng, 1)[1:], oracles.random_boxes(rng, 3, 8.0)[None]
    case = boxes, *one_level(3), rng.random((1, 3, 2, 3), np.float32)
    expected = shown_crops(maps, (0.25,), *case, size=(2, 2))
    with jax.disable_jit():
        alone = sa_roi_align([jnp.asarray(maps[0])], (0.25,), *map(jnp.asarray, case), size=(2, 2))
    np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_maps_in_bfloat16_leave_the_rest_in_float32() -> None:
    """The box's own map is not rounded, samples are added up in float32, gradients have the dtypes of what is read."""
    rng = np.random.default_rng(10)
    maps = [jnp.asarray(m, jnp.bfloat16) for m in make_maps(rng, 1)]
    boxes, prob = np.float32([[[0, 0, 20, 16]]]), 1 + rng.random((1, 1, 4, 4), np.float32) / 512  # bfloat16 has 1/128
    case = SCALES, boxes, *one_level(1)
    crops = shown_crops(maps, *case, prob, size=(2, 2))
    assert crops.dtype == jnp.bfloat16
    exact = [m.astype(jnp.float32) for m in maps]
    np.testing.assert_array_equal(crops, shown_crops(exact, *case, prob, size=(2, 2)).astype(jnp.bfloat16))
    ones = np.ones((1, 1, 2, 2, 3), np.float32)
    to_maps, to_prob = gradients(maps, *case, prob, ones, size=(2, 2))
    assert (to_maps[0].dtype, to_prob.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(to_prob, gradients(exact, *case, prob, ones, size=(2, 2))[1], rtol=1e-6)
    assert gradients(maps, *case, jnp.asarray(prob, jnp.bfloat16), ones, size=(2, 2))[1].dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 2, 4, 4), (1, 3, 0, 4)])
def test_a_map_for_each_box_is_expected(shape: tuple[int, ...]) -> None:
    boxes = wild_boxes()[None, :3]
    with pytest.raises(ValueError, match=r"expected a map for each box, \[1, 3, Hp, Wp\], got \[1, "):
        sa_roi_align([jnp.ones((1, 4, 4, 1))], (1.0,), boxes, *one_level(3), jnp.ones(shape), size=(2, 2))


GOLDEN = judge.load("sa_roi_align")


def compare(key: str, ours: Array) -> None:
    """The reference's crops within 1e-4, gradients within 1e-3 of their largest."""
    want, have = judge.same_elements(GOLDEN, key, ours)
    bound = 1e-4 if key.endswith("/out") else 1e-3 * np.abs(want).max()
    np.testing.assert_allclose(have, want, atol=bound, rtol=0, err_msg=key)


@pytest.mark.parametrize("case", sorted({key.rpartition("/")[0] for key in GOLDEN if key.startswith("sa/p")}))
def test_golden(case: str) -> None:
    """Names are ``sa/p{Hp}x{Wp}_sr{ratio}_aligned{0,1}_out{h}x{w}_scale{s}``."""
    own, ratio, aligned, size, scale = case.removeprefix("sa/").split("_")
    size = tuple(int(side) for side in size[3:].split("x"))
    hw = tuple(int(side) for side in own[1:].split("x"))
    rois = GOLDEN["sa/rois_unit"].copy()
    rois[:, 1:] /= float(scale[5:])
    prob = sigmoid(1.5 * normal(f"ops/sa_prob{own[1:]}", (len(rois), *hw)))
    feat = normal("ops/sa_feat", (2, 4, 20, 24)).astype(np.float32)
    cotangent = normal(f"ops/sa_cot{size[0]}x{size[1]}", (len(rois), 4, *size)).astype(np.float32)
    settings = float(scale[5:]), size, int(ratio[2:]), aligned == "aligned1"
    names = ("out", "dfeat", "dprob")
    for name, ours in zip(names, operators.sa_roi_align.vjp(feat, rois, prob, *settings, cotangent), strict=True):
        compare(f"{case}/{name}", ours)


def test_golden_levels() -> None:
    """Boxes on all levels of a pyramid of 256 channels."""
    shapes = [(1, 256, 64 >> i, 80 >> i) for i in range(4)]
    pyramid = [normal(f"ops/pyr{i}", s).astype(np.float32).transpose(0, 2, 3, 1) for i, s in enumerate(shapes)]
    prob = sigmoid(1.5 * normal("ops/sa_prob_levels", (14, 28, 28)))
    cotangent = normal("ops/sa_cot_levels", (14, 256, 7, 7)).astype(np.float32).transpose(0, 2, 3, 1)
    level = GOLDEN["levels/level"].astype(np.int32)
    case = pyramid, (1 / 4, 1 / 8, 1 / 16, 1 / 32), GOLDEN["levels/rois"][None], level[None], np.ones((1, 14), bool)
    crops = shown_crops(*case, prob[None], size=(7, 7))
    compare("levels/sr0/out", np.asarray(crops[0]).transpose(0, 3, 1, 2))
    to_maps, to_prob = gradients(*case, prob[None], cotangent[None], size=(7, 7))
    compare("levels/sr0/dprob", np.asarray(to_prob[0]))
    for i, found in enumerate(to_maps):
        compare(f"levels/sr0/dpyr{i}", np.asarray(found).transpose(0, 3, 1, 2))


def sigmoid(x: Array) -> Array:
    return (1 / (1 + np.exp(-x.astype(np.float32).astype(np.float64)))).astype(np.float32)
