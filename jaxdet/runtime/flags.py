"""Flags that several commands have."""

import argparse


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
