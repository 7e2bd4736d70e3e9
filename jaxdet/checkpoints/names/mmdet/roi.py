"""Names of box heads and their extractors, and of the semantic branch.

A head's modules stand at names that depend on the composition: ``roi_head.bbox_head`` of a Mask R-CNN is
``roi_head.bbox_head.0`` in a cascade, and ``shared_fcs.1`` is a fully connected layer, a convolution or a non-local
block.  Our tree names each of them for what it is, so it says which pairs apply.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.names.layouts import CONV, LINEAR, LINEAR_OVER_7X7, VECTOR, Leaf
from jaxdet.checkpoints.names.mmdet.backbone import convs, norms, numbers
from jaxdet.checkpoints.names.table import Pair, Table

Tree = Mapping[str, Any]


def box_branches(model: Tree) -> Table:
    """Pairs for all box heads of a model and their extractors."""
    pairs: list[Pair] = []
    for number in numbers("heads_", model):
        branch, suffix = model[f"heads_{number}"], suffix_of(number, model)
        pairs += extractor(f"heads_{number}/extractor", f"roi_head.bbox_roi_extractor{suffix}", branch)
        pairs += box_head(f"heads_{number}/head", f"roi_head.bbox_head{suffix}", branch.get("head", {}))
    return tuple(pairs)


def suffix_of(number: int, model: Tree) -> str:
    """``.h`` where the reference keeps its heads in a list: in cascades, and in R3-CNN even for a single head."""
    first_mask_head = model.get("masks", {}).get("heads_0", {}).get("head", {})
    return f".{number}" if "heads_1" in model or "link" in first_mask_head else ""


def extractor(ours: str, theirs: str, branch: Tree) -> Table:
    """Pairs for an extractor over all levels, also where it is part of another one.

    No released checkpoint of 2.x has ``reduce``, so its name is ours.
    """
    tree = branch.get("extractor", {})
    if "extractor" in tree:
        return extractor(f"{ours}/extractor", theirs, tree)
    names = {"pre": "pre_module", "post": "post_module"}
    parts = (_module(f"{ours}/{part}", f"{theirs}.{names[part]}", tree[part]) for part in names if part in tree)
    return (*itertools.chain(*parts), Pair(f"{ours}/reduce", f"{theirs}.reduce.conv", CONV))


def box_head(ours: str, theirs: str, tree: Tree) -> Table:
    """Pairs for a box head."""
    layers = tree.get("trunk", {})
    return (
        *trunk(f"{ours}/trunk", f"{theirs}.shared_fcs", layers),
        Pair(f"{ours}/logits", f"{theirs}.fc_cls", output(layers)),
        Pair(f"{ours}/deltas", f"{theirs}.fc_reg", output(layers)),
    )


def semantic(tree: Tree) -> Table:
    """Pairs for the semantic branch."""
    ours, theirs = "semantic", "roi_head.semantic_head"
    laterals = numbers("lateral", tree)
    return (
        # mmdetection counts levels from 0; ours are log2 of the stride, from 2.
        *(Pair(f"{ours}/lateral{n}", f"{theirs}.lateral_convs.{n - 2}.conv", CONV) for n in laterals),
        *convs(ours, f"{theirs}.convs.{{}}.conv", tree),
        Pair(f"{ours}/embedding", f"{theirs}.conv_embedding.conv", CONV),
        Pair(f"{ours}/logits", f"{theirs}.conv_logits", CONV),
    )


# In the order of computation; a trunk has some of them.
_FCC_ORDER = ("before", "conv1", "conv1a", "conv1b", "conv2", "conv2a", "conv2b", "after")


def trunk(ours: str, theirs: str, tree: Tree) -> Table:
    """Pairs for a trunk; the reference numbers its elements as they come."""
    if "fc1" in tree:
        # Convolutions before it (`ConvFC`) have a list of their own.
        before = theirs.replace("shared_fcs", "shared_convs")
        return (
            *convs(ours, f"{before}.{{}}.conv", tree),
            *norms(ours, f"{before}.{{}}", tree),
            Pair(f"{ours}/fc1", f"{theirs}.0", LINEAR_OVER_7X7),
            Pair(f"{ours}/fc2", f"{theirs}.1", LINEAR),
        )
    present = [name for name in _FCC_ORDER if name in tree]
    elements = (_module(f"{ours}/{name}", f"{theirs}.{i}", tree[name]) for i, name in enumerate(present))
    return tuple(itertools.chain(*elements))


def output(layers: Tree) -> tuple[Leaf, ...]:
    """Layout of a last layer: after convolutions it reads a flattened 7x7 map, after fc2 a plain vector."""
    return LINEAR if "fc1" in layers else LINEAR_OVER_7X7


_NON_LOCAL = {"g": "g.conv", "theta": "theta.conv", "phi": "phi.conv", "out": "conv_out.conv"}
_ATTENTION = {"query": "query_conv", "value": "value_conv", "out": "proj_conv"}
_GEOMETRY = {"geometry_x": "appr_geom_fc_x", "geometry_y": "appr_geom_fc_y"}
_GAMMA = (Leaf("params", "gamma", "gamma", VECTOR),)
# The fork's names of two convolutions in a row around an extractor are not known; a Sequential would number them.
_CONVOLUTIONS = {"conv": "conv", "tall": "0.conv", "wide": "1.conv"}


def _module(ours: str, theirs: str, tree: Tree) -> Table:
    """Pairs for a part given by value: non-local block, attention or convolutions, told apart by what it holds."""
    if "kernel" in tree:
        return (Pair(ours, f"{theirs}.conv", CONV),)
    if "query" in tree:
        linear = _pairs(ours, theirs, _GEOMETRY, LINEAR)
        return (*_pairs(ours, theirs, _ATTENTION, CONV), *linear, Pair(ours, theirs, _GAMMA))
    return _pairs(ours, theirs, _NON_LOCAL if "theta" in tree else _CONVOLUTIONS, CONV)


def _pairs(ours: str, theirs: str, names: Mapping[str, str], leaves: tuple[Leaf, ...]) -> Table:
    return tuple(Pair(f"{ours}/{name}", f"{theirs}.{their}", leaves) for name, their in names.items())
