"""Configs as JSON data, for checkpoints and run folders, and as text for people.

Data may come from a stranger's checkpoint: reading it calls nothing but jaxdet's own config classes, and those of
modules that the user trusts (`jaxdet.config.trusted`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import typeguard

from jaxdet.config.tree import field_annotations, fit, is_node, walk, wrong_type
from jaxdet.config.trusted import KIND, check_classes, class_name, config_class, refuse_foreign

_MAX_DEPTH = 40  #: levels of nested data; real configs have about 6
_TEXT_WIDTH = 100  #: columns


def to_data(config: Any, trusted: Sequence[str] = ()) -> Any:
    """Convert a config to JSON data: ``{"class": "jaxdet.nn.backbones.resnet.ResNet", "depth": 50}``, tuples as lists.

    Args:
        config: the config.
        trusted: names of modules of one's own whose classes may be in it (`jaxdet.config.trusted_modules`).

    Raises:
        ValueError: the tree has something that `from_data` could not rebuild: a class from elsewhere, a list, a
            function.
    """
    check_classes(_classes(config), trusted)  # all at once, so that one message says what to trust
    return _to_data(config, partial(class_name, trusted=trusted))


def _classes(config: Any) -> Iterator[type]:
    """The classes of a config and of its parts."""
    nodes = (config, *(child.value for _, child in walk(config, type(config))))
    return (type(node) for node in nodes if is_node(node))


def described(config: Any) -> Any:
    """As `to_data`, of any classes: for comparisons alone, since `from_data` may not be able to rebuild them."""
    return _to_data(config, lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def _to_data(config: Any, name: Callable[[type], str]) -> Any:
    if is_node(config):
        fields = field_annotations(type(config))
        return {"class": name(type(config))} | {k: _to_data(getattr(config, k), name) for k in fields}
    if isinstance(config, tuple):
        return [_to_data(v, name) for v in config]
    if isinstance(config, Mapping):
        return {"mapping": [[_to_data(k, name), _to_data(v, name)] for k, v in config.items()]}
    if config is None or isinstance(config, (bool, int, str)) or (isinstance(config, float) and math.isfinite(config)):
        return config
    raise ValueError(
        f"{config!r} ({type(config).__name__}) can not be stored in a config: use dataclasses and modules of jaxdet, "
        f"or your own, each of them {KIND}; tuples, mappings, finite numbers, strings, bools and None (dtypes and "
        "functions by their names)"
    )


def from_data(data: Any, trusted: Sequence[str] = ()) -> Any:
    """Rebuild a config from data: ``from_data(to_data(c)) == c``.

    A setting that the data lacks takes its default, so that older data stays readable.

    Args:
        data: decoded JSON, from anyone: only config classes defined inside jaxdet, and in trusted modules, are
            imported and called, with values that fit their annotations.
        trusted: names of modules whose code may run (`jaxdet.config.trusted_modules`).

    Raises:
        ValueError: a class is from elsewhere, a field is unknown or missing, a value does not fit, or the data is
            nested too deep.
    """
    refuse_foreign(_class_names(data), trusted)  # all at once, before any code of a trusted module has run
    return _rebuild(data, "config", _MAX_DEPTH, trusted)


def _class_names(data: Any) -> Iterator[str]:
    waiting = [data]  # no recursion: the data may be nested without end
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class"), str):
                yield value["class"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def flat_settings(config: Any) -> dict[str, bool | int | float | str | None]:
    """The settings of a config by dotted keys, as ``{"optimizer.lr": 0.02, "model.backbone": "ResNet", ...}``.

    Of dataclasses and modules the name of the class stands there, and below it what they hold.
    """
    found: dict[str, bool | int | float | str | None] = {}
    for key, child in walk(config, type(config)):
        if is_node(child.value):
            found[key] = type(child.value).__name__
        elif not isinstance(child.value, tuple | Mapping):
            found[key] = child.value
        elif not child.value:
            found[key] = repr(child.value)
    return found


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """List ``key: old -> new`` for every setting in which two configs, given as data, differ.

    Args:
        old: data of one config.
        new: data of the other.
        prefix: dotted key of both inside larger configs.
    """
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    both_dicts = isinstance(old, dict) and isinstance(new, dict)
    # Settings of different classes have nothing in common that could be compared one by one.
    if not both_dicts or old.get("class") != new.get("class"):
        return [f"{prefix}: {_brief(old)} -> {_brief(new)}"]
    absent = "(absent)"
    keys = list(dict.fromkeys([*old, *new]))
    dotted = f"{prefix}." if prefix else ""
    return [line for k in keys for line in differences(old.get(k, absent), new.get(k, absent), f"{dotted}{k}")]


def _rebuild(data: Any, where: str, depth: int, trusted: Sequence[str]) -> Any:
    if depth == 0:
        raise ValueError(f"{where}: config data is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(data, list):
        return tuple(_rebuild(v, f"{where}.{i}", depth - 1, trusted) for i, v in enumerate(data))
    if not isinstance(data, dict):
        return data
    if set(data) == {"mapping"}:
        return _rebuild_mapping(data["mapping"], where, depth, trusted)
    if not isinstance(data.get("class"), str):
        raise ValueError(f'{where}: expected {{"class": NAME, ...}} or {{"mapping": [...]}}, got keys {sorted(data)}')
    values = {k: _rebuild(v, f"{where}.{k}", depth - 1, trusted) for k, v in data.items() if k != "class"}
    return _construct(config_class(data["class"], trusted), values, where)


def _rebuild_mapping(pairs: Any, where: str, depth: int, trusted: Sequence[str]) -> dict[Any, Any]:
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError(f"{where}: expected a list of [key, value] pairs")
    try:
        return {
            _rebuild(k, where, depth - 1, trusted): _rebuild(v, f"{where}.{k}", depth - 1, trusted) for k, v in pairs
        }
    except TypeError as error:  # an unhashable key
        raise ValueError(f"{where}: {error}") from error


def _construct(cls: type, values: dict[str, Any], where: str) -> Any:
    annotations = field_annotations(cls)
    unknown = sorted(set(values) - set(annotations))
    if unknown:
        raise ValueError(f"{where}: {cls.__name__} has no {unknown}; it has {list(annotations)}. Is jaxdet too old?")
    # A dataclass does not check types itself, and its own checks may rely on them.
    fitted = {}
    for key, value in values.items():
        try:
            fitted[key] = fit(value, annotations[key])
        except typeguard.TypeCheckError as error:
            raise wrong_type(f"{where}.{key}", annotations[key], value) from error
    try:
        return cls(**fitted)
    except (TypeError, ValueError) as error:  # a field without default is missing, or a value is out of range
        raise ValueError(f"{where}: {error}") from error


def _brief(data: Any) -> str:
    """Data in a few words, for `differences`."""
    return f"{data['class'].rpartition('.')[2]}(...)" if isinstance(data, dict) and "class" in data else repr(data)


def to_text(config: Any, indent: int = 0) -> str:
    """Format a config as nested constructor calls with every setting by name, on one line where 100 columns suffice.

    Args:
        config: the config, or a part of one.
        indent: levels by which the lines after the first are indented.
    """
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
    """Print `to_text` of a config."""
    print(to_text(config))


def _enclose(start: str, items: list[str], end: str, indent: int) -> str:
    line = f"{start}{', '.join(items)}{end}"
    if len(line) + 4 * indent <= _TEXT_WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{'    ' * (indent + 1)}{item},\n" for item in items)
    return f"{start}\n{inner}{'    ' * indent}{end.lstrip(',')}"
