"""List the weights that others have published and jaxdet takes by name.

    python -m jaxdet.checkpoints.public

Numbers are their publishers', on COCO val2017.  What is in the cache is marked by a star; docs/WEIGHTS.md says more.
"""

import argparse
from collections.abc import Sequence

from jaxdet.checkpoints.public.cache import cache_folder
from jaxdet.checkpoints.public.table import PublicWeights, public_weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, print a line for each, and the folder of the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args(arguments)
    folder = cache_folder()
    for row in public_weights().values():
        print(table_line(row) + ("*" if (folder / row.file).exists() else ""))
    print(f"\nfiles are kept in {folder}")


def table_line(row: PublicWeights) -> str:
    """A row as a line of a Markdown table: name, source, box AP, mask AP, config with settings."""
    numbers = ["" if ap is None else f"{ap:.1f}" for ap in (row.box_ap, row.mask_ap)]
    config = " ".join([f"configs/{row.config}.py", *row.settings]) if row.config else ""
    return f"| `{row.name}` | {row.source.name} | {numbers[0]} | {numbers[1]} | {f'`{config}`' if config else ''} |"


if __name__ == "__main__":
    main()
