"""The tree that a config is: children of a node, a node with other children, and values against their annotations.

Nodes are dataclasses (linen modules are), tuples and mappings; all else is a leaf.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import typeguard
from flax import linen as nn

#: One and several of a kind, in messages.
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("true or false", "of true or false"),
    list: ("a list", "lists"),
    type(None): ("none", "none"),
}
_LINEN_FIELDS = frozenset({"parent", "name"})  #: linen's own bookkeeping in every module, not settings


@dataclasses.dataclass(frozen=True)
class Child:
    """A value inside a node, and the annotation that it must fit."""

    value: Any
    annotation: Any


def field_annotations(cls: type) -> dict[str, Any]:
    """Map the settings of a dataclass or linen module to their resolved annotations, in order of declaration."""
    skipped = _LINEN_FIELDS if issubclass(cls, nn.Module) else frozenset()
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init and f.name not in skipped}


def is_node(value: Any) -> bool:
    """Whether ``value`` is an instance of a dataclass (linen modules are)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def children(value: Any, annotation: Any = Any) -> dict[str, Child]:
    """Map keys (field names, tuple positions, mapping keys) to what lies directly below a value; none for leaves."""
    if is_node(value):
        return {k: Child(getattr(value, k), a) for k, a in field_annotations(type(value)).items()}
    if isinstance(value, tuple):
        elements = _element_annotations(annotation, len(value))
        return {str(i): Child(v, a) for i, (v, a) in enumerate(zip(value, elements, strict=True))}
    if isinstance(value, Mapping):
        return {str(k): Child(v, _mapping_annotations(annotation)[1]) for k, v in value.items()}
    return {}


def replace_children(value: Any, new: Mapping[str, Any]) -> Any:
    """Make the same node with some children replaced, all at once, since settings may be valid only together."""
    if is_node(value):
        return dataclasses.replace(value, **new)
    if isinstance(value, tuple):
        return tuple(new.get(str(i), v) for i, v in enumerate(value))
    return {k: new.get(str(k), v) for k, v in value.items()}


def walk(value: Any, annotation: Any = Any, prefix: str = "") -> Iterator[tuple[str, Child]]:
    """Yield every value below ``value`` with its dotted key, parents before their children."""
    for key, child in children(value, annotation).items():
        path = f"{prefix}{key}"
        yield path, child
        yield from walk(child.value, child.annotation, f"{path}.")


def fit(value: Any, annotation: Any) -> Any:
    """Return ``value`` as the annotation wants it: an int becomes a float, a list a tuple, and all else must fit.

    Raises:
        typeguard.TypeCheckError: the value does not fit.
    """
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, annotation)
    # Python's bool is an int, but depth=true is a mistake.
    if type(value) is bool and annotation in (int, float):
        raise typeguard.TypeCheckError("a bool is not a number here")
    if annotation is float and type(value) is int:  # lr=1 means 1.0, and equal configs must be equal as text too
        return float(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        value = _fit_tuple(value, annotation)
    if isinstance(value, Mapping) and typing.get_args(annotation):
        keys, values = _mapping_annotations(annotation)
        value = {fit(k, keys): fit(v, values) for k, v in value.items()}
    # typeguard looks only at the first element of a collection if it is not told otherwise.
    strategy = typeguard.CollectionCheckStrategy.ALL_ITEMS
    return typeguard.check_type(value, annotation, collection_check_strategy=strategy)


def check(config: Any) -> None:
    """Check every setting of a tree against its annotation; lists do not pass, as configs must be hashable.

    Raises:
        ValueError: names the dotted key, the expected type and what is there.
    """
    for key, child in walk(config, type(config)):
        if isinstance(child.value, list):
            raise wrong_type(key, child.annotation, child.value)
        try:
            fit(child.value, child.annotation)
        except typeguard.TypeCheckError as error:
            raise wrong_type(key, child.annotation, child.value) from error


def wrong_type(key: str, annotation: Any, value: Any) -> ValueError:
    """The error for a value that does not fit its annotation."""
    is_plain = value is None or isinstance(value, int | float)
    kind = "" if is_plain else f", {annotation_text(type(value))}"
    return ValueError(f"{key}: expected {annotation_text(annotation)}, got {value!r}{kind}")


def annotation_text(annotation: Any) -> str:
    """Say what an annotation allows: ``tuple[int, int] | None`` is "2 whole numbers separated by commas or none"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(annotation_text(a) for a in arguments)
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        kinds = dict.fromkeys(a for a in arguments if a is not Ellipsis)
        words = [_WORDS[kind][1] if kind in _WORDS else f"of {annotation_text(kind)}" for kind in kinds]
        return f"{number}{' and '.join(words)} separated by commas"
    if annotation in _WORDS:
        return _WORDS[annotation][0]
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _fit_union(value: Any, annotation: Any) -> Any:
    """Fit a value to the first member that it fits; one of its own type comes first (3 stays int in float | int)."""
    for option in sorted(typing.get_args(annotation), key=lambda option: option is not type(value)):
        try:
            return fit(value, option)
        except typeguard.TypeCheckError:
            continue
    raise typeguard.TypeCheckError(f"fits none of {annotation_text(annotation)}")


def _fit_tuple(value: list[Any] | tuple[Any, ...], annotation: Any) -> tuple[Any, ...]:
    elements = _element_annotations(annotation, len(value))
    return tuple(fit(v, a) for v, a in zip(value, elements, strict=True))


def _element_annotations(annotation: Any, count: int) -> list[Any]:
    """Annotations of the elements of a tuple with ``count`` elements; Any where its annotation does not say."""
    for option in _options(annotation):
        arguments = typing.get_args(option)
        if typing.get_origin(option) is not tuple:
            continue
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return [arguments[0]] * count
        if len(arguments) == count:
            return list(arguments)
    return [Any] * count


def _mapping_annotations(annotation: Any) -> tuple[Any, Any]:
    """Annotations of keys and values of a mapping; Any where its annotation does not say."""
    for option in _options(annotation):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
            return arguments[0], arguments[1]
    return Any, Any


def classes(annotation: Any) -> list[type]:
    """The classes with settings among what an annotation allows."""
    return [o for o in _options(annotation) if isinstance(o, type) and dataclasses.is_dataclass(o)]


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)
