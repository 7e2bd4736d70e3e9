"""A config as text for people: the constructor calls that would make it."""

from collections.abc import Mapping
from typing import Any

from jaxdet.config.tree import field_annotations, is_node

_WIDTH = 100  # columns


def to_text(config: Any, indent: int = 0) -> str:
    """The tree as nested constructor calls with every setting by name; on one line where it fits in 100 columns."""
    if is_node(config):
        items = [f"{k}={to_text(getattr(config, k), indent + 1)}" for k in field_annotations(type(config))]
        return _enclose(f"{type(config).__name__}(", items, ")", indent)
    if isinstance(config, tuple):
        items = [to_text(v, indent + 1) for v in config]
        return _enclose("(", items, ",)" if len(items) == 1 else ")", indent)
    if isinstance(config, Mapping):
        return _enclose("{", [f"{k!r}: {to_text(v, indent + 1)}" for k, v in config.items()], "}", indent)
    return repr(config)


def print_config(config: Any) -> None:
    """Prints `to_text` of a config."""
    print(to_text(config))


def _enclose(start: str, items: list[str], end: str, indent: int) -> str:
    line = f"{start}{', '.join(items)}{end}"
    if len(line) + 4 * indent <= _WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{'    ' * (indent + 1)}{item},\n" for item in items)
    return f"{start}\n{inner}{'    ' * indent}{end.lstrip(',')}"
