"""How many parameters a model has, as a sum over its parts.

The tables hold dozens of models that are made of the same few backbones, pyramids and heads.  Each model is walked
through, but a part that was met before, with inputs of the same shapes, is not traced again: its parameters and the
shapes of what it returns are known.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from benchmarks.inputs import make_batch
from jaxdet.models.detector import Detector

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Count:
    """Numbers of parameters."""

    all: int
    trained: int  #: the number that the papers print


def count_parameters(model: Detector) -> Count:
    """A model's parameters by their shapes; nothing is computed.  Running statistics are none."""
    net: Any = model  # which is hashable, other than flax's types say
    return _count(net)


@functools.cache
def _count(model: Any) -> Count:
    sizes = parameter_sizes(model)
    frozen = sum(size for path, size in sizes.items() if model.is_frozen(path))
    return Count(sum(sizes.values()), sum(sizes.values()) - frozen)


def parameter_sizes(model: Any) -> dict[Path, int]:
    """Number of elements of each parameter of a model, by path."""
    return _trace(model, "predict", (make_batch(64, 64),))[0]


_open: list[dict[Path, int]] = []
"""For each module that is being traced, the innermost last: the parameters of its parts."""


def _trace(module: Any, method: str | Callable[..., Any], arrays: tuple[Any, ...]) -> tuple[dict[Path, int], Any]:
    """Sizes of the parameters that a method of a module makes, and the shapes of what it returns."""
    outermost = not _open
    _open.append({})
    try:
        with nn.intercept_methods(_look_up) if outermost else contextlib.nullcontext():
            init = functools.partial(module.init_with_output, method=method)
            out, variables = jax.eval_shape(init, jax.random.key(0), *arrays)
    finally:
        sizes = _open.pop()
    own = flax.traverse_util.flatten_dict(variables.get("params", {}))
    return sizes | {path: math.prod(leaf.shape) for path, leaf in own.items()}, out


def _look_up(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """In place of a call of a part: notes its parameters, returns zeros of the right shapes."""
    part, method = context.module, context.method_name
    if method == "setup" or part.scope is None or not part.path:  # without a path: that which is being traced
        return run(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    if any(isinstance(leaf, nn.Module) for leaf in leaves):  # the norm behind a convolution, a part of another one
        return run(*args, **kwargs)
    given = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves)
    sizes, out = _part(part.unbind()[0].clone(name=None), method, given, structure)
    _open[-1].update({part.path + path: size for path, size in sizes.items()})
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)


@functools.cache
def _part(part: Any, method: str, given: tuple[Any, ...], structure: Any) -> tuple[dict[Path, int], Any]:
    places = [i for i, leaf in enumerate(given) if isinstance(leaf, jax.ShapeDtypeStruct)]

    def call(part: Any, *arrays: jax.Array) -> Any:
        leaves = dict(enumerate(given)) | dict(zip(places, arrays, strict=True))  # others are numbers, as of classes
        args, kwargs = jax.tree.unflatten(structure, leaves.values())
        return getattr(part, method)(*args, **kwargs)

    return _trace(part, call, tuple(given[i] for i in places))
