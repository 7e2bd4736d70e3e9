"""Runs the commands that stand in docs/BENCHMARKS.md, and puts what they print in place of the tables below them.

    python -m tools.renew --list                    # what there is
    python -m tools.renew                           # everything without arguments that need data or a GPU
    python -m tools.renew roi_align nms             # commands that name one of these modules
    python -m tools.renew pipeline --given DIR=coco/train2017 --given JSON=coco/instances_train2017.json

A command stands alone in a block of code that is followed by ``<!-- made -->``; its table goes from there to
``<!-- end -->``.  A block followed by ``<!-- kept -->`` needs what not everyone has, and is run only by name.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from jaxdet.runtime.files import write_text

DOCUMENT = Path(__file__).parents[1] / "docs" / "BENCHMARKS.md"
PART = re.compile(
    r"(?P<head>```\npython -m benchmarks\.(?P<command>[^\n]+)\n```\n\n<!-- (?P<kind>made|kept) -->\n)"
    r"(?P<table>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


def commands(text: str, names: list[str]) -> list[str]:
    """The commands to run: those of the named modules, or without names all that need nothing."""
    parts = [(part["command"], part["kind"]) for part in PART.finditer(text)]
    return [command for command, kind in parts if (_module(command) in names if names else kind == "made")]


def _module(command: str) -> str:
    """``ops.nms --size 3`` -> ``nms``."""
    return shlex.split(command)[0].rpartition(".")[2]


def run(command: str) -> str:
    """What it prints.  SystemExit if it fails."""
    arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"benchmarks.{command}: it failed with exit code {done.returncode}")
    return f"{time.strftime('%Y-%m-%d')}: {done.stdout.strip()}\n"


def with_table(text: str, command: str, table: str) -> str:
    """The document with a new table below that command."""
    return PART.sub(lambda part: f"{part['head']}{table}{part['end']}" if part["command"] == command else part[0], text)


def renew(command: str, given: Mapping[str, str]) -> None:
    """Run it and write its table down; ``given`` stands for words of the command."""
    begin = time.perf_counter()
    table = run(shlex.join(given.get(word, word) for word in shlex.split(command)))
    # Read only now: a command takes minutes, in which someone may have edited the document.
    write_text(DOCUMENT, with_table(DOCUMENT.read_text(), command, table))
    print(f"{time.perf_counter() - begin:5.0f} s  {command}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODULE")
    parser.add_argument("--given", action="append", default=[], metavar="WORD=VALUE", help="for a word of commands")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args()
    text = DOCUMENT.read_text()
    known = [_module(part["command"]) for part in PART.finditer(text)]
    if unknown := set(args.names) - set(known):
        parser.error(f"expected some of {', '.join(dict.fromkeys(known))}, got {', '.join(sorted(unknown))}")
    if args.list:
        print("\n".join(f"{part['kind']}: {part['command']}" for part in PART.finditer(text)))
        return
    for command in commands(text, args.names):
        renew(command, dict(pair.split("=", 1) for pair in args.given))


if __name__ == "__main__":
    main()
