"""Weights of mmdetection 2.x (and of the forks that kept its names) in both directions.

Labels agree (0..K-1, background last), channels come RGB as in mmdetection's pytorch-style configs, and the order
inside class-specific and anchor outputs is the same, so only names and layouts change.  mmdetection 1.x puts background
first and names its heads otherwise: its names are not in the table.

The names of a part follow from its place in the variables (``backbone``, ``neck``, ``rpn``, ``heads_0``, ``masks``, ..)
and from what it holds there.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from jaxdet.checkpoints.names.layouts import BOUNDARIES
from jaxdet.checkpoints.names.mmdet import backbone, dense, grid, masks, roi
from jaxdet.checkpoints.names.table import Pair, Table, from_state, their_name, to_state
from jaxdet.checkpoints.tree import Array, Path, Variables, flatten, unflatten

_Tree: TypeAlias = Mapping[str, Any]

_PARTS: dict[str, Callable[[_Tree], Table]] = {
    "backbone": lambda model: backbone.resnet("backbone", "backbone."),
    "neck": lambda model: backbone.fpn(model["neck"]),
    "rpn": dense.rpn,
    "dense": dense.dense_head,
    "heads": roi.box_branches,
    "grid": grid.grid_boxes,
    "masks": masks.mask_branches,
    "mask_scores": masks.mask_scores,
    "pixel_classes": masks.pixel_classes,
    "boundaries": lambda model: (Pair("boundaries", "mbrm", BOUNDARIES),),
    "semantic": lambda model: roi.semantic(model["semantic"]),
}
"""Pairs of names for the parts of a model, from its parameters, by their place; box heads are places in a row."""


def _table_for(variables: _Tree) -> Table:
    """Pairs for the parts that a model's variables have: arrays or shapes, the whole tree or some parts of it."""
    # Statistics beside scale and bias tell a batch norm from a group norm.
    leaves = (flatten(variables.get(collection, {})) for collection in ("params", "batch_stats"))
    model = unflatten(dict(itertools.chain.from_iterable(tree.items() for tree in leaves)))
    # "heads_0", "heads_1" are one place; "mask_scores" is one as it stands.
    places = {re.sub(r"_\d+$", "", place) for place in model}
    return tuple(itertools.chain.from_iterable(pairs(model) for place, pairs in _PARTS.items() if place in places))


def from_mmdet(state: Mapping[str, Any], like: Mapping[str, Any]) -> Variables:
    """``{"params": ..., "batch_stats": ...}``, float32, of an mmdetection state dict in torch layout.

    ``like`` are the variables to be filled (arrays or shapes): mmdetection's names depend on the composition.
    Names without a pair stay in the collection ``unmapped``, where ``merge`` lists them: what only another
    composition has, parts that ``like`` is without, and what a checkpoint carries without use.  Errors as
    ``table.from_state``.
    """
    return from_state(_table_for(like), state)


def to_mmdet(variables: Mapping[str, Any]) -> dict[str, Array]:
    """The mmdetection state dict of variables: the inverse of ``from_mmdet``, errors as ``table.to_state``."""
    return to_state(_table_for(variables), variables)


def mmdet_names(variables: Mapping[str, Any]) -> dict[Path, str]:
    """mmdetection's name of every leaf, by its path below the collection.

    ``("rpn", "head", "conv", "kernel")`` is ``"rpn_head.rpn_conv.weight"``.  ValueError for a leaf without a pair.
    """
    table = _table_for(variables)
    paths = [path[1:] for path in flatten(variables)]
    return {path: their_name(table, path) for path in paths}
