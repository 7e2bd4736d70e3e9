"""How XLA compiles: its options for prediction, and compilations that a signal can break off."""

import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import jax

_Result = TypeVar("_Result")

_PAUSE = 0.1  #: seconds between two looks at whether to stop
_abandoned: list[threading.Thread] = []

#: Options of XLA:CPU that order a program so that arrays are freed as early as possible.
FREE_EARLY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@cache
def compiler_options() -> dict[str, str] | None:
    """Return the ``compiler_options`` of ``jax.jit`` for prediction; None for XLA's defaults.

    On CPUs XLA orders a program so that much of it could run at once, which keeps more arrays alive than there are
    cores to work on them: 4.2 GB for SBR-CNN's prediction of an 800 x 1333 image.  In an order that frees arrays early
    it takes 0.9 GB, and a tenth less time.  Training would save a tenth of its memory and take a tenth longer, so it
    keeps the default.
    """
    return FREE_EARLY if jax.default_backend() == "cpu" and _known() else None


def _known() -> bool:
    """Whether this version of XLA has the option, found by compiling an empty program with it."""
    # XLA refuses options that it does not know, and lists none.
    try:
        jax.jit(lambda: 0, compiler_options=FREE_EARLY).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


class Abandoned(Exception):
    """A compilation was left to itself."""


def breakable(compile_: Callable[[], _Result], stopping: Callable[[], bool]) -> _Result:
    """Compile in a thread, while this one waits and signals are answered.

    Python runs signal handlers between two of its own instructions, and a compilation is one of many seconds.

    Args:
        compile_: compiles; what it raises is raised here.
        stopping: looked at meanwhile: whether to leave the compilation to itself.

    Raises:
        Abandoned: ``stopping`` was true.  The thread goes on: XLA cannot be told to stop.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(compile_())
        except BaseException as error:
            errors.append(error)

    # A daemon, or Python would wait for it at the end of the process.
    thread = threading.Thread(target=work, name="compiling", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_PAUSE)
        if stopping() and thread.is_alive():
            _abandoned.append(thread)
            raise Abandoned
    if errors:
        raise errors[0]
    return results[0]


def is_compiling() -> bool:
    """Whether an abandoned compilation still goes on; the end of Python could crash in it."""
    return any(thread.is_alive() for thread in _abandoned)
