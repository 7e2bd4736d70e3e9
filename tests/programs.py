"""Looking into traced programs, and ways to compile them."""

from collections.abc import Callable, Container, Iterator
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def equations(jaxpr: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """All equations, each with the names of those whose inner programs it is in."""
    for equation in jaxpr.eqns:
        yield equation, outer
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, (*outer, equation.primitive.name))


def executions(jaxpr: Any, names: Container[str]) -> int:
    """How many equations of these names run, those of a scan as often as it turns.  ValueError for a branch."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            raise ValueError("a branch may run or not")
        inside = sum(executions(inner, names) for inner in jaxprs_in_params(equation.params))
        found += (equation.primitive.name in names) + inside * equation.params.get("length", 1)
    return found


def ways(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function as it is, compiled with all optimisations, and with few, whatever the environment asks for."""
    options: list[dict[str, Any]] = [
        {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False},
        {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
    ]
    return [function, *(jax.jit(function, compiler_options=each) for each in options)]
