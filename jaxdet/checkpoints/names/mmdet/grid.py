"""Names of Grid R-CNN's head and its extractor."""

from jaxdet.checkpoints.names.layouts import CONV, GROUP_NORM, TRANSPOSED_CONV
from jaxdet.checkpoints.names.mmdet.backbone import convs, norms
from jaxdet.checkpoints.names.mmdet.roi import Tree, extractor
from jaxdet.checkpoints.names.table import Pair, Table

_ORDERS = {"fusion1": "forder_trans", "fusion2": "sorder_trans"}
"""mmdetection has two orders of fusion; further ones have no name there."""


def grid_boxes(model: Tree) -> Table:
    """Pairs for the part that finds boxes by grids."""
    part = model["grid"]
    ours, theirs, tree = "grid/head", "roi_head.grid_head", part.get("head", {})
    pairs = [
        *extractor("grid/extractor", "roi_head.grid_roi_extractor", part),
        *convs(ours, f"{theirs}.convs.{{}}.conv", tree),
        *norms(ours, f"{theirs}.convs.{{}}", tree),
        *(Pair(f"{ours}/upsample{n}", f"{theirs}.deconv{n}", TRANSPOSED_CONV) for n in (1, 2)),
        Pair(f"{ours}/upsample_norm", f"{theirs}.norm1", GROUP_NORM),
    ]
    for order, transitions in _ORDERS.items():
        # Both number the points in the same way, and the edges that lead to one.
        for i, layer in enumerate(("depthwise", "pointwise")):
            edge = f"{theirs}.{transitions}.{{point}}.{{edge}}.{i}"
            pairs.append(Pair(f"{ours}/{order}/{layer}{{point}}_{{edge}}", edge, CONV))
    return tuple(pairs)
