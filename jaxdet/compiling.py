"""How XLA is asked to compile the programs that run for long: the training step and prediction."""

from functools import cache

import jax

_IN_ORDER = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


@cache
def compiler_options() -> dict[str, bool] | None:
    """For ``jax.jit``; None: what XLA does of itself.

    XLA orders a program for CPUs so that much could run at once, which keeps more arrays alive than there are cores
    to work on them: SBR-CNN's prediction of an 800 x 1333 image takes 4.2 GB of them, 0.9 GB in an order that frees
    early, and no longer.
    """
    return _IN_ORDER if jax.default_backend() == "cpu" and _known() else None


def _known() -> bool:
    """Whether this version of XLA still has the option."""
    try:
        jax.jit(lambda: 0, compiler_options=_IN_ORDER).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
