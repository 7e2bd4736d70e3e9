"""Configs as JSON data, for checkpoints and run folders, and as text for people.

Data may come from a stranger's checkpoint: reading it calls nothing but jaxdet's own config classes.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typeguard
from flax import linen as nn

import jaxdet
from jaxdet.config.tree import field_annotations, fit, is_node, wrong_type

_MAX_DEPTH = 40  #: levels of nested data; real configs have about 6
_TEXT_WIDTH = 100  #: columns


def to_data(config: Any) -> Any:
    """Convert a config to JSON data: ``{"class": "jaxdet.nn.backbones.resnet.ResNet", "depth": 50}``, tuples as lists.

    Raises:
        ValueError: the tree has something that `from_data` could not rebuild: a class from elsewhere, a list, a
            function.
    """
    if is_node(config):
        name = f"{type(config).__module__}.{type(config).__qualname__}"
        if _config_class(name) is not type(config):  # a class of a test or a notebook that has jaxdet's name
            raise ValueError(f"{name}: the class is not the one that can be imported under this name")
        return {"class": name} | {k: to_data(getattr(config, k)) for k in field_annotations(type(config))}
    if isinstance(config, tuple):
        return [to_data(v) for v in config]
    if isinstance(config, Mapping):
        return {"mapping": [[to_data(k), to_data(v)] for k, v in config.items()]}
    if config is None or isinstance(config, (bool, int, str)) or (isinstance(config, float) and math.isfinite(config)):
        return config
    raise ValueError(
        f"{config!r} ({type(config).__name__}) can not be stored in a config: use jaxdet's own dataclasses and "
        "modules, tuples, mappings, finite numbers, strings, bools and None (dtypes and functions by their names)"
    )


def from_data(data: Any) -> Any:
    """Rebuild a config from data: ``from_data(to_data(c)) == c``.

    A setting that the data lacks takes its default, so that older data stays readable.

    Args:
        data: decoded JSON, from anyone: only config classes defined inside jaxdet are imported and called, with
            values that fit their annotations.

    Raises:
        ValueError: a class is from elsewhere, a field is unknown or missing, a value does not fit, or the data is
            nested too deep.
    """
    return _rebuild(data, "config", _MAX_DEPTH)


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


def _rebuild(data: Any, where: str, depth: int) -> Any:
    if depth == 0:
        raise ValueError(f"{where}: config data is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(data, list):
        return tuple(_rebuild(v, f"{where}.{i}", depth - 1) for i, v in enumerate(data))
    if not isinstance(data, dict):
        return data
    if set(data) == {"mapping"}:
        return _rebuild_mapping(data["mapping"], where, depth)
    if not isinstance(data.get("class"), str):
        raise ValueError(f'{where}: expected {{"class": NAME, ...}} or {{"mapping": [...]}}, got keys {sorted(data)}')
    values = {k: _rebuild(v, f"{where}.{k}", depth - 1) for k, v in data.items() if k != "class"}
    return _construct(_config_class(data["class"]), values, where)


def _rebuild_mapping(pairs: Any, where: str, depth: int) -> dict[Any, Any]:
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError(f"{where}: expected a list of [key, value] pairs")
    try:
        return {_rebuild(k, where, depth - 1): _rebuild(v, f"{where}.{k}", depth - 1) for k, v in pairs}
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


def _config_class(name: str) -> type:
    """Find a config class by its full name, in jaxdet's own files alone."""
    module_name, _, class_name = name.rpartition(".")
    if module_name not in _own_modules():
        raise ValueError(f"{name}: config data may only name classes defined in jaxdet")
    # A module also holds what it imports (`Path`, say), so the class itself must say that it is defined there.
    cls = getattr(importlib.import_module(module_name), class_name, None)
    defined_here = isinstance(cls, type) and (cls.__module__, cls.__qualname__) == (module_name, class_name)
    if not isinstance(cls, type) or not defined_here or not _is_config_class(cls):
        raise ValueError(f"{name}: not a frozen dataclass or linen module that jaxdet defines in {module_name}")
    return cls


def _is_config_class(cls: type) -> bool:
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return frozen or issubclass(cls, nn.Module)


@functools.cache
def _own_modules() -> frozenset[str]:
    """Names of jaxdet's modules, found by their files: importing a name to see whether it exists would run it."""
    root = Path(jaxdet.__path__[0])
    parts = (path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py"))
    return frozenset(".".join(("jaxdet", *part)).removesuffix(".__init__") for part in parts)


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
