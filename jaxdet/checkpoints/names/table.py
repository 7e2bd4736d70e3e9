"""Names and layouts of two code bases side by side: one table, read in both directions.

A ``Pair`` pairs a module path here with a module name there.  ``{x}`` in both stands for a number that is the same
on both sides.  The module's layout says which arrays it has.  A new kind of model adds pairs, not code.
"""

import functools
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from jaxdet.checkpoints.names.layouts import Leaf
from jaxdet.checkpoints.tree import Array, Path, Variables, flatten, unflatten

_UNMAPPED = "unmapped"
"""Collection in which arrays without a pair travel under their torch name, so that a merge must name them."""


@dataclass(frozen=True)
class Pair:
    """A module here, the same module there, and the arrays that it may have."""

    ours: str
    theirs: str
    leaves: tuple[Leaf, ...]


Table: TypeAlias = tuple[Pair, ...]


@dataclass(frozen=True)
class Imported:
    """Weights of another code base as variables of ours."""

    variables: Variables
    category_ids: tuple[int, ...] = ()  #: of labels 0, 1, ..; empty where the file does not say or has no classes
    category_names: tuple[str, ...] = ()  #: likewise
    dropped: tuple[str, ...] = ()  #: names there that have no use here, left out by rule
    within: str = ""  #: the part of a model that these weights fill, as ``merge`` takes it; empty: all of it
    settings: tuple[str, ...] = ()  #: overrides of a model that these weights were trained with
    #: those without which they are the weights of another network: another place of strides, other colours
    required: tuple[str, ...] = ()


def either(ours: str, theirs: Sequence[str], leaves: tuple[Leaf, ...]) -> Table:
    """Pairs for a module that has changed its name between versions of the other code base."""
    return tuple(Pair(ours, name, leaves) for name in theirs)


# What torch's wrappers for several devices put before every name, usually once.
_PREFIX = re.compile(r"^((?:module\.)*).*", re.DOTALL)


def from_state(table: Table, state: Mapping[str, Any]) -> Variables:
    """Variables (float32, our layouts) of a torch state dict in torch layout.

    Accepts the spellings that checkpoints come in: the arrays inside ``state_dict`` or ``model``, a ``module.``
    before every name, ``num_batches_tracked`` counters.  A name without a pair is kept in the collection
    ``unmapped``.  ValueError: a wrong number of axes, an entry that is no array, two entries for one leaf.
    """
    flat: dict[Path, Array] = {}
    for name, value in plain_state(state).items():
        found = _find(table, name)
        path: Path = found[0] if found else (_UNMAPPED, name)
        array = _converted(found[1], name, value) if found else value
        # Two spellings of one name, say of two versions: which of them is right nobody knows.
        if path in flat:
            raise ValueError(f"{name} is a second value for {'/'.join(path)}: the state dict holds two spellings of it")
        flat[path] = np.asarray(array, np.float32, order="C")
    return unflatten(flat) if flat else {"params": {}}


def to_state(table: Table, variables: Mapping[str, Any]) -> dict[str, Array]:
    """The torch state dict (float32, torch layouts) of variables.  ValueError lists the leaves without a pair."""
    state: dict[str, Array] = {}
    unknown = []
    for (collection, *path), value in flatten(variables).items():
        if collection == _UNMAPPED:
            state[path[0]] = np.asarray(value)
            continue
        found = _find_path(table, tuple(path))
        if found is None or found[1].collection != collection:
            unknown.append("/".join((collection, *path)))
            continue
        array = found[1].layout.to_torch(np.asarray(value, dtype=np.float32))
        state[found[0]] = np.asarray(array, order="C")
    if unknown:
        raise ValueError(f"no torch name for {', '.join(unknown)}: add a pair to the table")
    return state


def their_name(table: Table, path: Path) -> str:
    """The torch name of a leaf, by its path below the collection, as ``("rpn", "head", "conv", "kernel")``."""
    found = _find_path(table, path)
    if found is None:
        raise ValueError(f"no torch name for {'/'.join(path)}: add a pair to the table")
    return found[0]


def plain_state(state: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of a state dict without wrappers, ``module.`` prefixes and batch counters."""
    seen = {id(state)}  # a pickle may hold itself
    while inner := next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), Mapping)), None):
        if id(inner) in seen:
            raise ValueError("a state dict that holds itself")
        seen.add(id(inner))
        state = inner
    bad = [name for name, value in state.items() if not isinstance(name, str) or not hasattr(value, "shape")]
    if bad:
        raise ValueError(
            f"not arrays: {', '.join(map(reprlib.repr, bad[:8]))}. A state dict maps names to arrays; "
            "pass the part of the checkpoint that does (often checkpoint['state_dict'])"
        )
    # The shortest prefix of all: a wrapper wraps every name, and a module may be called "module" itself.
    wrapped = min((len(_PREFIX.sub(r"\1", name)) for name in state), default=0)
    state = {name[wrapped:]: value for name, value in state.items()}
    # How many batches BatchNorm has seen: only its momentum schedule could use it.
    return {name: np.asarray(v) for name, v in state.items() if not name.endswith("num_batches_tracked")}


def _converted(leaf: Leaf, name: str, value: Array) -> Array:
    if value.ndim != leaf.layout.torch_ndim:
        raise ValueError(f"{name} has shape {value.shape}, expected {leaf.layout.torch_ndim} axes in torch layout")
    try:
        return leaf.layout.from_torch(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _find(table: Table, name: str) -> tuple[Path, Leaf] | None:
    """Path here (with its collection) and leaf of a torch name."""
    module, _, suffix = name.rpartition(".")
    for pair in table:
        leaf = next((leaf for leaf in pair.leaves if leaf.theirs == suffix), None)
        ours = _translate(pair.theirs, pair.ours, module) if leaf else None
        if leaf is not None and ours is not None:
            return (leaf.collection, *ours.split("/"), leaf.ours), leaf
    return None


def _find_path(table: Table, path: Path) -> tuple[str, Leaf] | None:
    """Torch name and leaf of a path here (without its collection)."""
    for pair in table:
        leaf = next((leaf for leaf in pair.leaves if leaf.ours == path[-1]), None)
        theirs = _translate(pair.ours, pair.theirs, "/".join(path[:-1])) if leaf else None
        if leaf is not None and theirs is not None:
            return f"{theirs}.{leaf.theirs}", leaf
    return None


def _translate(source: str, target: str, name: str) -> str | None:
    match = _regex(source).fullmatch(name)
    return target.format(**match.groupdict()) if match else None


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    # "layer{stage}" becomes a group named "stage" of digits, to be filled into the other side.
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[0-9]+)", re.escape(pattern)))
