"""The classes of a detector's last layers: how many there are, and a choice among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxdet.checkpoints.tree import Array


@dataclass(frozen=True)
class ClassOutputs:
    """A last layer whose output rows are ``[groups, classes, size]``, flattened."""

    module: str
    groups: int = 1  #: anchors of a cell
    size: int = 1  #: numbers for each class: 4 where these are boxes
    background: bool = False  #: whether the row of label 0 goes on, as the last one


def count_classes(state: Mapping[str, Array], outputs: Sequence[ClassOutputs]) -> int:
    """Classes with label 0; ValueError if the layers disagree, or have none."""
    counts = {
        name: np.atleast_1d(state[name]).shape[0] / (layer.groups * layer.size)
        for layer in outputs
        for name in _names(layer)
        if name in state
    }
    # Fractions are possible where a layer is not what it is taken for.
    found = set(counts.values())
    if len(found) != 1 or min(found) < 1 or min(found) % 1:
        raise ValueError(f"the outputs disagree on the number of classes: {counts}")
    return int(found.pop())


def select_classes(
    state: Mapping[str, Array], outputs: Sequence[ClassOutputs], classes: int, labels: Sequence[int]
) -> dict[str, Array]:
    """The state with the rows of ``labels`` alone, in that order; ``classes`` is their number there."""
    selected = dict(state)
    for layer in outputs:
        # Background moves from the first row to the last.
        order = np.array([*labels, 0] if layer.background else labels, int)
        # The numbers of the rows in their own shape, so that a choice of classes is one index.
        rows = np.arange(layer.groups * classes * layer.size).reshape(layer.groups, classes, layer.size)
        for name in _names(layer):
            if name in state:
                selected[name] = np.atleast_1d(state[name])[rows[:, order].reshape(-1)]
    return selected


def _names(layer: ClassOutputs) -> tuple[str, str]:
    return f"{layer.module}.weight", f"{layer.module}.bias"
