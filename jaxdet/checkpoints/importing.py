"""Weights to start from, wherever they come from; the names of the arrays tell which code base wrote them."""

import dataclasses
import logging
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdet.checkpoints.files.weights import read_weights
from jaxdet.checkpoints.names import detectron2
from jaxdet.checkpoints.names.mmdet import from_mmdet
from jaxdet.checkpoints.names.table import Imported
from jaxdet.checkpoints.names.torchvision import COCO_IDS, class_count, from_torchvision
from jaxdet.checkpoints.names.torchvision.backbone import from_folded_resnet, from_torchvision_resnet
from jaxdet.checkpoints.names.torchvision.convnext import from_torchvision_convnext
from jaxdet.checkpoints.public.cache import located
from jaxdet.checkpoints.public.table import PublicWeights, coco_categories, near_names
from jaxdet.checkpoints.reading import load
from jaxdet.checkpoints.tree import Array, flatten
from jaxdet.runtime.files import check_local

_EXPECTED = (
    "expected mmdetection's (backbone.layer1.., roi_head..), torchvision's detectors' (backbone.body.., roi_heads.. or "
    "head..), its ResNets' (conv1.., layer1..) or its ConvNeXts' (features.1.0.layer_scale..), or detectron2's "
    "(backbone.bottom_up.., proposal_generator..)"
)

_log = logging.getLogger(__name__)


def import_weights(path: str | os.PathLike[str], like: Mapping[str, Any]) -> Imported:
    """Read variables from a jaxdet run or checkpoint folder, or from a file of mmdetection, torchvision or detectron2.

    Args:
        path: the folder or file, or the name of public weights, which are downloaded once.
        like: the variables to be filled, or their shapes, because mmdetection's names depend on the model.

    Returns:
        What ``merge(variables, imported.variables, within=imported.within)`` puts into a model.

    Raises:
        FileNotFoundError: there is nothing at ``path``, and no public weights have that name.
        ValueError: as ``reading.load`` and ``files.weights.read_weights``, the names are of no known kind, or a file is
            not the published one of its name.
        OSError: public weights cannot be downloaded.
    """
    path, weights = find_weights(path)
    if path.is_dir():  # jaxdet's own checkpoints are folders, those of others are files
        variables, metadata = load(path)
        ids, names = _categories(metadata.get("categories") or [], path)
        return Imported(variables, category_ids=ids, category_names=names)
    state = read_weights(path)
    try:
        imported = recognise(state, like)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return imported if weights is None else _with_categories(imported, weights)


def find_weights(path: str | os.PathLike[str]) -> tuple[Path, PublicWeights | None]:
    """Find a folder or file of weights, and what is known of public ones, which are downloaded if they are not there.

    Raises:
        FileNotFoundError: there is nothing at ``path``, and no public weights have that name.
        ValueError: ``path`` is an address, or a file is not the published one of its name.
        OSError: public weights cannot be downloaded.
    """
    check_local(path, "the weights")
    public = located(os.fspath(path))
    weights, found = public if public else (None, Path(path))
    if not found.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a run folder or a file of weights{near_names(found)}")
    return found, weights


def _with_categories(imported: Imported, weights: PublicWeights) -> Imported:
    """The published weights of a detector with the names of their classes, which no file has."""
    if not weights.config:
        return imported
    names = dict(coco_categories())
    ids = imported.category_ids or tuple(names)
    # torchvision has outputs for ten ids that are no category's.
    return dataclasses.replace(
        imported, category_ids=ids, category_names=tuple(names.get(i, f"no category {i}") for i in ids)
    )


def _categories(categories: Any, path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ids and names of a checkpoint's categories in the order of its labels."""
    # Metadata may be a stranger's.
    listed = isinstance(categories, list) and all(isinstance(category, dict) for category in categories)
    wanted = {"id": int, "name": str}
    if not listed or not all(
        type(category.get(key)) is kind for category in categories for key, kind in wanted.items()
    ):
        raise ValueError(
            f"{path}: expected categories with whole numbers as ids and texts as names, got {reprlib.repr(categories)}"
        )
    return tuple(category["id"] for category in categories), tuple(category["name"] for category in categories)


def recognise(state: Mapping[str, Array], like: Mapping[str, Any]) -> Imported:
    """Convert a state dict by the table of the code base whose names it has.

    Args:
        state: name -> array, without wrappers such as ``{"state_dict": ...}``.
        like: as in `import_weights`.

    Raises:
        ValueError: the names are of no known kind, or do not fit ``like``.
    """
    # Some names of its heads are torchvision's, so that it is told by those of its backbone and of its RPN.
    if any(name.startswith(detectron2.PREFIXES) for name in state):
        return detectron2.from_detectron2(state)
    # Each other prefix belongs to one code base: torchvision writes roi_heads, mmdetection roi_head.
    if any(name.startswith(("roi_heads.", "head.classification_head.")) for name in state):
        return from_torchvision(state, keep=_labels_to_keep(state, like))
    if any(name.startswith(("backbone.layer", "rpn_head.", "roi_head.", "bbox_head.")) for name in state):
        return Imported(from_mmdet(state, like))
    if "conv1.weight" in state and any(name.startswith("layer1.") for name in state):
        # Biases of convolutions: the batch norms were folded into them.
        return from_folded_resnet(state) if "conv1.bias" in state else from_torchvision_resnet(state)
    if "features.1.0.layer_scale" in state:
        return from_torchvision_convnext(state)
    some = ", ".join(name[:80] for name in list(state)[:4])
    raise ValueError(f"names of no known kind, such as {some}: {_EXPECTED}")


def _labels_to_keep(state: Mapping[str, Array], like: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Which of torchvision's labels a model of 80 classes keeps; None: all, as for any other number of classes.

    torchvision's detectors have outputs for label 0 and for each of COCO's ids 1..90, of which only 80 are in use.
    """
    if class_count(state) != 91 or _class_count(like) != 80:
        return None
    _log.info("torchvision's 90 labels are COCO's ids: the 80 that COCO uses are taken, in ascending order")
    return COCO_IDS


def _class_count(like: Mapping[str, Any]) -> int | None:
    """How many classes a model tells apart, without background, by its outputs; None where it has no known ones."""
    shapes = {path[1:]: leaf.shape for path, leaf in flatten(like).items()}
    softmax, sigmoids, boxes = (
        shapes.get((*path, "bias"))
        for path in (("heads_0", "head", "logits"), ("dense", "head", "logits"), ("dense", "head", "deltas"))
    )
    if softmax:
        return int(softmax[0]) - 1
    # A dense head has logits for each of its anchors, and four numbers of a box.
    return int(sigmoids[0]) * 4 // int(boxes[0]) if sigmoids and boxes else None
