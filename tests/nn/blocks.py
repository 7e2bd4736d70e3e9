"""What tests of network blocks share: weights by torch names, a convolution as loops, parameter counts."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tests.parity.weights import named_weight

KEY = jax.random.key(0)


def torch_conv(name: str, shape: tuple[int, ...], bias: bool = True) -> dict[str, np.ndarray]:
    """Our parameters of the golden convolution ``name`` with a torch weight of ``shape`` (out, in, rows, columns)."""
    weight = {"kernel": named_weight(f"{name}.weight", shape).transpose(2, 3, 1, 0)}
    return weight | ({"bias": named_weight(f"{name}.bias", shape[:1])} if bias else {})


def slow_conv(x: np.ndarray, kernel: np.ndarray, stride: int, pads: tuple[int, int]) -> np.ndarray:
    """``x [H, W, C]`` with ``kernel [kh, kw, C, F]``, zeros around, one output pixel at a time."""
    kh, kw = kernel.shape[:2]
    x = np.pad(x, ((pads[0], pads[0]), (pads[1], pads[1]), (0, 0)))
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[:2], (kh, kw), strict=True))
    out = np.zeros((rows, columns, kernel.shape[3]))
    for i, j in np.ndindex(rows, columns):
        window = x[i * stride : i * stride + kh, j * stride : j * stride + kw]
        out[i, j] = np.einsum("hwc,hwcf->f", window, kernel)
    return out


def slow_layer(x: np.ndarray, layer: Any, pad: int, stride: int = 1) -> np.ndarray:
    """``slow_conv`` by the kernel and bias of ``layer``."""
    return slow_conv(x, np.asarray(layer["kernel"]), stride, (pad, pad)) + np.asarray(layer["bias"])


def random_variables(module: nn.Module, *args: Any) -> Any:
    """Variables of a module with noise in place of what starts at zero."""
    shapes = jax.eval_shape(lambda: module.init(KEY, *args))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: np.float32(rng.normal(0, 1 / np.sqrt(np.prod(s.shape[:-1])), s.shape)), shapes)


def count(module: nn.Module, *args: Any) -> int:
    """Number of parameters; nothing is computed."""
    shapes = jax.eval_shape(lambda: module.init(KEY, *args))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))
