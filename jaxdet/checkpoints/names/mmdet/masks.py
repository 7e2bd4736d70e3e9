"""Names of mask heads, and of the head that scores masks."""

import re
from collections.abc import Callable

from jaxdet.checkpoints.names.layouts import BATCH_NORM, CONV, GROUP_NORM, TRANSPOSED_CONV, Leaf
from jaxdet.checkpoints.names.mmdet.backbone import convs, norms, numbers
from jaxdet.checkpoints.names.mmdet.roi import Tree, box_head, extractor, output, suffix_of, trunk
from jaxdet.checkpoints.names.table import Pair, Table, either


def mask_branches(model: Tree) -> Table:
    """Pairs for all mask heads of a model and their extractors, or for the pixel branch of a one-stage model.

    mmdetection has no refining step; its names are made as those of the heads that it may be a copy of.
    """
    part = model["masks"]
    if "pixels" in part:
        return _pixels(part["pixels"])
    pairs: list[Pair] = []
    for number in numbers("heads_", part):
        branch, ours, suffix = part[f"heads_{number}"], f"masks/heads_{number}", suffix_of(number, model)
        pairs += extractor(f"{ours}/extractor", f"roi_head.mask_roi_extractor{suffix}", branch)
        pairs += _mask_head(f"{ours}/head", f"roi_head.mask_head{suffix}", branch.get("head", {}))
    for kind, theirs, head in (("box", "bbox", box_head), ("mask", "mask", _mask_head)):
        if branch := part.get(f"refine_{kind}"):
            ours = f"masks/refine_{kind}"
            pairs += extractor(f"{ours}/extractor", f"roi_head.refine_{theirs}_roi_extractor", branch)
            pairs += head(f"{ours}/head", f"roi_head.refine_{theirs}_head", branch.get("head", {}))
    return tuple(pairs)


def _mask_head(ours: str, theirs: str, tree: Tree) -> Table:
    return (
        *convs(ours, f"{theirs}.convs.{{}}.conv", tree),
        *norms(ours, f"{theirs}.convs.{{}}", tree),
        Pair(f"{ours}/upsample", f"{theirs}.upsample", TRANSPOSED_CONV),
        Pair(f"{ours}/logits", f"{theirs}.conv_logits", CONV),
        # A pair for all heads: those without a link have no such leaf, and pairs without leaves do nothing.
        Pair(f"{ours}/link", f"{theirs}.conv_res.conv", CONV),
    )


def _pixels(tree: Tree) -> Table:
    """RDSNet's pixel stream, CondInst's mask branch, or YOLACT's protonet, by the names of their layers."""
    ours, theirs = "masks/pixels", "mask_head"
    if "norm" in tree:
        return (
            *_levels(tree, lambda i, n: f"{theirs}.lateral_convs.{i}.{2 * n - 2}", "gn", GROUP_NORM),
            Pair(f"{ours}/conv", f"{theirs}.final_convs.0.0.conv", CONV),
            Pair(f"{ours}/norm", f"{theirs}.final_convs.0.0.gn", GROUP_NORM),
            Pair(f"{ours}/codes", f"{theirs}.conv_reps", CONV),
        )
    if "norm1" in tree:
        theirs += ".mask_feature_head"
        return (
            *_levels(tree, lambda i, n: f"{theirs}.convs_all_levels.{i}.conv{i}", "bn", BATCH_NORM),
            *convs(ours, f"{theirs}.conv_branch.{{}}.conv", tree),
            *convs(ours, f"{theirs}.conv_branch.{{}}.bn", tree, "norm", BATCH_NORM),
            Pair(f"{ours}/codes", f"{theirs}.conv_pred", CONV),
        )
    # A list of convolutions and ReLUs: before the last 3x3 convolution stands a resize with a ReLU of its own.
    last = len(numbers("conv", tree))
    places = {**{n: 2 * n - 2 for n in range(1, last)}, last: 2 * last}
    return (
        *(Pair(f"{ours}/conv{n}", f"{theirs}.protonet.{place}", CONV) for n, place in places.items()),
        Pair(f"{ours}/codes", f"{theirs}.protonet.{2 * last + 2}", CONV),
    )


def _levels(tree: Tree, theirs: Callable[[int, int], str], suffix: str, norm: tuple[Leaf, ...]) -> list[Pair]:
    """The convolutions of each level before they are added up: ``level3_conv1``, .., and their normalisations.

    ``theirs`` names a convolution by its level, counted from 0 at the finest, and its number, from 1.
    """
    found = sorted((int(m[1]), int(m[2])) for m in (re.fullmatch(r"level(\d+)_conv(\d+)", name) for name in tree) if m)
    levels = sorted({level for level, _ in found})
    pairs: list[Pair] = []
    for level, n in found:
        ours, module = f"masks/pixels/level{level}", theirs(levels.index(level), n)
        pairs += [Pair(f"{ours}_conv{n}", f"{module}.conv", CONV), Pair(f"{ours}_norm{n}", f"{module}.{suffix}", norm)]
    return pairs


def pixel_classes(model: Tree) -> Table:
    """The pair for YOLACT's semantic loss, which mmdetection 2.x has beside its mask head and 3.x inside."""
    return either("pixel_classes/logits", ("mask_head.segm_branch.segm_conv", "segm_head.segm_conv"), CONV)


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
