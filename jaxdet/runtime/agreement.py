"""What the processes of a job tell each other, so that all go on, or all stop and say why.  A process alone agrees.

All processes call each of these functions, in the same order.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdet.config import differences

T = TypeVar("T")


def broadcast_flag(flag: bool) -> bool:
    """Return the first process's flag, on all processes; all of them have come here then."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(flag)))


def from_all(work: Callable[[], T]) -> list[T]:
    """What ``work()`` returns on each process, in their order; it goes through JSON.

    Raises:
        Exception: what ``work`` raised here.
        ValueError: it raised on another process; says on which and what.
    """
    if jax.process_count() == 1:
        return [work()]
    mine, problem = None, None
    try:
        mine = work()
    except Exception as error:  # whatever it is, the others must not wait for this process later
        problem = error
    said = _gather([None if problem is None else f"{problem}" or repr(problem), mine])
    if problem is not None:
        raise problem
    if failed := [f"process {index}: {why}" for index, (why, _) in enumerate(said) if why is not None]:
        raise ValueError("\n".join(failed))
    return [result for _, result in said]


def alike(work: Callable[[], T], described: Callable[[T], Any]) -> T:
    """What ``work()`` returns here, if every process could do it and describes the same.

    Args:
        work: what each process does by itself, such as opening its data.
        described: its result as JSON data, a dictionary.

    Raises:
        Exception: as `from_all`.
        ValueError: the descriptions differ; says in what.
    """
    done: list[T] = []

    def describe() -> Any:
        done.append(work())
        return described(done[0])

    refuse_differences(from_all(describe))
    return done[0]


def refuse_differences(said: Sequence[Any]) -> None:
    """ValueError if the processes said different things; lists what each says otherwise than process 0."""
    lines = [f"process {index}: {line}" for index, what in enumerate(said) for line in differences(said[0], what)]
    if lines:
        raise ValueError(
            "the processes of this job differ (process 0 -> the one that is named):\n  "
            + "\n  ".join(lines)
            + "\nGive each the same command, and let each see the same data"
        )


def _gather(mine: Any) -> list[Any]:
    """What every process says, as JSON."""
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([len(text)])))[:, 0]
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]
