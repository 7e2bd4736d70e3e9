"""Several hosts: the flags by which a process says which one of a job it is, and how they find each other."""

import argparse

_SILENCE = 50  #: seconds without a sign of life after which a process counts as dead and the job ends


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
    import jax  # here, because the worker processes of the data pipeline import the entry points too

    jax.distributed.initialize(coordinator, num_processes=count, process_id=index, heartbeat_timeout_seconds=_SILENCE)


def _join_cluster() -> None:
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE)
    except ValueError as error:
        raise ValueError(
            f"--distributed: expected a cluster that says where its processes are, got {error!s:.200} "
            "Without one, give --coordinator, --num-processes and --process-id"
        ) from error
