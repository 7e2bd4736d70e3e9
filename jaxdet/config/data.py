"""Configs as JSON data, for checkpoints and run folders.  Reading data never runs anything but jaxdet's own classes."""

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

_DEEPEST = 40  # levels; real configs have about 6


def to_data(config: Any) -> Any:
    """A config as JSON data: ``{"class": "jaxdet.nn.backbones.resnet.ResNet", "depth": 50}``, tuples as lists.

    Raises:
        ValueError: `from_data` could not rebuild something in the tree: a class from elsewhere, a list, a function.
    """
    if is_node(config):
        name = f"{type(config).__module__}.{type(config).__qualname__}"
        if _config_class(name) is not type(config):
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
    """The inverse of `to_data`: ``from_data(to_data(c)) == c``.  A setting absent from the data takes its default.

    Args:
        data: Decoded JSON, from anyone: only config classes defined inside jaxdet are imported and called, with
            values that fit their annotations.

    Raises:
        ValueError: a class from elsewhere, an unknown or missing field, a value that does not fit, too deep.
    """
    return _rebuild(data, "config", _DEEPEST)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every setting in which two configs, given as data, differ."""
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    both_dicts = isinstance(old, dict) and isinstance(new, dict)
    if not both_dicts or old.get("class") != new.get("class"):
        return [f"{prefix}: {_brief(old)} -> {_brief(new)}"]
    absent = "(absent)"
    keys = list(dict.fromkeys([*old, *new]))
    dotted = f"{prefix}." if prefix else ""
    return [line for k in keys for line in differences(old.get(k, absent), new.get(k, absent), f"{dotted}{k}")]


def _rebuild(data: Any, where: str, depth: int) -> Any:
    if depth == 0:
        raise ValueError(f"{where}: config data is nested deeper than {_DEEPEST} levels")
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
    fitted = {}
    for key, value in values.items():
        try:
            fitted[key] = fit(value, annotations[key])
        except typeguard.TypeCheckError as error:
            raise wrong_type(f"{where}.{key}", annotations[key], value) from error
    try:
        return cls(**fitted)
    except TypeError as error:  # a field without default is missing
        raise ValueError(f"{where}: {error}") from error


def _config_class(name: str) -> type:
    """The config class of that full name, from jaxdet's own files alone."""
    module_name, _, class_name = name.rpartition(".")
    if module_name not in _own_modules():
        raise ValueError(f"{name}: config data may only name classes defined in jaxdet")
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
    """Names of jaxdet's modules, from the files of the package: nothing is imported to find them."""
    root = Path(jaxdet.__path__[0])
    parts = (path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py"))
    return frozenset(".".join(("jaxdet", *part)).removesuffix(".__init__") for part in parts)


def _brief(data: Any) -> str:
    return f"{data['class'].rpartition('.')[2]}(...)" if isinstance(data, dict) and "class" in data else repr(data)
