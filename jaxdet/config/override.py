"""Changes of a config from the command line: ``key=value`` with dotted keys.

The text of a value does not say its type.  So it is read in several ways (`_readings`), and the annotation of the
setting decides which one fits.
"""

import ast
import contextlib
import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import typeguard

from jaxdet.config.tree import (
    Child,
    annotation_text,
    check,
    children,
    classes,
    field_annotations,
    fit,
    replace_children,
    walk,
)

_T = TypeVar("_T")
_WORDS: dict[str, bool | None] = {"none": None, "null": None, "true": True, "false": False}


def override(config: _T, assignments: Sequence[str]) -> _T:
    """Make a new config with all ``assignments`` applied, and check every setting of it.

    Args:
        config: a tree of frozen dataclasses, linen modules and tuples.
        assignments: such as ``"optimizer.lr=0.01"``, ``"data.val=none"``, ``"model.heads.0.weight=2"`` (positions in
            tuples are keys), ``"rpn.ratios=0.5,1,2"``, ``"model*num_classes=3"`` (every key that fits the pattern).
            A value is read as a Python literal or as plain text.  Later ones win over earlier ones of the same key.

    Raises:
        ValueError: there is no ``=``, an unknown key (the nearest valid key is named), or a value of the wrong type.
    """
    edits = [edit for assignment in assignments for edit in _parse(config, assignment)]
    changed: _T = _apply(config, Child(config, type(config)), edits)
    check(changed)
    return changed


@dataclass(frozen=True)
class _Edit:
    key: str  #: the whole dotted key, for errors
    path: tuple[str, ...]  #: the part of the key below the current node
    text: str  #: the value as it was typed

    def __str__(self) -> str:
        return f"{self.key}={self.text}"


def _parse(root: Any, assignment: str) -> list[_Edit]:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"expected KEY=VALUE, got {assignment!r}; for example optimizer.lr=0.01")
    # A pattern that fits nothing stays as it is, and is reported as an unknown key.
    fitting = fnmatch.filter((name for name, _ in walk(root, type(root))), key) if "*" in key else []
    return [_Edit(name, tuple(name.split(".")), text) for name in fitting or [key]]


def _apply(root: Any, node: Child, edits: Sequence[_Edit]) -> Any:
    """Apply all edits below a node at once, and return its new value.

    At once, because a dataclass checks its settings when it is made: two edits may be valid only together.  An edit
    of a whole child comes before those inside it.
    """
    below = children(node.value, node.annotation)
    groups: dict[str, list[_Edit]] = {}
    for edit in edits:
        if edit.path[0] not in below:
            raise _unknown_key(root, edit, node)
        groups.setdefault(edit.path[0], []).append(replace(edit, path=edit.path[1:]))
    new = {}
    for name, group in groups.items():
        child = below[name]
        whole, inner = [edit for edit in group if not edit.path], [edit for edit in group if edit.path]
        for edit in whole:
            child = Child(_read(edit, child), child.annotation)
        # For example data.val=none with data.val.images=...: the first leaves no setting for the second.
        if whole and inner and child.value is None:
            raise ValueError(f"{whole[-1]} leaves nothing for {inner[0]} to change; drop one of the two")
        new[name] = _apply(root, child, inner) if inner else child.value
    try:
        return replace_children(node.value, new) if new else node.value
    except ValueError as error:  # the class knows its settings, and not under which keys they are
        raise ValueError(f"{' '.join(map(str, edits))}: {error}") from None


def _read(edit: _Edit, child: Child) -> Any:
    """The first reading of an edit's text that fits the annotation."""
    for value in _readings(edit.text):
        try:
            return fit(value, child.annotation)
        except typeguard.TypeCheckError:
            continue
    inner = ", ".join(f"{edit.key}.{name}" for name in children(child.value, child.annotation))
    hint = f"; set its parts one by one ({inner}), or edit the config file" if inner else ""
    raise ValueError(f"{edit.key}: expected {annotation_text(child.annotation)}, got {edit.text!r}{hint}")


def _readings(text: str) -> Iterator[Any]:
    """Yield what a text may mean, the most specific reading first."""
    word = text.strip().lower()
    if word in _WORDS:
        yield _WORDS[word]
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        yield ast.literal_eval(text)
    yield text
    # Without quotes, a,b is a tuple of texts, and a single literal may be a tuple of one.
    yield tuple(part.strip() for part in text.split(",") if part.strip())
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        yield (ast.literal_eval(text),)


def _unknown_key(root: Any, edit: _Edit, parent: Child) -> ValueError:
    below = list(children(parent.value))
    name = "none" if parent.value is None else type(parent.value).__name__ if below else repr(parent.value)
    where = f"{name} has {', '.join(below) or 'no settings'}"
    others = [cls.__name__ for cls in classes(parent.annotation) if edit.path[0] in field_annotations(cls)]
    if others:  # the key is right where a config has another class
        place = edit.key.removesuffix("." + ".".join(edit.path))
        hint = getattr(parent.value, "hint", f"take a config that has {others[0]} there, or write it into one")
        told = f"{place} of this config is {name}, and {edit.path[0]} is a setting of {' and '.join(others)}; {hint}"
        return ValueError(f"unknown key {edit.key!r}: {told} ({where})")
    keys = [key for key, _ in walk(root, type(root))]
    return ValueError(f"unknown key {edit.key!r}; the nearest valid key is {_nearest(edit.key, keys)!r} ({where})")


def _nearest(key: str, keys: Sequence[str]) -> str:
    """The most similar key.  The last part counts a second time, so that ``lr`` finds ``optimizer.lr``."""

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        return whole + difflib.SequenceMatcher(None, key.split(".")[-1], other.split(".")[-1]).ratio()

    return max(keys, key=likeness)
