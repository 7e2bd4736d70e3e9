"""The price of errors as a table in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def error_table(reports: Sequence[dict[str, Any]]) -> None:
    """Print what each kind of error costs in AP50, a column for each run and kind."""
    table = Table("", title="AP50 lost to errors")
    columns = [(each, kind) for each in reports for kind in ("bbox", "segm") if kind in each]
    for each, kind in columns:
        table.add_column(f"{each['name']}\n{kind}", justify="right")
    table.add_row("AP50", *(f"{each[kind]['AP50']:.3f}" for each, kind in columns), end_section=True)
    for name in columns[0][0]["bbox"]["prices"]:
        table.add_row(name, *(f"{each[kind]['prices'][name]:.3f}" for each, kind in columns))
    Console().print(table)
