"""ConvNeXt: shapes, the reference's count, a block by hand, torchvision's names, and where torch is, its numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.importing import recognise
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.tree import flatten
from jaxdet.nn.backbones.convnext import ConvNeXt, _Block
from tests.nn.blocks import KEY, random_variables, slow_conv

SMALL = ConvNeXt(depths=(1, 1, 2, 1), widths=(4, 6, 8, 10))
IMAGE = jax.random.normal(KEY, (1, 32, 32, 3))


def torchvision_names(depths: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `torchvision.models.convnext`'s features and head, written down from its documentation."""
    shapes: dict[str, tuple[int, ...]] = {"features.0.0.weight": (widths[0], 3, 4, 4)}
    shapes |= {f"features.0.{name}": (widths[0],) for name in ("0.bias", "1.weight", "1.bias")}
    for k, (depth, c) in enumerate(zip(depths, widths, strict=True)):
        if k:
            shapes |= {f"features.{2 * k}.0.{name}": (widths[k - 1],) for name in ("weight", "bias")}
            shapes |= {f"features.{2 * k}.1.weight": (c, widths[k - 1], 2, 2), f"features.{2 * k}.1.bias": (c,)}
        for i in range(depth):
            block = f"features.{2 * k + 1}.{i}"
            shapes |= {f"{block}.layer_scale": (c, 1, 1), f"{block}.block.0.weight": (c, 1, 7, 7)}
            shapes |= {f"{block}.block.{name}": (c,) for name in ("0.bias", "2.weight", "2.bias", "5.bias")}
            shapes |= {f"{block}.block.3.weight": (4 * c, c), f"{block}.block.3.bias": (4 * c,)}
            shapes |= {f"{block}.block.5.weight": (c, 4 * c)}
    shapes |= {f"classifier.0.{name}": (widths[-1],) for name in ("weight", "bias")}
    return shapes | {"classifier.2.weight": (1000, widths[-1]), "classifier.2.bias": (1000,)}


def state_of(net: ConvNeXt) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = torchvision_names(net.depths, net.widths)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def test_shapes_and_the_count_of_torchvision() -> None:
    """28,589,128 parameters, of which a detector has no use for the classifier, and has four norms more."""
    net = ConvNeXt()
    features, variables = jax.eval_shape(lambda: net.init_with_output(KEY, jnp.zeros((1, 64, 96, 3))))
    assert {k: f.shape for k, f in features.items()} == {2 + i: (1, 16 >> i, 24 >> i, 96 << i) for i in range(4)}
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == 28_589_128 - (2 * 768 + 768 * 1000 + 1000) + 2 * sum(net.widths)
    assert sum(math.prod(shape) for shape in torchvision_names(net.depths, net.widths).values()) == 28_589_128


def test_a_block_by_hand() -> None:
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 3)).astype(np.float32)
    variables = random_variables(_Block(), x)
    params = jax.tree.map(np.float64, variables["params"])
    kernel, y = params["depthwise"]["kernel"], np.zeros((5, 4, 3))
    for c in range(3):
        own = slice(c, c + 1)
        y[..., own] = slow_conv(x[0, ..., own], kernel[..., own], 1, (3, 3)) + params["depthwise"]["bias"][c]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * params["norm"]["scale"] + params["norm"]["bias"]
    y = y @ params["expand"]["kernel"] + params["expand"]["bias"]
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    y = y @ params["reduce"]["kernel"] + params["reduce"]["bias"]
    np.testing.assert_allclose(_Block().apply(variables, x)[0], x[0] + params["scale"] * y, atol=1e-5)


def test_frozen_stages_get_no_gradient_and_is_frozen_says_which() -> None:
    net = ConvNeXt(SMALL.depths, SMALL.widths, frozen_stages=2)
    variables = random_variables(net, IMAGE)

    def total(variables: Any) -> jax.Array:
        return sum(jnp.sin(f).sum() for f in net.apply(variables, IMAGE).values())

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(variables)["params"]):
        names = tuple(entry.key for entry in path)
        assert np.any(leaf) != net.is_frozen(names), names
    assert not any(ConvNeXt().is_frozen((name, "bias")) for name in ("down1_conv", "stage1_0", "out2"))


def test_torchvisions_names_fill_the_backbone() -> None:
    state = state_of(SMALL)
    imported = recognise(state, {})
    assert set(imported.dropped) == {name for name in state if name.startswith("classifier.")}
    here = {"params": {"backbone": jax.eval_shape(SMALL.init, KEY, IMAGE)["params"]}}
    _, report = merge(here, imported.variables, within=imported.within)
    assert len(report.loaded) == len(flatten(here))
    params = imported.variables["params"]["backbone"]
    np.testing.assert_array_equal(params["stage3_1"]["scale"], state["features.5.1.layer_scale"][:, 0, 0])
    np.testing.assert_array_equal(params["down2_conv"]["kernel"][1, 0, 3], state["features.2.1.weight"][:, 3, 1, 0])
    assert imported.variables.keys() == {"params"}
    assert list(recognise(state | {"features.9.0.bias": np.zeros(2)}, {}).variables["unmapped"]) == [
        "features.9.0.bias"
    ]


def test_beside_torch() -> None:
    """The same network in plain torch, from the same state dict."""
    torch = pytest.importorskip("torch")
    nn = torch.nn.functional
    state = {name: torch.from_numpy(value) for name, value in state_of(SMALL).items()}

    def norm(x: Any, name: str) -> Any:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return nn.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-6).permute(0, 3, 1, 2)

    def conv(x: Any, name: str, **settings: int) -> Any:
        return nn.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **settings)

    def linear(x: Any, name: str) -> Any:
        return nn.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm(conv(torch.from_numpy(np.array(IMAGE)).permute(0, 3, 1, 2), "features.0.0", stride=4), "features.0.1")
    variables = recognise(state_of(SMALL), {}).variables
    found = SMALL.apply({"params": variables["params"]["backbone"]}, IMAGE)
    for k, (depth, width) in enumerate(zip(SMALL.depths, SMALL.widths, strict=True)):
        if k:
            x = conv(norm(x, f"features.{2 * k}.0"), f"features.{2 * k}.1", stride=2)
        for i in range(depth):
            block = f"features.{2 * k + 1}.{i}"
            y = norm(conv(x, f"{block}.block.0", padding=3, groups=width), f"{block}.block.2").permute(0, 2, 3, 1)
            y = linear(nn.gelu(linear(y, f"{block}.block.3")), f"{block}.block.5").permute(0, 3, 1, 2)
            x = x + state[f"{block}.layer_scale"] * y
        wanted = nn.layer_norm(x.permute(0, 2, 3, 1), (width,), eps=1e-6).numpy()
        np.testing.assert_allclose(found[k + 2], wanted, atol=2e-4)
