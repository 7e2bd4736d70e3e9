"""Rematerialisation (Chen et al. 2016): less memory in training for more computation."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import flax.linen as nn

_F = TypeVar("_F", bound=Callable[..., Any])


def rematerialized(method: _F) -> _F:
    """Decorates a method of modules with a field ``remat``: where it is set, only the arguments are kept in training.

    The backward pass computes everything else from them again.  Arguments that are ints are constants of the program.
    """

    @functools.wraps(method)
    def maybe_rematerialized(module: Any, *args: Any, **named: Any) -> Any:
        if not module.remat:
            return method(module, *args, **named)
        # Place 0 is the module.  Sizes such as the number of classes decide shapes and cannot be traced.
        constants = tuple(place for place, arg in enumerate(args, 1) if isinstance(arg, int))
        return nn.remat(method, static_argnums=constants)(module, *args, **named)

    return cast(_F, maybe_rematerialized)
