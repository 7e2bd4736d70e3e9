"""What the processes of a job tell each other, so that all go on, or all stop and say why.

An error that one process raises by itself would leave the others waiting in the next step for ever.  So whatever
processes do on their own goes through here before they step together.  All processes call each of these functions, in
the same order; a process that is alone agrees with itself.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdet.config import differences

_T = TypeVar("_T")


def broadcast_flag(flag: bool) -> bool:
    """Return the first process's flag, on all processes; all of them have come here then."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(flag)))


def from_all(work: Callable[[], _T]) -> list[_T]:
    """Call ``work`` on each process and gather what it returns.

    Returns:
        The results in the order of the processes; with several of them they have gone through JSON.

    Raises:
        Exception: what ``work`` raised here.
        ValueError: it raised on another process; says on which and what.
    """
    if jax.process_count() == 1:
        return [work()]
    # The error is raised only after the exchange, in which all processes have to take part.
    mine, problem = None, None
    try:
        mine = work()
    except Exception as error:  # whatever it is, the others must hear of it, or they wait for this process
        problem = error
    said = _gather([None if problem is None else f"{problem}" or repr(problem), mine])
    if problem is not None:  # this process's own error has its traceback, so it comes before those of others
        raise problem
    if failed := [f"process {index}: {why}" for index, (why, _) in enumerate(said) if why is not None]:
        raise ValueError("\n".join(failed))
    return [result for _, result in said]


def alike(work: Callable[[], _T], described: Callable[[_T], Any]) -> _T:
    """Call ``work`` on each process, and check that the results are the same.

    Args:
        work: what each process does by itself, such as opening its data.
        described: describes a result as JSON data, a dictionary; descriptions are compared, as data sets are large.

    Returns:
        This process's own result.

    Raises:
        Exception: as `from_all`.
        ValueError: the descriptions differ; says in what.
    """
    done: list[_T] = []  # the result stays here; only its description goes through `from_all`

    def describe() -> Any:
        done.append(work())
        return described(done[0])

    refuse_differences(from_all(describe))
    return done[0]


def refuse_differences(said: Sequence[Any]) -> None:
    """Raise a ValueError if the processes' descriptions differ; lists how each differs from process 0's."""
    lines = [f"process {index}: {line}" for index, what in enumerate(said) for line in differences(said[0], what)]
    if lines:
        raise ValueError(
            "the processes of this job differ (process 0 -> the one that is named):\n  "
            + "\n  ".join(lines)
            + "\nGive each the same command, and let each see the same data"
        )


def _gather(mine: Any) -> list[Any]:
    """Gather JSON data from every process, in their order."""
    # jax gathers arrays of one shape, so texts are padded to the longest.
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([len(text)])))[:, 0]
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]
