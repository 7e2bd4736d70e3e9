from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.ops import roi_align as module
from jaxdet.ops.devices import traced_for
from jaxdet.ops.roi_align import roi_align
from jaxdet.structures import Features
from tests.ops import oracles
from tests.ops.golden import INPUTS, OPS, compare, normal
from tests.programs import equations

SIZES = ((9, 11), (5, 6))
SCALES = (0.5, 0.25)
EXTENT = 20.0
"""Two maps of an image of 20 pixels, and boxes in that image's coordinates."""
crops_of = jax.jit(roi_align, static_argnames=("scales", "size", "sampling_ratio", "aligned"))


def make_maps(rng: np.random.Generator, batch: int = 2, channels: int = 3) -> list[np.ndarray]:
    return [rng.standard_normal((batch, *hw, channels)).astype(np.float32) for hw in SIZES]


def one_level(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Level and validity of boxes of one image that all count and look at the first map."""
    return np.zeros((1, number), np.int32), np.ones((1, number), bool)


def wild_boxes() -> np.ndarray:
    """Over every side, outside, covering all, thinner than a pixel, of no size, turned inside out."""
    return np.float32(
        [
            [-6, -4, 5, 6],
            [14, 15, 27, 24],
            [30, 30, 40, 40],
            [-9, -9, 40, 40],
            [3.2, 3.2, 3.6, 3.5],
            [8, 2, 8, 9],
            [6, 6, 6, 6],
            [9, 9, 4, 4],
            [-1.5, 0, 0.2, 19],
        ]
    )


def test_a_ramp_by_hand() -> None:
    """Averages of a linear function are its values in the middle of the bins."""
    y, x = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    ramp = (10 * y + x)[None, :, :, None].astype(np.float32)
    box = np.float32([[[2, 1, 6, 5]]])
    for ratio in (0, 1, 3):
        crop = crops_of([ramp], (1.0,), box, *one_level(1), size=(2, 2), sampling_ratio=ratio)
        np.testing.assert_allclose(crop[0, 0, :, :, 0], [[17.5, 19.5], [37.5, 39.5]], rtol=1e-6)  # centre - 1/2
    crop = crops_of([ramp], (1.0,), box, *one_level(1), size=(2, 2), aligned=False)
    np.testing.assert_allclose(crop[0, 0, :, :, 0], [[23, 25], [43, 45]], rtol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("seed", range(2))
def test_against_the_oracle(ratio: int, aligned: bool, seed: int) -> None:
    """Boxes of all kinds on two levels of two images, more of them than fit one group."""
    rng = np.random.default_rng(seed)
    maps = make_maps(rng)
    boxes = np.stack([np.concatenate([wild_boxes(), oracles.random_boxes(rng, 61, EXTENT)]) for _ in range(2)])
    level, valid = rng.integers(0, 2, (2, 70)).astype(np.int32), rng.random((2, 70)) < 0.9
    crops = crops_of(maps, SCALES, boxes, level, valid, size=(3, 2), sampling_ratio=ratio, aligned=aligned)
    assert crops.shape == (2, 70, 3, 2, 3)
    for b in range(2):
        for i in range(70):
            k = level[b, i]
            expected = oracles.roi_align(maps[k][b], boxes[b, i], SCALES[k], (3, 2), ratio, aligned) * valid[b, i]
            np.testing.assert_allclose(crops[b, i], expected, atol=1e-5, err_msg=f"box {boxes[b, i]}")


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_padding_changes_nothing(value: float) -> None:
    rng = np.random.default_rng(2)
    maps, boxes = make_maps(rng, 1), oracles.random_boxes(rng, 9, EXTENT)
    level, valid = one_level(9)
    expected = crops_of(maps, SCALES, boxes[None], level, valid, size=(3, 2))
    more = oracles.padded(boxes, 4, value)[None], oracles.padded(level[0], 4, value)[None], np.arange(13)[None] < 9
    crops = crops_of(maps, SCALES, *more, size=(3, 2))
    np.testing.assert_allclose(crops[:, :9], expected, atol=1e-6)
    np.testing.assert_array_equal(crops[:, 9:], 0.0)


def test_order_of_boxes_and_of_channels_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    maps, boxes = make_maps(rng, 1), oracles.random_boxes(rng, 70, EXTENT)[None]
    level, valid = rng.integers(0, 2, (1, 70)).astype(np.int32), np.ones((1, 70), bool)
    crops = crops_of(maps, SCALES, boxes, level, valid, size=(3, 2))
    order = rng.permutation(70)
    shuffled = crops_of([m[..., ::-1] for m in maps], SCALES, boxes[:, order], level[:, order], valid, size=(3, 2))
    np.testing.assert_allclose(shuffled, crops[:, order, :, :, ::-1], atol=1e-6)


def test_mirrored_image_and_box_give_the_mirrored_crop() -> None:
    rng = np.random.default_rng(4)
    image, boxes = make_maps(rng, 1)[0], np.concatenate([oracles.random_boxes(rng, 20, EXTENT), wild_boxes()[:7]])
    mirrored = boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([22, 0, 22, 0])  # 11 cells of 2 pixels
    level, valid = one_level(27)
    crops = crops_of([image], (0.5,), boxes[None], level, valid, size=(3, 2))
    # The map covers more than half a pixel more on its high side than on its low one: the reference's rule.
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < [22, 18]).all(1)
    flipped = crops_of([image[:, :, ::-1]], (0.5,), mirrored[None], level, valid, size=(3, 2))
    np.testing.assert_allclose(flipped[:, inside, :, ::-1], crops[:, inside], atol=1e-5)


def test_group_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    maps, boxes = make_maps(rng, 1), oracles.random_boxes(rng, 10, EXTENT)[None]
    level, valid = one_level(10)
    expected = roi_align(maps, SCALES, boxes, level, valid, size=(3, 2))
    for group in (1, 3, 10):
        monkeypatch.setattr(module, "GROUP", group)
        np.testing.assert_allclose(roi_align(maps, SCALES, boxes, level, valid, size=(3, 2)), expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "ratio"), [("gpu", 0), ("gpu", 3), ("tpu", 2)])
def test_accelerators_sample_the_same(kind: str, ratio: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several samples a round, in other groups; some boxes are invalid, a whole group of them."""
    monkeypatch.setattr(module, "GROUP_ON_ACCELERATORS", 4)
    rng = np.random.default_rng(9)
    maps, boxes = make_maps(rng, 1), np.concatenate([wild_boxes(), oracles.random_boxes(rng, 5, EXTENT)])[None]
    level, valid = rng.integers(0, 2, (1, 14)).astype(np.int32), np.arange(14)[None] > 5

    def total(maps: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        crops = roi_align(maps, SCALES, boxes, level, valid, size=(3, 2), sampling_ratio=ratio)
        return jnp.sin(crops).sum(), crops

    expected = jax.jit(jax.grad(total, has_aux=True))(maps)
    with traced_for(kind):
        traced = jax.jit(jax.grad(total, has_aux=True)).trace(maps)
        found = traced.lower().compile()(maps)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    # A number of rounds that is known makes a scan.
    loops = {equation.primitive.name for equation, _ in equations(traced.jaxpr)} & {"while", "scan"}
    assert loops == ({"scan"} if ratio else {"while", "scan"})


def test_no_boxes_give_no_crops() -> None:
    maps = make_maps(np.random.default_rng(0))
    crops = crops_of(maps, SCALES, np.zeros((2, 0, 4)), np.zeros((2, 0), np.int32), np.zeros((2, 0), bool), size=(3, 2))
    assert crops.shape == (2, 0, 3, 2, 3)


def test_hostile_boxes_end_in_zeros_and_in_time() -> None:
    """A box a million pixels wide must not take a trillion samples."""
    maps = make_maps(np.random.default_rng(0), 1)
    wide = [-1e6, -1e6, 1e6, 1e6], [1e6, 1e6, 2e6, 2e6], [-3e38, 0, 3e38, 9]
    boxes = np.float32([[[np.nan] * 4, [0, 0, np.inf, 5], *wide]])
    crops = crops_of(maps, SCALES, boxes, *one_level(5), size=(3, 2))
    assert np.isfinite(crops).all()
    np.testing.assert_array_equal(crops[0, [0, 1, 3]], 0.0)


def test_negative_sampling_ratio_is_an_error() -> None:
    with pytest.raises(ValueError, match="number of samples, or 0"):
        crops_of([np.ones((1, 4, 4, 1))], (1.0,), wild_boxes()[None], *one_level(9), size=(2, 2), sampling_ratio=-1)


def gradients(maps: list[np.ndarray], boxes: np.ndarray, level: np.ndarray, valid: np.ndarray, out: np.ndarray) -> list:
    def total(maps: list[jax.Array]) -> jax.Array:
        crops = roi_align(maps, SCALES, boxes, level, valid, size=(3, 2))
        return (crops * jnp.nan_to_num(out)).sum()

    return jax.jit(jax.grad(total))(maps)


def test_gradient_is_the_transpose_of_the_oracle() -> None:
    """The crop is linear in the map, so its Jacobian's columns are the crops of single pixels."""
    rng = np.random.default_rng(6)
    maps = make_maps(rng, 2, 1)
    boxes = np.stack([np.concatenate([wild_boxes(), oracles.random_boxes(rng, 3, EXTENT)]) for _ in range(2)])
    level, valid = rng.integers(0, 2, (2, 12)).astype(np.int32), np.ones((2, 12), bool)
    out = rng.standard_normal((2, 12, 3, 2, 1)).astype(np.float32)
    found = gradients(maps, boxes, level, valid, out)
    for k, (height, width) in enumerate(SIZES):
        pixels = np.eye(height * width).reshape(height, width, -1)  # a channel for each pixel
        for b in range(2):
            crops = [oracles.roi_align(pixels, boxes[b, i], SCALES[k], (3, 2), 0, True) for i in range(12)]
            expected = sum((crops[i] * out[b, i]).sum((0, 1)) for i in range(12) if level[b, i] == k)
            np.testing.assert_allclose(found[k][b].reshape(-1), expected, atol=1e-5)


@pytest.mark.parametrize("value", oracles.GARBAGE)
def test_gradient_with_padding(value: float) -> None:
    rng = np.random.default_rng(7)
    maps, boxes = make_maps(rng, 1), oracles.random_boxes(rng, 9, EXTENT)
    level, out = np.zeros((1, 9), np.int32), rng.standard_normal((1, 9, 3, 2, 3)).astype(np.float32)
    expected = gradients(maps, boxes[None], level, np.ones((1, 9), bool), out)
    more = oracles.padded(boxes, 4, value)[None], np.zeros((1, 13), np.int32), np.arange(13)[None] < 9
    found = gradients(maps, *more, oracles.padded(out[0], 4, value)[None])
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found, expected)


def test_boxes_get_no_gradient() -> None:
    maps, (level, valid) = make_maps(np.random.default_rng(0), 1), one_level(2)
    total = jax.grad(lambda boxes: roi_align(maps, SCALES, boxes, level, valid, size=(3, 2)).sum())
    np.testing.assert_array_equal(total(jnp.asarray(wild_boxes()[None, :2])), 0.0)


def test_bfloat16_maps_give_bfloat16_crops_that_are_summed_in_float32() -> None:
    rng = np.random.default_rng(8)
    maps = [jnp.asarray(m, jnp.bfloat16) for m in make_maps(rng, 1)]
    boxes = np.float32([[[0, 0, 20, 16]]])  # many samples a bin
    level, valid = one_level(1)
    crops = crops_of(maps, SCALES, boxes, level, valid, size=(1, 1))
    exact = crops_of([m.astype(jnp.float32) for m in maps], SCALES, boxes, level, valid, size=(1, 1))
    assert crops.dtype == jnp.bfloat16
    np.testing.assert_array_equal(crops, exact.astype(jnp.bfloat16))
    grads = jax.grad(lambda m: roi_align(m, SCALES, boxes, level, valid, size=(1, 1)).sum().astype(jnp.float32))(maps)
    assert grads[0].dtype == jnp.bfloat16


def test_vmap_and_no_jit_agree() -> None:
    rng = np.random.default_rng(9)
    maps, boxes = make_maps(rng, 2)[1:], np.stack([oracles.random_boxes(rng, 3, 8.0) for _ in range(2)])
    level, valid = np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
    expected = crops_of(maps, (0.25,), boxes, level, valid, size=(2, 2))

    def one(m: jax.Array, *arrays: jax.Array) -> jax.Array:
        return roi_align([m[None]], (0.25,), *(a[None] for a in arrays), size=(2, 2))[0]

    np.testing.assert_allclose(jax.vmap(one)(maps[0], boxes, level, valid), expected, atol=1e-6)
    with jax.disable_jit():
        alone = one(*(jnp.asarray(a[1]) for a in (maps[0], boxes, level, valid)))
    np.testing.assert_allclose(alone, expected[1], atol=1e-6)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(("size", "scale"), [((7, 7), 1.0), ((7, 7), 0.25), ((14, 14), 1.0), ((3, 5), 1.0)])
def test_golden_roi_align(aligned: int, ratio: int, size: tuple[int, int], scale: float) -> None:
    feat, rois = normal("ops/roi_feat", (2, 4, 20, 24)).astype(np.float32), OPS["roi_align/rois_unit"]
    boxes = np.tile(rois[:, 1:] / np.float32(scale), (2, 1, 1))
    level, valid = np.zeros((2, 12), np.int32), rois[:, 0] == np.arange(2)[:, None]
    options = {"size": size, "sampling_ratio": ratio, "aligned": bool(aligned)}
    crops = crops_of([feat.transpose(0, 2, 3, 1)], (scale,), boxes, level, valid, **options)
    ours = np.asarray(crops.sum(0)).transpose(0, 3, 1, 2)  # each box is valid in one image
    compare(f"roi_align/aligned{aligned}_sr{ratio}_out{size[0]}x{size[1]}_scale{scale}", ours)


@pytest.mark.parametrize("size", [7, 14])
def test_golden_extractor(size: int) -> None:
    shapes = [(1, 256, 64 >> i, 80 >> i) for i in range(4)]
    pyramid = {i + 2: normal(f"ops/pyr{i}", s).astype(np.float32).transpose(0, 2, 3, 1) for i, s in enumerate(shapes)}
    rois = INPUTS["fixed_rois"][None]
    crops = jax.jit(SingleLevel(size=size).__call__)(Features(pyramid), rois, np.ones((1, 12), bool))
    compare(f"groie.single_{size}/out", np.asarray(crops[0]).transpose(0, 3, 1, 2), 1e-4)
