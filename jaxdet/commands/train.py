"""Train a model: jaxdet train --config mask_rcnn_r50_fpn --workdir runs/mask_rcnn [KEY=VALUE ...]

A run that was stopped goes on when the same command is given again.  KEY=VALUE changes a setting of the config by its
dotted name, as in optimizer.lr=0.01 data.batch_size=8; --print-config shows all of them.
"""

import argparse
import errno
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdet.runtime.flags import add_trusted_flag
from jaxdet.runtime.hosts import add_host_flags, explained, join_hosts

if TYPE_CHECKING:
    from jaxdet.experiment import Experiment


def main(words: Sequence[str] | None = None) -> int:
    """Parse, train, say what came of it; 0, or 1 with a message where the input is at fault."""
    arguments = _parse(words)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("jaxdet").setLevel(logging.INFO)
    if not arguments.traceback:
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs at length what it raises as well

    # Here and not above: worker processes import this file again and have no use for jax.
    import jax

    from jaxdet.config import config_name, load_config, override, print_config, trusted_modules
    from jaxdet.recipe import default_base, refuse_begun
    from jaxdet.training import train
    from jaxdet.training.profile import steps_of
    from jaxdet.training.writers import TRACKERS

    try:
        # First, as --data has a folder and some minutes' work before it trains.
        writers = [TRACKERS[name]() for name in arguments.writer]
        if arguments.profile is not None:
            steps_of(arguments.profile)
        trusted = trusted_modules(arguments.trusted, arguments.config)
        base = load_config(arguments.config) if arguments.config else default_base()
        experiment = override(base, arguments.overrides)
        if arguments.print_config:
            print_config(experiment)
            return 0
        join_hosts(arguments)
        if jax.process_index() != 0:  # one process reports, all complain
            logging.getLogger("jaxdet").setLevel(logging.WARNING)
        name = config_name(arguments.config) if arguments.config else arguments.data.resolve().name
        workdir = arguments.workdir or Path("runs") / name
        if arguments.data is None:
            refuse_begun(workdir)
        else:
            experiment = _small_data(base, workdir, arguments, trusted)
        metrics = train(
            experiment,
            workdir,
            accept_changes=arguments.accept_changes,
            trusted=trusted,
            writers=writers,
            profile=arguments.profile,
        )
    except (ValueError, FloatingPointError, OSError) as error:
        if arguments.traceback:
            raise
        print(f"error: {explained(error)}{_hint(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first step, or the second Ctrl-C
        print("stopped by Ctrl-C; the same command goes on from the last checkpoint, if there is one", file=sys.stderr)
        return 128 + signal.SIGINT
    if jax.process_index() == 0:
        _print_outcome(metrics, workdir)
    return 0


def _small_data(
    base: "Experiment", workdir: Path, arguments: argparse.Namespace, trusted: Sequence[str]
) -> "Experiment":
    """The experiment for a folder of data; a signal ends the process also while a step is compiled to be timed."""
    from jaxdet.recipe import small_data
    from jaxdet.runtime.compiling import Abandoned, breakable
    from jaxdet.training.signals import stop_on_signal

    settings = base, arguments.data, arguments.minutes, workdir, arguments.overrides, trusted
    with stop_on_signal() as stop:
        try:
            return breakable(lambda: small_data(*settings), stop.at_once)
        except Abandoned:
            print("stopped before the first step; the same command begins anew", file=sys.stderr)
            raise SystemExit(128 + stop.signal) from None


def _hint(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "\nThe last checkpoint is untouched: make room, and the same command goes on" if full else ""


def _print_outcome(metrics: dict[str, float], workdir: Path) -> None:
    from rich.console import Console

    from jaxdet.evaluation.tables import summary_table

    if metrics:
        Console().print(summary_table(metrics))
    print(f"{workdir} holds the checkpoints, the log, curves.png, the config and, with a validation set, the scores")


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    title, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(description=title, epilog=more)
    parser.add_argument(
        "--config", help="name of a model (jaxdet zoo), FILE.py with get_config(), or FILE.py:ROW; --data has its own"
    )
    parser.add_argument(
        "--workdir", type=Path, help="folder of the run; runs/NAME OF THE CONFIG, or of the data, if not given"
    )
    parser.add_argument("--data", type=Path, help="a folder of annotated photos: the recipe for small data")
    parser.add_argument("--minutes", type=float, help="with --data: how long the run may take (60)")
    parser.add_argument("--print-config", action="store_true", help="show the config with all changes, and stop")
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue a run although its config was another one"
    )
    parser.add_argument(
        "--writer",
        action="append",
        default=[],
        choices=("mlflow", "trackio", "wandb"),
        help="hand the log to an experiment tracker too; can be given several times",
    )
    parser.add_argument("--profile", metavar="FIRST:LAST", help="trace these steps by jax.profiler, as in 10:15")
    add_trusted_flag(parser)
    add_host_flags(parser)
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, by dotted name")
    arguments = parser.parse_intermixed_args(words)
    if arguments.config is None and arguments.data is None:
        parser.error("expected --config NAME, or --data DIR for a small data set of your own")
    given = [arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.distributed or None]
    if arguments.data is not None and given != [None] * 4:
        parser.error(
            "--data: expected one process, whose steps are timed; for several hosts name the data by data.train"
        )
    if arguments.data is None and arguments.minutes is not None:
        parser.error("--minutes: expected --data DIR with it; of other runs optimizer.schedule.length says how long")
    arguments.minutes = 60.0 if arguments.minutes is None else arguments.minutes
    return arguments
