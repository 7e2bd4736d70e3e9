"""Weights whose classes are others than the model's, or in another order: outputs are matched by the classes' names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.checkpoints.merge import depends_on_classes
from jaxdet.checkpoints.tree import Array, Variables, flatten, unflatten

_SHOWN = 8  #: names that a message lists


@dataclass(frozen=True)
class ClassMatch:
    """Which class of the weights each class of a model is; None where the weights do not have it.

    A name that one side has twice matches nothing.
    """

    ours: tuple[str, ...]  #: the model's classes, by label
    theirs: tuple[str, ...]  #: those of the weights, by label

    @property
    def sources(self) -> tuple[int | None, ...]:
        """For each label of the model that of the weights."""
        if self.ours == self.theirs:
            return tuple(range(len(self.ours)))
        once = {name for name in self.ours if self.ours.count(name) == self.theirs.count(name) == 1}
        return tuple(self.theirs.index(name) if name in once else None for name in self.ours)

    @property
    def complete(self) -> bool:
        """Whether both have the same classes."""
        return len(self.ours) == len(self.theirs) and None not in self.sources

    @property
    def nothing(self) -> bool:
        """Whether they have no class in common."""
        return set(self.sources) == {None}

    def __str__(self) -> str:
        stay = [self.ours[i] for i, source in enumerate(self.sources) if source == i]
        moved = [f"{self.ours[i]} {j} -> {i}" for i, j in enumerate(self.sources) if j not in (None, i)]
        anew = [self.ours[i] for i, source in enumerate(self.sources) if source is None]
        left = [name for j, name in enumerate(self.theirs) if j not in self.sources]
        parts = {"as they were": stay, "moved to another label": moved, "started anew": anew, "not taken": left}
        return "classes by name: " + "; ".join(f"{len(v)} {k} ({_listed(v)})" for k, v in parts.items() if v)

    def refusal(self) -> str:
        """Say how the two differ."""
        alone = [self.ours[i] for i, source in enumerate(self.sources) if source is None]
        left = [name for j, name in enumerate(self.theirs) if j not in self.sources]
        return f"only in the data: {_listed(alone) or 'none'}; only in the weights: {_listed(left) or 'none'}"


def rearrange(here: Mapping[str, Any], there: Mapping[str, Any], match: ClassMatch) -> tuple[Variables, frozenset[str]]:
    """Give the outputs of ``there`` the classes of a model.

    Args:
        here: the model's variables; what belongs to a class that the weights do not have keeps the values of these.
        there: the weights.
        match: the classes of both.

    Returns:
        The weights in which every leaf that depends on classes and can be rearranged has the shape of ``here``, and
        the names of these leaves.
    """
    ours, result, done = flatten(here), dict(flatten(there)), set()
    for path, value in result.items():
        name = "/".join(path)
        if path not in ours or not depends_on_classes(name):
            continue
        # A dense head has logits for each anchor of a cell, and four deltas.
        deltas = ours.get(tuple("deltas" if part == "logits" else part for part in path)) if "dense" in path else None
        groups = 1 if deltas is None else deltas.shape[-1] // 4
        source = _source(name, ours[path].shape[-1:], value.shape[-1:], match, groups)
        if source is None or ours[path].shape[:-1] != value.shape[:-1]:
            continue
        kept: Array = np.asarray(ours[path], np.float32)
        # -1 reads the last one, which `where` then leaves out.
        result[path] = np.where(source >= 0, np.asarray(value)[..., source], kept).astype(value.dtype)
        done.add(name)
    return unflatten(result), frozenset(done)


def _source(
    name: str, ours: tuple[int, ...], theirs: tuple[int, ...], match: ClassMatch, groups: int
) -> NDArray[np.int64] | None:
    """For each place of a leaf's last axis here that of the axis there, or -1; None where the axis is another one."""
    before, after = len(match.theirs), len(match.ours)
    one_box = "/deltas/" in name and ours == theirs == (4,)
    one_mask = "/masks/" in name and ours == theirs == (1,) and max(before, after) > 1
    if one_box or one_mask:  # for all classes, and so it belongs to none of them
        return np.arange(*ours)
    # The background of a softmax is the last one and matches itself.
    dense = "/dense/" in name and theirs == (groups * (before + 1),)
    softmax = dense or bool(re.search(r"^params/(heads_\d+|masks/refine_box)/head/logits/", name))
    size = 4 if "/deltas/" in name else 1
    wanted = (groups * (after + softmax) * size, groups * (before + softmax) * size)
    if (*ours, *theirs) != wanted:
        return None
    classes = np.array([-1 if j is None else j for j in match.sources] + [before] * softmax)
    places = np.arange(theirs[0]).reshape(groups, before + softmax, size)
    return np.where(classes[None, :, None] < 0, -1, places[:, classes]).reshape(-1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
