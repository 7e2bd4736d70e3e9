"""Weights to start from, wherever they come from: told apart by what is in them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdet.checkpoints.files import read_weights
from jaxdet.checkpoints.from_mmdet import from_mmdet
from jaxdet.checkpoints.from_torchvision import Imported, from_folded_resnet, from_torchvision, from_torchvision_resnet
from jaxdet.checkpoints.reading import load
from jaxdet.checkpoints.tree import Array


def import_weights(path: str | os.PathLike[str], like: Mapping[str, Any]) -> Imported:
    """Variables from a jaxdet run or checkpoint folder, or from a file of mmdetection or torchvision.

    ``like`` are the variables to be filled, or their shapes: mmdetection's names depend on the model.
    ``merge(variables, imported.variables, within=imported.within)`` puts them into a model.  Errors as
    ``reading.load`` and ``files.read_weights``, and ValueError for names of no known kind.
    """
    path = Path(path)
    if not path.is_dir():
        return recognise(read_weights(path), like)
    variables, metadata = load(path)
    categories = metadata.get("categories") or ()
    return Imported(variables, category_ids=tuple(int(category["id"]) for category in categories))


def recognise(state: Mapping[str, Array], like: Mapping[str, Any]) -> Imported:
    """A plain state dict (no wrappers) by whose names it bears; ``like`` as in ``import_weights``."""
    if any(name.startswith("roi_heads.") for name in state):
        return from_torchvision(state)
    if any(name.startswith(("backbone.layer", "rpn_head.", "roi_head.")) for name in state):
        return Imported(from_mmdet(state, like))
    if "conv1.weight" in state and any(name.startswith("layer1.") for name in state):
        return from_folded_resnet(state) if "conv1.bias" in state else from_torchvision_resnet(state)
    raise ValueError(
        f"names of no known kind, such as {', '.join(list(state)[:4])}: expected mmdetection's (backbone.layer1.., "
        "roi_head..), torchvision's detectors' (backbone.body.., roi_heads..) or its ResNets' (conv1.., layer1..)"
    )
