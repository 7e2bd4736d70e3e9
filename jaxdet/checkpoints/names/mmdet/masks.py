"""Names of mask heads, and of the head that scores masks."""

from jaxdet.checkpoints.names.layouts import CONV, TRANSPOSED_CONV
from jaxdet.checkpoints.names.mmdet.backbone import convs, numbers
from jaxdet.checkpoints.names.mmdet.roi import Tree, extractor, output, suffix_of, trunk
from jaxdet.checkpoints.names.table import Pair, Table


def mask_branches(model: Tree) -> Table:
    """Pairs for all mask heads of a model and their extractors."""
    pairs: list[Pair] = []
    part = model["masks"]
    for number in numbers("heads_", part):
        branch, ours, suffix = part[f"heads_{number}"], f"masks/heads_{number}", suffix_of(number, model)
        pairs += extractor(f"{ours}/extractor", f"roi_head.mask_roi_extractor{suffix}", branch)
        pairs += _mask_head(f"{ours}/head", f"roi_head.mask_head{suffix}", branch.get("head", {}))
    return tuple(pairs)


def _mask_head(ours: str, theirs: str, tree: Tree) -> Table:
    return (
        *convs(ours, f"{theirs}.convs.{{}}.conv", tree),
        Pair(f"{ours}/upsample", f"{theirs}.upsample", TRANSPOSED_CONV),
        Pair(f"{ours}/logits", f"{theirs}.conv_logits", CONV),
        # A pair for all heads: those without a link have no such leaf, and pairs without leaves do nothing.
        Pair(f"{ours}/link", f"{theirs}.conv_res.conv", CONV),
    )


def mask_scores(model: Tree) -> Table:
    """Pairs for the head that predicts the IoU of masks."""
    ours, theirs, tree = "mask_scores/head", "roi_head.mask_iou_head", model["mask_scores"].get("head", {})
    layers = tree.get("trunk", {})
    # The forks' FCC variant wraps its convolutions in ConvModule; Mask Scoring R-CNN's original has bare ones.
    conv = "" if "fc1" in layers else ".conv"
    return (
        *convs(ours, f"{theirs}.convs.{{}}{conv}", tree),
        *trunk(f"{ours}/trunk", f"{theirs}.fcs", layers),
        Pair(f"{ours}/iou", f"{theirs}.fc_mask_iou", output(layers)),
    )
