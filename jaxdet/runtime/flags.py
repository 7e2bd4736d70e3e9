"""What several commands have in their lines: the model, settings, and flags."""

import argparse
from collections.abc import Sequence
from pathlib import Path

#: What names a model, for ``--help``.
MODEL = (
    "run folder, checkpoint folder, name or file of public weights (docs/WEIGHTS.md), or with --config any weight file"
)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, of which the first is that of the model, and settings, KEY=VALUE; each in the order given.

    What is there as a file or folder is a name, whatever it looks like.
    """
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in settings], settings


def add_trusted_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--trusted``, which fills ``trusted`` with a list of names."""
    parser.add_argument(
        "--trusted",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of your own, or its file, whose classes config and checkpoint may name; its code is run "
        "(docs/YOUR_CODE.md); can be given several times",
    )
