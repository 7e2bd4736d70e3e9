"""torchvision's ResNet classifiers, also with folded batch norms, and the names of detectors' backbones and necks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdet.checkpoints.names.layouts import BATCH_NORM, CONV
from jaxdet.checkpoints.names.mmdet.backbone import resnet
from jaxdet.checkpoints.names.table import Imported, Pair, Table, either, from_state, plain_state
from jaxdet.checkpoints.tree import Array

BATCH_NORM_EPS = 1e-5
"""What the model's batch norms add to the variance (torch's default too)."""

_RESNET: Table = resnet("backbone", "")


def fpn(levels: range, top: Sequence[int] = ()) -> Table:
    """Pairs for a ResNet and the FPN on its ``levels``, which torchvision counts from 0; ``top``: levels above them.

    Since version 0.13 each convolution of the FPN is the first of a sequence, which adds ``.0`` to its name; a norm is
    the second.
    """
    pairs = [*resnet("backbone", "backbone.body.")]
    pairs += (Pair(f"neck/top/conv{level}", f"backbone.fpn.extra_blocks.p{level}", CONV) for level in top)
    for i, level in enumerate(levels):
        for ours, theirs in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            name = f"backbone.fpn.{theirs}.{i}"
            pairs += either(f"neck/{ours}{level}", (name, f"{name}.0"), CONV)
            pairs.append(Pair(f"neck/{ours}{level}_norm", f"{name}.1", BATCH_NORM))
    return tuple(pairs)


def from_torchvision_resnet(state: Mapping[str, Any]) -> Imported:
    """The backbone in the weights of a torchvision ResNet classifier; its ``fc`` layer is dropped.

    The variables hold ``backbone`` alone.  Names that are no ResNet's stay in ``unmapped``, for the merge to list.
    """
    state = plain_state(state)
    dropped = tuple(name for name in state if name.startswith("fc."))
    kept = {name: value for name, value in state.items() if name not in dropped}
    return Imported(from_state(_RESNET, kept), dropped=dropped, within="backbone")


def from_folded_resnet(state: Mapping[str, Any]) -> Imported:
    """The backbone in a ResNet whose batch norms were folded into its convolutions (torchvision's names).

    Each convolution's bias becomes the bias of a batch norm that does nothing else: scale 1, mean 0, variance
    1 - eps.  Blocks that the file lacks are missed by the merge unless a pattern skips them.
    """
    unfolded: dict[str, Array] = {}
    state = plain_state(state)
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if kind != "bias" or module == "fc":
            unfolded[name] = value
            continue
        # layer1.0.conv2 -> layer1.0.bn2; layer1.0.downsample.0 -> layer1.0.downsample.1
        norm = f"{module[:-1]}1" if module.endswith("downsample.0") else "bn".join(module.rsplit("conv", 1))
        # scale / sqrt(variance + eps) is 1 then.
        ones = np.ones_like(value)
        parts = {"weight": ones, "bias": value, "running_mean": 0 * ones, "running_var": ones - BATCH_NORM_EPS}
        unfolded |= {f"{norm}.{part}": array for part, array in parts.items()}
    return from_torchvision_resnet(unfolded)


def shift_eps(state: Mapping[str, Array], eps: float) -> dict[str, Array]:
    """Variances that give with our epsilon what they gave with ``eps``."""
    # Folded into the variance, because the epsilon of our layers is a setting of the model and not of its weights.
    shift = np.float32(eps - BATCH_NORM_EPS)
    return {name: value + shift if name.endswith("running_var") else value for name, value in state.items()}
