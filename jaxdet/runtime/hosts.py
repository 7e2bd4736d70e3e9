"""Several hosts: flags that say which process of a job this is, how processes find each other, and how they end.

jax is imported inside functions: the worker processes of the data pipeline import the entry points, which import this.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_HEARTBEAT_TIMEOUT = 50  #: seconds without a sign of life after which a process counts as dead and the job ends
_SHUTDOWN_TIMEOUT = 24 * 60 * 60  #: seconds to wait at the end for the first process, which scores what all found
#: Seconds for which a failed first process stays.  All are connected through it, so its end ends the others, which may
#: have failed for a reason of their own and need the time to print it.
_LAST_WORDS = 3.0


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `join_hosts` reads."""
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
    """Join the other processes of the job, as the flags say; without flags this process is alone.

    Call it before anything else uses jax, which connects its devices once; a process that is alone connects here.

    Raises:
        ValueError: the flags do not fit together, ``--distributed`` finds no cluster to ask, or a process that is alone
            has no devices of the kind that was asked for (`mesh.all_devices`).
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
    else:
        from jaxdet.runtime.mesh import all_devices

        all_devices()


def _join_at(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")  # from the right, as an IPv6 address has colons of its own
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
    import jax

    with contextlib.suppress(AttributeError):  # older versions of jax lack this service
        # The service takes SIGTERM for itself, so that a process that is not training could not be asked to end.
        jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **place, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT, shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT
    )


def run_main(main: Callable[[], int]) -> NoReturn:
    """Run an entry point, and end the process with the exit code that it returns.

    At its end, jax makes a process of a job wait for all the others.  One that failed must not wait, since the others
    may wait for what it should have computed with them.  So it ends at once, which breaks their connections to it, and
    they fail too.
    """
    try:
        code = main()
    except SystemExit as left:  # a run that was asked to stop; all processes leave at the same step
        if _is_compiling():
            _flush()
            os._exit(left.code if isinstance(left.code, int) else 1)
        raise
    except BaseException as error:
        if not _joined():
            if isinstance(error, KeyboardInterrupt):
                print("\nstopped by Ctrl-C", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            raise
        traceback.print_exc()
        code = 1
    if code and _joined():
        _leave(code)
    sys.exit(code)


def _joined() -> bool:
    """Whether this is one of several processes."""
    jax = sys.modules.get("jax")  # not imported for this: without jax no job was joined
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _is_compiling() -> bool:
    """Whether XLA is still at work in a thread (`compiling.breakable`)."""
    module = sys.modules.get("jaxdet.runtime.compiling")  # not imported for this: it would import jax
    return module is not None and module.is_compiling()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _leave(code: int) -> NoReturn:
    """End this process without waiting for others."""
    import jax

    _flush()
    if jax.process_index() == 0:
        time.sleep(_LAST_WORDS)
    os._exit(code)


def explained(error: Exception) -> str:
    """Return the message of an error, with a hint if a broken connection hides the cause in another process."""
    text = str(error)
    if _joined() and "connection" in text.lower():
        text += "\nThe other process of this job that it was connected to has ended: look for what that one says"
    return text
