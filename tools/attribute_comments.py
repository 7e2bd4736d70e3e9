"""An extension of griffe, which reads docstrings for the site: ``#:`` comments say what an attribute is.

They stand behind an attribute, or on the lines above it.
"""

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension


class AttributeComments(Extension):
    """Makes the ``#:`` comment of an attribute its docstring, where it has none."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **kwargs: Any) -> None:
        """Called for each attribute that griffe finds in a source."""
        if attr.docstring is None and isinstance(node, ast.AST) and (text := comment_of(attr)):
            attr.docstring = Docstring(text, lineno=attr.lineno, parent=attr)


def comment_of(attr: Attribute) -> str:
    """The ``#:`` comment at the end of the attribute's last line, or the lines of it just above."""
    lines, first, last = attr.lines_collection[attr.filepath], attr.lineno, attr.endlineno
    if first is None or last is None:
        return ""
    _, mark, behind = lines[last - 1].partition("  #: ")
    if mark:
        return str(behind.strip())
    above: list[str] = []
    for line in reversed(lines[: first - 1]):
        if not line.strip().startswith("#:"):
            break
        above.insert(0, line.strip().removeprefix("#:").strip())
    return " ".join(above)
