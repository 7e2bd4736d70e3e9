"""Weights of mmdetection 2.x (and of the forks that kept its names) in both directions.

Labels agree (0..K-1, background last), channels come RGB as in mmdetection's pytorch-style configs, and the order
inside class-specific and anchor outputs is the same, so only names and layouts change (``mmdet_names``).
mmdetection 1.x puts background first and names its heads otherwise: its names are not in the table.
"""

from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.names.mmdet import table_for
from jaxdet.checkpoints.names.table import from_state, their_name, to_state
from jaxdet.checkpoints.tree import Array, Path, Variables, flatten


def from_mmdet(state: Mapping[str, Any], like: Mapping[str, Any]) -> Variables:
    """``{"params": ..., "batch_stats": ...}``, float32, of an mmdetection state dict in torch layout.

    ``like`` are the variables to be filled (arrays or shapes): mmdetection's names depend on the composition.
    Names that no row knows stay in the collection ``unmapped``, where ``merge`` lists them: what only another
    composition has, and what a checkpoint carries without use.  Errors as ``table.from_state``.
    """
    return from_state(table_for(like), state)


def to_mmdet(variables: Mapping[str, Any]) -> dict[str, Array]:
    """The mmdetection state dict of variables: the inverse of ``from_mmdet``, errors as ``table.to_state``."""
    return to_state(table_for(variables), variables)


def mmdet_names(variables: Mapping[str, Any]) -> dict[Path, str]:
    """mmdetection's name of every leaf, by its path below the collection.

    ``("rpn", "head", "conv", "kernel")`` is ``"rpn_head.rpn_conv.weight"``.  ValueError for a leaf without a row.
    """
    table = table_for(variables)
    paths = [path[1:] for path in flatten(variables)]
    return {path: their_name(table, path) for path in paths}
