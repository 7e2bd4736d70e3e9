"""Tables in Markdown, as they stand in docs/."""

from collections.abc import Sequence
from typing import Any


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns whose cells are numbers are aligned to the right."""
    aligned = ["---:" if rows and all(_is_number(row[i]) for row in rows) else "---" for i in range(len(head))]
    lines = [list(head), aligned, *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(cell: Any) -> bool:
    text = _text(cell).replace(",", "").rstrip("%")
    return text in ("", "-") or text.replace(".", "", 1).replace("e-", "", 1).isdigit()


def _text(cell: Any) -> str:
    """Numbers with three digits or more, none as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
