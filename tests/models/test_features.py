"""What all detectors share: normalised images, features, frozen parameters, slots that fill a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.features import (
    Normalization,
    extract_features,
    feature_intermediates,
    in_frozen_backbone,
    targets_of,
    without_fillers,
)
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads.semantic import SemanticHead
from jaxdet.nn.necks import FPN
from jaxdet.structures import Batch, Features
from tests.models.small import make_batch, make_targets

BATCH = make_batch([make_targets(0), make_targets(1)])


class Means:
    """A backbone that averages the pixels of each cell."""

    def __call__(self, image: jax.Array) -> dict[int, jax.Array]:
        batch, height, width, _ = image.shape
        cells = {n: image.reshape(batch, height >> n, 1 << n, width >> n, 1 << n, 3).mean((2, 4)) for n in (2, 3)}
        return {level: maps.astype(image.dtype) for level, maps in cells.items()}


class Doubles:
    """A neck that says everything twice."""

    def __call__(self, levels: dict[int, jax.Array]) -> dict[int, jax.Array]:
        return {level: 2 * maps for level, maps in levels.items()}


def test_normalization_zeroes_the_padding() -> None:
    image = np.full((2, 3, 4, 3), 5, np.uint8)
    out = Normalization((1.0, 2.0, 3.0), (2.0, 2.0, 2.0))(image, jnp.array([[2.0, 3.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(out[1], np.broadcast_to([2.0, 1.5, 1.0], (3, 4, 3)))
    np.testing.assert_array_equal(out[0, :2, :3], out[1, :2, :3])
    assert not np.any(out[0, 2:])
    assert not np.any(out[0, :, 3:])
    assert out.dtype == jnp.float32


def test_the_mean_colour_in_the_order_of_images() -> None:
    """What data fill a ground with becomes 0, whatever order the network wants."""
    for channels in ("rgb", "bgr"):
        normalization = Normalization((200.0, 100.0, 40.0), (2.0, 4.0, 8.0), channels=channels)
        ground = np.broadcast_to(np.uint8(normalization.rgb_mean), (1, 2, 3, 3))
        assert not np.any(normalization(ground, jnp.array([[2.0, 3.0]]))), channels


def test_the_mean_colour_of_imagenet_is_0() -> None:
    mean = np.round(Normalization().mean).astype(np.uint8)
    out = Normalization()(np.broadcast_to(mean, (1, 2, 2, 3)), jnp.array([[2.0, 2.0]]))
    assert np.abs(out).max() < 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_the_neck_of_the_backbone_of_the_normalised_image(dtype: str) -> None:
    normalization = Normalization((10.0, 20.0, 30.0), (2.0, 4.0, 8.0))
    settings = {"normalization": normalization, "dtype": dtype}
    features = extract_features(BATCH, Means(), Doubles(), **settings)
    assert features.semantic is features.semantic_logits is None
    image = (BATCH.image.astype(np.float32) - [10, 20, 30]) / [2, 4, 8]
    image[:, 60:], image[:, :, 56:] = 0, 0
    for level, maps in features.levels.items():
        assert maps.dtype == dtype
        cells = image.reshape(2, 64 >> level, 1 << level, 64 >> level, 1 << level, 3).mean((2, 4))
        np.testing.assert_allclose(np.float32(maps), 2 * cells, rtol=1e-5 if dtype == "float32" else 0.02, atol=1e-4)
    named = feature_intermediates(BATCH, Means(), Doubles(), **settings)
    assert set(named) == {f"{part}/{level}" for part in ("backbone", "pyramid") for level in (2, 3)}
    for level in (2, 3):
        np.testing.assert_array_equal(named[f"pyramid/{level}"], features.levels[level])
        np.testing.assert_array_equal(2 * named[f"backbone/{level}"], features.levels[level])


def test_the_semantic_branch_adds_its_maps() -> None:
    pyramid = {level: jax.ShapeDtypeStruct((1, 64 >> level, 64 >> level, 8), jnp.bfloat16) for level in range(2, 7)}
    head = SemanticHead(num_classes=5, channels=8, convs=1)
    features, _ = jax.eval_shape(lambda f: head.init_with_output(jax.random.key(0), Features(f)), pyramid)
    assert features.levels == pyramid
    assert (features.semantic.shape, features.semantic.dtype) == ((1, 8, 8, 8), jnp.bfloat16)
    assert (features.semantic_logits.shape, features.semantic_logits.dtype) == ((1, 8, 8, 5), jnp.float32)


def test_a_network_that_wants_blue_first_gets_it_so() -> None:
    """Mean and standard deviation are in the order of the network too."""
    image = np.broadcast_to(np.uint8([10, 20, 30]), (1, 1, 2, 3))
    out = Normalization((1.0, 2.0, 3.0), (1.0, 2.0, 4.0), channels="bgr")(image, jnp.array([[1.0, 1.0]]))
    np.testing.assert_array_equal(out[0, 0], [[29, 9, 1.75], [0, 0, 0]])


def test_a_level_that_is_not_there_is_named() -> None:
    features = Features({2: jnp.zeros((1, 4, 4, 1)), 3: jnp.ones((1, 2, 2, 1))})
    assert [maps.shape[1] for maps in features.select((3, 2), "a reader")] == [2, 4]
    with pytest.raises(ValueError, match=r"a reader reads levels \(2, 5\), the pyramid has \[2, 3\] and lacks \[5\]"):
        features.select((2, 5), "a reader")


def test_only_parts_of_the_backbone_are_frozen() -> None:
    backbone = ResNet(depth=18)
    assert in_frozen_backbone(backbone, ("backbone", "layer1_0", "conv1", "kernel"))
    assert not in_frozen_backbone(backbone, ("backbone", "layer4_0", "conv1", "kernel"))
    assert not in_frozen_backbone(backbone, ("neck", "layer1_0", "conv1", "kernel"))


def test_fillers_become_images_of_no_size_without_ground_truth() -> None:
    batch = without_fillers(BATCH.replace(valid=np.array([True, False])))
    np.testing.assert_array_equal(batch.true_hw, [[60, 56], [0, 0]])
    np.testing.assert_array_equal(batch.targets.valid, [[True] * 3 + [False] * 2, [False] * 5])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch.targets))
    np.testing.assert_array_equal(batch.targets.boxes, BATCH.targets.boxes)
    without = without_fillers(BATCH.replace(targets=None))
    assert without.targets is None
    with pytest.raises(ValueError, match="losses need ground truth"):
        targets_of(without)


def test_a_pyramid_is_made_of_what_the_backbone_gives() -> None:
    """The whole of it in shapes: ResNet, FPN, and the same names in the intermediates."""

    def run(batch: Batch) -> dict[str, jax.Array]:
        backbone, neck = ResNet(depth=18, width=8), FPN(channels=8)
        image = jnp.zeros((2, 64, 64, 3))
        maps, _ = backbone.init_with_output(jax.random.key(0), image)
        bound = backbone.bind(backbone.init(jax.random.key(0), image))
        tied = neck.bind(neck.init(jax.random.key(0), maps))
        return feature_intermediates(batch, bound, tied, normalization=Normalization(), dtype="float32")

    named = jax.eval_shape(run, BATCH)
    assert {name: leaf.shape[1:] for name, leaf in named.items()} == {
        **{f"backbone/{level}": (64 >> level, 64 >> level, 2 << level) for level in range(2, 6)},
        **{f"pyramid/{level}": (64 >> level, 64 >> level, 8) for level in range(2, 7)},
    }
