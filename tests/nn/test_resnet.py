import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.backbones.resnet import ResNet, max_pool
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


@pytest.mark.parametrize("frozen", [-1, 0, 2])
def test_frozen_stages_get_no_gradient_and_is_frozen_says_which(frozen: int) -> None:
    net = ResNet(depth=18, width=4, frozen_stages=frozen)
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
