"""How many parameters a model has."""

import dataclasses
import functools
import math
from typing import Any

import flax.traverse_util
import jax
from jaxdet.models.schedule import Step

from benchmarks.inputs import make_batch
from jaxdet.models.detector import Detector
from jaxdet.models.two_stage import TwoStage


@dataclasses.dataclass(frozen=True)
class Count:
    """Numbers of parameters."""

    all: int
    trained: int  #: the number that the papers print


def count_parameters(model: Detector) -> Count:
    """A model's parameters by their shapes; nothing is computed.  Running statistics are none."""
    net: Any = model  # which is hashable, other than flax's types say
    if isinstance(model, TwoStage):  # quicker to trace, with the same parameters: each head works once
        net = model.clone(schedule=tuple(Step(head) for head in range(len(model.heads))), test_heads=None)
    return _count(net)


@functools.cache
def _count(model: Any) -> Count:
    init = functools.partial(model.init, method="predict")
    shapes = jax.eval_shape(init, jax.random.key(0), make_batch(64, 64))["params"]
    sizes = {path: math.prod(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(shapes).items()}
    frozen = sum(size for path, size in sizes.items() if model.is_frozen(path))
    return Count(sum(sizes.values()), sum(sizes.values()) - frozen)
