"""Weights to start from, wherever they come from: told apart by what is in them."""

import logging
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdet.checkpoints.files.weights import read_weights
from jaxdet.checkpoints.names.mmdet import from_mmdet
from jaxdet.checkpoints.names.torchvision import (
    CLASS,
    COCO_IDS,
    Imported,
    from_folded_resnet,
    from_torchvision,
    from_torchvision_resnet,
)
from jaxdet.checkpoints.reading import load
from jaxdet.checkpoints.tree import Array, flatten

_log = logging.getLogger(__name__)


def import_weights(path: str | os.PathLike[str], like: Mapping[str, Any]) -> Imported:
    """Variables from a jaxdet run or checkpoint folder, or from a file of mmdetection or torchvision.

    ``like`` are the variables to be filled, or their shapes: mmdetection's names depend on the model.
    ``merge(variables, imported.variables, within=imported.within)`` puts them into a model.  Errors as
    ``reading.load`` and ``files.read_weights``, and ValueError for names of no known kind.
    """
    path = Path(path)
    if path.is_dir():
        variables, metadata = load(path)
        return Imported(variables, category_ids=_category_ids(metadata.get("categories") or [], path))
    state = read_weights(path)
    try:
        return recognise(state, like)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _category_ids(categories: Any, path: Path) -> tuple[int, ...]:
    listed = isinstance(categories, list) and all(isinstance(category, dict) for category in categories)
    if not listed or not all(type(category.get("id")) is int for category in categories):
        raise ValueError(f"{path}: expected categories with whole numbers as ids, got {reprlib.repr(categories)}")
    return tuple(category["id"] for category in categories)


def recognise(state: Mapping[str, Array], like: Mapping[str, Any]) -> Imported:
    """A plain state dict (no wrappers) by whose names it bears; ``like`` as in ``import_weights``."""
    if any(name.startswith("roi_heads.") for name in state):
        return from_torchvision(state, keep=_labels_to_keep(state, like))
    if any(name.startswith(("backbone.layer", "rpn_head.", "roi_head.", "bbox_head.")) for name in state):
        return Imported(from_mmdet(state, like))
    if "conv1.weight" in state and any(name.startswith("layer1.") for name in state):
        return from_folded_resnet(state) if "conv1.bias" in state else from_torchvision_resnet(state)
    some = ", ".join(name[:80] for name in list(state)[:4])
    raise ValueError(
        f"names of no known kind, such as {some}: expected mmdetection's (backbone.layer1.., "
        "roi_head..), torchvision's detectors' (backbone.body.., roi_heads..) or its ResNets' (conv1.., layer1..)"
    )


def _labels_to_keep(state: Mapping[str, Array], like: Mapping[str, Any]) -> tuple[int, ...] | None:
    """COCO's 80 ids, where torchvision's 90 labels, which are ids with gaps, meet a model of 80 classes; else None."""
    logits = state.get(f"{CLASS}.bias"), flatten(like).get(("params", "heads_0", "head", "logits", "bias"))
    if [getattr(bias, "shape", None) for bias in logits] != [(91,), (81,)]:
        return None
    _log.info("torchvision's 90 labels are COCO's ids: the 80 that COCO uses are taken, in ascending order")
    return COCO_IDS
