"""Read many bad data sets and checkpoints, and print what became of them.

    python -m tests.fuzz                     # 12,000 examples, about half an hour of one core
    python -m tests.fuzz --examples 50 --kinds masks "pth: programs"

The exit status is 1 if one of them was WRONG: an error of another kind or one that does not name the file, a crash, a
hang, more memory than is allowed, or something written.  What was read then is kept in ``--keep``.
"""

import argparse
import pickle
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.run import TARGETS, Tally, examine
from tests.fuzz.worker import Worker


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500, help="of each kind (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other examples (default 0)")
    parser.add_argument("--kinds", nargs="+", help="only these")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="folder for what was WRONG (default fuzz)")
    options = parser.parse_args()
    tallies: dict[str, Tally] = {}
    for judge, kinds in TARGETS.items():
        chosen = {kind: strategy for kind, strategy in kinds.items() if not options.kinds or kind in options.kinds}
        worker = Worker(judge)
        for kind, strategy in chosen.items():
            tallies[kind] = examine(strategy, worker, options.examples, options.seed)
            print(kind, dict(tallies[kind].counts), file=sys.stderr, flush=True)
        worker.close()
    _print(tallies)
    _keep(tallies, options.keep)
    return int(any(tally.wrong for tally in tallies.values()))


def _print(tallies: dict[str, Tally]) -> None:
    table = Table("kind", "examples", "taken", "refused", "WRONG")
    for kind, tally in tallies.items():
        counts = tally.counts
        table.add_row(kind, *map(str, (counts.total(), counts["taken"], counts["refused"], counts["WRONG"])))
    totals = [sum(tally.counts[name] for tally in tallies.values()) for name in ("taken", "refused", "WRONG")]
    table.add_section()
    table.add_row("all", *map(str, (sum(totals), *totals)))
    Console().print(table)


def _keep(tallies: dict[str, Tally], folder: Path) -> None:
    wrong = [(kind, *each) for kind, tally in tallies.items() for each in tally.wrong]
    for number, (kind, files, outcome) in enumerate(wrong):
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.pkl").write_bytes(pickle.dumps(files))
        print(f"{folder / str(number)}.pkl: {kind}: {outcome.text[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
