"""Rematerialisation (Chen et al. 2016): less memory in training for more computation."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import flax.linen as nn

F = TypeVar("F", bound=Callable[..., Any])


def rematerialized(method: F) -> F:
    """A method of modules with a field ``remat``: where it is set, the backward pass keeps the arguments alone.

    What was computed from them is computed again.  Arguments that are ints are constants.
    """

    @functools.wraps(method)
    def chosen(module: Any, *args: Any) -> Any:
        if not module.remat:
            return method(module, *args)
        constants = tuple(place for place, arg in enumerate(args, 1) if isinstance(arg, int))
        return nn.remat(method, static_argnums=constants)(module, *args)

    return cast(F, chosen)
