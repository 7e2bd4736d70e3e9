"""Looking into traced programs."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import jaxprs_in_params


def equations(jaxpr: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """All equations, each with the names of those whose inner programs it is in."""
    for equation in jaxpr.eqns:
        yield equation, outer
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, (*outer, equation.primitive.name))
