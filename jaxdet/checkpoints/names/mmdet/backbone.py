"""Names of backbones and necks."""

import itertools
from collections.abc import Mapping
from typing import Any

from jaxdet.checkpoints.names.layouts import BATCH_NORM, CHANNEL_NORM, CONV, GROUP_NORM, Leaf
from jaxdet.checkpoints.names.table import Pair, Table, either


def resnet(ours: str, theirs: str) -> Table:
    """Pairs for a ResNet or ResNeXt; torchvision and mmdetection name its modules alike.

    What is deformable, and global context, are in mmdetection alone.  Its first versions had the offsets beside their
    convolution.
    """
    block, their_block = f"{ours}/layer{{stage}}_{{block}}", f"{theirs}layer{{stage}}.{{block}}"
    context, their_context = f"{block}/context", f"{their_block}.context_block"
    offsets = (f"{their_block}.conv2.conv_offset", f"{their_block}.conv2_offset")
    return (
        Pair(f"{ours}/conv1", f"{theirs}conv1", CONV),
        Pair(f"{ours}/bn1", f"{theirs}bn1", BATCH_NORM),
        Pair(f"{block}/conv{{n}}", f"{their_block}.conv{{n}}", CONV),
        Pair(f"{block}/bn{{n}}", f"{their_block}.bn{{n}}", BATCH_NORM),
        Pair(f"{block}/downsample_conv", f"{their_block}.downsample.0", CONV),
        Pair(f"{block}/downsample_bn", f"{their_block}.downsample.1", BATCH_NORM),
        *either(f"{block}/conv2/offset", offsets, CONV),
        Pair(f"{context}/mask", f"{their_context}.conv_mask", CONV),
        Pair(f"{context}/reduce", f"{their_context}.channel_add_conv.0", CONV),
        Pair(f"{context}/norm", f"{their_context}.channel_add_conv.1", CHANNEL_NORM),
        Pair(f"{context}/expand", f"{their_context}.channel_add_conv.3", CONV),
    )


def fpn(tree: Mapping[str, Any]) -> Table:
    """Pairs for an FPN, which mmdetection counts from its own first level; extra levels follow in the same list."""
    levels = numbers("lateral", tree)
    extra = numbers("conv", tree.get("top", {}))
    kinds = {"lateral": "lateral_convs", "output": "fpn_convs"}
    pairs: list[Pair] = []
    for (kind, theirs), (i, n) in itertools.product(kinds.items(), enumerate(levels)):
        pairs.append(Pair(f"neck/{kind}{n}", f"neck.{theirs}.{i}.conv", CONV))
        pairs += norm(f"neck/{kind}{n}_norm", f"neck.{theirs}.{i}", tree.get(f"{kind}{n}_norm", {}))
    return (
        *pairs,
        *(Pair(f"neck/top/conv{n}", f"neck.fpn_convs.{i}.conv", CONV) for i, n in enumerate(extra, len(levels))),
    )


def norm(ours: str, theirs: str, tree: Mapping[str, Any]) -> Table:
    """The pair for the norm of a convolution, which mmdetection calls by its kind; none where there is no norm."""
    if not tree:
        return ()
    kind, leaves = ("bn", BATCH_NORM) if "mean" in tree else ("gn", GROUP_NORM)
    return (Pair(ours, f"{theirs}.{kind}", leaves),)


def norms(ours: str, theirs: str, tree: Mapping[str, Any]) -> Table:
    """Pairs for ``norm1``, ``norm2``, .. of as many convolutions, at ``{}`` in ``theirs`` counted from 0."""
    found = ((n, tree[f"norm{n}"]) for n in numbers("norm", tree))
    return tuple(itertools.chain.from_iterable(norm(f"{ours}/norm{n}", theirs.format(n - 1), its) for n, its in found))


def convs(
    ours: str, theirs: str, tree: Mapping[str, Any], prefix: str = "conv", leaves: tuple[Leaf, ...] = CONV
) -> Table:
    """Pairs for ``conv1``, ``conv2``, .., which mmdetection counts from 0, at ``{}`` in ``theirs``."""
    return tuple(Pair(f"{ours}/{prefix}{n}", theirs.format(n - 1), leaves) for n in numbers(prefix, tree))


def numbers(prefix: str, tree: Mapping[str, Any]) -> list[int]:
    """The numbers of the names that are the prefix and a number, ascending."""
    found = (name.removeprefix(prefix) for name in tree if name.startswith(prefix))
    return sorted(int(number) for number in found if number.isdecimal())
