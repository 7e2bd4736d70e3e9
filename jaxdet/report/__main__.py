"""Write where a model goes wrong: numbers as report.json, and a page to look at, index.html.

    jaxdet report runs/demo --out report
    jaxdet report runs/demo --other runs/mine
    jaxdet report runs/demo --truth instances.json --images DIR data.short_side=600 data.long_side=1000
    jaxdet report --results results.json --truth instances.json --images DIR

KEY=VALUE changes a setting of the run's config by its dotted name.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdet.evaluation.tables import show_progress
from jaxdet.report.build import report
from jaxdet.report.tables import error_table
from jaxdet.runtime.flags import add_trusted_flag, split_words
from jaxdet.runtime.hosts import explained, run_main
from jaxdet.runtime.large_pages import ask_for_large_pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and report; 0, or 1 with a message where the input is at fault."""
    options = _parser().parse_intermixed_args(arguments)
    names, settings = split_words(options.words)
    run = names.pop(0) if names else None
    try:
        reports = report(
            run,
            other=options.other,
            results=options.results,
            truth=options.truth,
            images=options.images,
            out=options.out,
            overrides=[*names, *settings],  # a name too many is no setting, which is said
            trusted=options.trusted,
            fast=options.fast,
            progress=show_progress,
        )
    except (ValueError, OSError) as error:
        print(f"jaxdet report: {explained(error)}", file=sys.stderr)
        return 1
    error_table(reports)
    print(f"{Path(options.out) / 'index.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxdet report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="RUN [KEY=VALUE]", help="run or checkpoint, and settings to change")
    parser.add_argument(
        "--other", metavar="RUN", help="run, checkpoint or results json to compare with, image by image"
    )
    parser.add_argument("--results", help="COCO results json in the place of RUN (needs --truth)")
    parser.add_argument("--truth", "--annotations", help="instances json to judge by instead of the run's data.val")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--out", default="report", help="folder to write into (default: report)")
    parser.add_argument("--fast", action="store_true", help="score by faster-coco-eval: the same numbers sooner")
    add_trusted_flag(parser)
    return parser


if __name__ == "__main__":
    ask_for_large_pages()
    run_main(main)
