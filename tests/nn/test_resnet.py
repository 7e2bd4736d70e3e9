import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.backbones.resnet import ResNet, _Block, max_pool
from jaxdet.nn.blocks.layers import NormKind
from tests.nn.blocks import random_variables
from tests.programs import equations

IMAGE = jnp.zeros((1, 64, 96, 3))


def shapes_of(net: ResNet) -> tuple[dict, dict]:
    """Parameters and outputs, without computing anything."""
    variables = jax.eval_shape(net.init, jax.random.key(0), IMAGE)
    return variables, jax.eval_shape(net.apply, variables, IMAGE)


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (34, 1), (50, 4), (101, 4)])
def test_shapes_and_strides(depth: int, expansion: int) -> None:
    _, features = shapes_of(ResNet(depth=depth, width=8))
    assert {k: f.shape for k, f in features.items()} == {
        2 + i: (1, 16 >> i, 24 >> i, 8 * 2**i * expansion) for i in range(4)
    }


@pytest.mark.parametrize(("depth", "count"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)])
def test_number_of_parameters_is_torchvisions_without_its_classifier(depth: int, count: int) -> None:
    variables, _ = shapes_of(ResNet(depth=depth))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_group_norm_has_the_same_parameters_and_no_statistics() -> None:
    batch, group = (shapes_of(ResNet(depth=18, width=16, norm=norm))[0] for norm in ("batch", "group"))
    assert jax.tree.structure(batch["params"]) == jax.tree.structure(group["params"])
    assert "batch_stats" not in group


@pytest.mark.parametrize("stages", [1, 3])
def test_fewer_stages_are_the_first_ones(stages: int) -> None:
    net, fewer = ResNet(depth=18, width=4), ResNet(depth=18, width=4, stages=stages)
    image = jax.random.normal(jax.random.key(1), IMAGE.shape)
    variables = net.init(jax.random.key(0), image)
    names = fewer.init(jax.random.key(0), image)["params"]
    assert len(names) == 2 + 2 * stages  # conv1, bn1, two blocks a stage
    kept = {kind: {name: tree[name] for name in names if name in tree} for kind, tree in variables.items()}
    features, whole = fewer.apply(kept, image), net.apply(variables, image)
    assert list(features) == list(range(2, 2 + stages))
    for level, found in features.items():
        np.testing.assert_array_equal(found, whole[level])


def test_unknown_depth_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"one of \[18, 34, 50, 101\], got 20"):
        shapes_of(ResNet(depth=20))


@pytest.mark.parametrize("stages", [0, 5])
def test_unknown_number_of_stages_is_an_error(stages: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 4, got {stages}"):
        shapes_of(ResNet(depth=18, stages=stages))


@pytest.mark.parametrize(
    ("name", "net", "count"),
    [
        ("ResNeXt-101 32x8d", ResNet(depth=101, groups=32, group_width=8), 86_742_336),
        ("ResNeXt-101 32x4d", ResNet(depth=101, groups=32, group_width=4), 42_128_704),
        ("GC-Net r4", ResNet(context=4), 33_508_941),
        ("GC-Net r16", ResNet(context=16), 26_029_773),
        ("GC-Net r4, ResNet-101", ResNet(depth=101, context=4), 61_461_854),
        ("DCN", ResNet(deform="v1"), 24_088_874),
        ("DCNv2", ResNet(deform="v2"), 24_379_295),
    ],
)
def test_number_of_parameters_is_the_references(name: str, net: ResNet, count: int) -> None:
    variables, features = shapes_of(net)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count, name
    assert {k: f.shape for k, f in features.items()} == {2 + i: (1, 16 >> i, 24 >> i, 256 << i) for i in range(4)}


@pytest.mark.parametrize("extra", [{"context": 4}, {"deform": "v1", "deform_groups": 2}])
def test_context_and_offsets_begin_with_c3_and_change_nothing_where_they_are_zero(extra: dict) -> None:
    plain, net = ResNet(depth=18, width=8, stages=2), ResNet(depth=18, width=8, stages=2, **extra)
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    variables = random_variables(net, image)
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])

    def without(tree: dict) -> dict:
        kept = {name: leaf for name, leaf in tree.items() if name not in ("context", "offset")}
        return {name: without(leaf) if isinstance(leaf, dict) else leaf for name, leaf in kept.items()}

    def size(tree: dict) -> int:
        return len(jax.tree.leaves(tree))

    changed = {name for name, block in variables["params"].items() if size(without(block)) != size(block)}
    assert changed == {"layer2_0", "layer2_1"}
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, a: a * ("offset" not in str(path) and "expand" not in str(path)), variables
    )
    apply = jax.jit(net.apply)
    wanted, found, moved = plain.apply(without(variables), image), apply(zeroed, image), apply(variables, image)
    np.testing.assert_allclose(found[3], wanted[3], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(moved[2], wanted[2], rtol=1e-3, atol=1e-3)
    assert not np.allclose(moved[3], wanted[3], rtol=1e-2)


@pytest.mark.parametrize(("style", "reads"), [("pytorch", True), ("caffe", False)])
def test_style_says_which_convolution_has_the_stride(style: str, reads: bool) -> None:
    """Caffe's first 1x1 convolution, and the shortcut, see every other pixel; the 3x3 one sees all."""
    block = _Block(4, bottleneck=True, stride=2, style=style)  # type: ignore[arg-type]
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    variables = jax.tree.map(lambda a: a + 0.1, block.init(jax.random.key(1), x))
    odd = jnp.zeros((8, 8, 1)).at[::2, ::2].set(1)
    out = block.apply(variables, x)
    assert out.shape == (1, 4, 4, 16)
    assert bool((block.apply(variables, x * odd) != out).any()) == reads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 18, "groups": 2}, r"blocks of depth 18 have no groups, got 2 and 64; groups need a depth of 50 or"),
        ({"width": 8, "group_width": 4}, r"ResNet\.group_width: 4 of 8/64 channels leave none for a group"),
        ({"deform": "v1", "deform_groups": 3}, r"ResNet\.deform_groups: expected a divisor of the 128 channels"),
        ({"context": 0}, r"ResNet\.context: expected a number from 1"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**settings)


@pytest.mark.parametrize(("frozen", "norm"), [(-1, "batch"), (0, "batch"), (2, "batch"), (-1, "frozen_batch")])
def test_frozen_stages_get_no_gradient_and_is_frozen_says_which(frozen: int, norm: NormKind) -> None:
    net = ResNet(depth=18, width=4, frozen_stages=frozen, norm=norm)
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    variables = net.init(jax.random.key(0), image)
    # The last norm of a block starts at 0, through which nothing inside the block would get a gradient.
    params = jax.tree.map(lambda a: a + 0.1, variables["params"])

    def total(params: dict) -> jax.Array:
        return sum(jnp.square(f).sum() for f in net.apply({**variables, "params": params}, image).values())

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
        names = tuple(entry.key for entry in path)
        assert np.any(leaf) != net.is_frozen(names), names


@pytest.mark.parametrize(("backend", "slices"), [("cpu", 3), ("gpu", 0), ("tpu", 0)])
@pytest.mark.parametrize("depth", [18, 50])
def test_off_the_cpu_no_slice_with_a_stride_feeds_a_product(
    monkeypatch: pytest.MonkeyPatch, depth: int, backend: str, slices: int
) -> None:
    """XLA:GPU aborts on one (jax 0.10.2): the shortcuts of three stages, once gradients are asked for."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    net = ResNet(depth=depth, width=8, frozen_stages=0)
    variables, _ = shapes_of(net)
    traced = jax.make_jaxpr(jax.grad(lambda v: sum(f.sum() for f in net.apply(v, IMAGE).values())))(variables)
    strides = [e.params["strides"] or () for e, _ in equations(traced.jaxpr) if e.primitive.name == "slice"]
    assert sum(max(each, default=1) > 1 for each in strides) == slices


def test_frozen_by_name() -> None:
    net = ResNet(frozen_stages=1)
    assert net.is_frozen(("conv1", "kernel"))
    assert net.is_frozen(("bn1", "scale"))
    assert net.is_frozen(("layer1_2", "conv3", "kernel"))
    assert not net.is_frozen(("layer2_0", "conv1", "kernel"))


def test_max_pool_by_hand() -> None:
    """Windows of 3 start a pixel outside; padding never wins, not even over negative values."""
    x = -jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[-1, -2], [-5, -6]])
    assert max_pool(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
