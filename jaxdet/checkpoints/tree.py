"""Variables as nested dictionaries, and their leaves by path.

``Variables`` is what ``model.init`` returns: collections (``params``, ``batch_stats``) of nested dictionaries.
A name such as ``params/backbone/conv1/kernel`` is a path joined by slashes, collection first.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray
Variables: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str, ...]


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """Map the path of each leaf of nested mappings to the leaf; an empty mapping has no leaves."""
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        path = (*prefix, str(key))
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[Path, Any]) -> Variables:
    """Build nested dictionaries from paths, the inverse of `flatten`.

    Raises:
        ValueError: two values have the same path, or one path runs through the leaf of another.
    """
    tree: Variables = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):  # a file may hold both a.b and a.b.c
                raise ValueError(f"{'/'.join(path)} lies below {key!r}, which is itself a leaf")
        if path[-1] in node:
            raise ValueError(f"two values for {'/'.join(path)}")
        node[path[-1]] = value
    return tree
