"""torchvision's ConvNeXt classifiers (`convnext_tiny` and its larger kin)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdet.checkpoints.names.layouts import CHANNEL_SCALE, CONV, GROUP_NORM, LINEAR
from jaxdet.checkpoints.names.table import Imported, Pair, Table, from_state, plain_state


def _stage(stage: int) -> Table:
    """Pairs of a stage, which torchvision counts twice: as what makes the map smaller, and as blocks."""
    down, blocks = f"features.{2 * stage - 2}", f"features.{2 * stage - 1}.{{i}}"
    # The stem has its norm behind the convolution.
    conv, norm = (0, 1) if stage == 1 else (1, 0)
    block = f"backbone/stage{stage}_{{i}}"
    return (
        Pair(f"backbone/down{stage}_conv", f"{down}.{conv}", CONV),
        Pair(f"backbone/down{stage}_norm", f"{down}.{norm}", GROUP_NORM),
        Pair(block, blocks, (CHANNEL_SCALE,)),
        Pair(f"{block}/depthwise", f"{blocks}.block.0", CONV),
        Pair(f"{block}/norm", f"{blocks}.block.2", GROUP_NORM),
        Pair(f"{block}/expand", f"{blocks}.block.3", LINEAR),
        Pair(f"{block}/reduce", f"{blocks}.block.5", LINEAR),
    )


_CONVNEXT: Table = tuple(pair for stage in range(1, 5) for pair in _stage(stage))


def from_torchvision_convnext(state: Mapping[str, Any]) -> Imported:
    """The backbone in the weights of a torchvision ConvNeXt classifier; its ``classifier`` is dropped.

    The norms of the maps that leave the backbone, which a classifier has not, are those of a fresh one.  Names that are
    no ConvNeXt's stay in ``unmapped``, for the merge to list.
    """
    state = plain_state(state)
    dropped = tuple(name for name in state if name.startswith("classifier."))
    variables = from_state(_CONVNEXT, {name: value for name, value in state.items() if name not in dropped})
    backbone = variables["params"].get("backbone", {})
    for stage in range(1, 5):
        norm = backbone.get(f"stage{stage}_0", {}).get("norm")
        if norm is not None:
            backbone[f"out{stage + 1}"] = {"scale": np.ones_like(norm["scale"]), "bias": np.zeros_like(norm["bias"])}
    return Imported(variables, dropped=dropped, within="backbone")
