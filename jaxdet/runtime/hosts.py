"""Several hosts: the flags by which a process says which one of a job it is, how they find each other and end."""

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_SILENCE = 50  #: seconds without a sign of life after which a process counts as dead and the job ends
_PATIENCE = 24 * 60 * 60  #: seconds that processes wait at the end for the first one, which scores what all found
_LAST_WORDS = 3.0  #: seconds that the first process, through which all are connected, gives the others to say why


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `join_hosts` reads."""
    group = parser.add_argument_group(
        "several hosts", "Start the same command in every process of the job, with one work directory that all see."
    )
    group.add_argument(
        "--distributed", action="store_true", help="join the others; a TPU pod, SLURM and the like say where they are"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is, if nothing else says it")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many processes the job has")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0 to N-1")


def join_hosts(options: argparse.Namespace) -> None:
    """Joins the other processes of the job, as the flags say; without them this process is alone.

    Call it before anything else uses jax.

    Raises:
        ValueError: flags that do not fit together, or no cluster that ``--distributed`` could ask.
    """
    given = {
        "--coordinator": options.coordinator,
        "--num-processes": options.num_processes,
        "--process-id": options.process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if not missing:
        _join_at(options.coordinator, options.num_processes, options.process_id)
    elif len(missing) < len(given):
        raise ValueError(
            f"several hosts: expected {', '.join(given)} together, {' and '.join(missing)} missing; "
            "or --distributed alone where a TPU pod, SLURM or the like starts the processes"
        )
    elif options.distributed:
        _join_cluster()


def _join_at(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator: expected HOST:PORT, as in 10.0.0.1:1234, got {coordinator!r}")
    if count < 1:
        raise ValueError(f"--num-processes: expected at least 1, got {count}")
    if not 0 <= index < count:
        raise ValueError(f"--process-id: expected 0 to {count - 1} (--num-processes {count}), got {index}")
    _initialize(coordinator_address=coordinator, num_processes=count, process_id=index)


def _join_cluster() -> None:
    try:
        _initialize()
    except ValueError as error:
        raise ValueError(
            f"--distributed: expected a cluster that says where its processes are, got {error!s:.200} "
            "Without one, give --coordinator, --num-processes and --process-id"
        ) from error


def _initialize(**place: Any) -> None:
    import jax  # here, because the worker processes of the data pipeline import the entry points too

    with contextlib.suppress(AttributeError):  # a jax without this service
        # Else jax takes SIGTERM for itself, and a process that is not training could not be asked to end.
        jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**place, heartbeat_timeout_seconds=_SILENCE, shutdown_timeout_seconds=_PATIENCE)


def run_main(main: Callable[[], int]) -> NoReturn:
    """Runs an entry point and ends the process with the code that it returns.

    At its end a process of a job waits for all the others.  One that failed must not: they may wait for what it
    should have computed with them.  So it ends at once; that breaks their connections to it, and they fail too.
    """
    try:
        code = main()
    except SystemExit:
        raise
    except BaseException:
        if not _joined():
            raise
        traceback.print_exc()
        code = 1
    if code and _joined():
        _leave(code)
    sys.exit(code)


def _joined() -> bool:
    """Whether this is one of several processes."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _leave(code: int) -> NoReturn:
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_LAST_WORDS)
    os._exit(code)


def explained(error: Exception) -> str:
    """The message of an error; where it is that of a broken connection, it says where to look for the cause."""
    text = str(error)
    if _joined() and "connection" in text.lower():
        text += "\nThe other process of this job that it was connected to has ended: look for what that one says"
    return text
