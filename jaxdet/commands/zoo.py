"""List the models that come with jaxdet, and the weights that others have published for them.

    jaxdet zoo
    jaxdet zoo mask_rcnn
    jaxdet zoo "mr_*"
    jaxdet zoo --tables

A name is what --config takes, and a name of weights what jaxdet eval, predict, export and report take as a run.
"""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch

from jaxdet.checkpoints.public.table import public_weights
from jaxdet.config import config_text
from jaxdet.zoo import list_models


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, print a line for each model and each file of weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("pattern", nargs="?", default="*", help="of names, as in 'mr_*', or a part of them")
    parser.add_argument("--tables", action="store_true", help="list the rows of the papers' tables too")
    options = parser.parse_args(arguments)
    # A word without wildcards is a part of names, as in other programs that list.
    pattern = options.pattern if any(sign in options.pattern for sign in "*?[") else f"*{options.pattern}*"
    names = list_models(pattern, tables=options.tables)
    weights = [row for row in public_weights().values() if fnmatch(row.name, pattern)]
    if not names and not weights:
        print(f"no model and no weights have {options.pattern!r} in their name; jaxdet zoo lists all", file=sys.stderr)
        return 1
    width = max(len(name) for name in (*names, *(row.name for row in weights)))
    if names:
        print("models (--config NAME):")
    for name in names:
        what = "" if ":" in name else config_text(name).split("\n")[0]
        print(f"  {name:<{width}}  {what}".rstrip())
    if weights:
        print("\nweights that others have published (as a run; docs/WEIGHTS.md), box and mask AP on val2017:")
    for row in weights:
        numbers = " ".join("    " if ap is None else f"{ap:4.1f}" for ap in (row.box_ap, row.mask_ap))
        print(f"  {row.name:<{width}}  {numbers}  {row.source.name}")
    return 0
