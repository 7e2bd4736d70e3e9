"""Parts of a model that start as copies of others, where the weights know these alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdet.checkpoints.tree import Variables, flatten, unflatten


def with_copies(
    here: Mapping[str, Any], there: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> tuple[Variables, tuple[str, ...]]:
    """Weights in which parts that they lack are copies of parts that they have.

    Args:
        here: the model's variables, or their shapes.
        there: the weights.
        pairs: a part of the model and the part that it copies, both by their place, as ``masks/refine_box`` and
            ``heads_0``.  A part of which the weights have anything is theirs, and nothing is copied.

    Returns:
        The weights, and the names, as ``params/masks/refine_mask/head/link/kernel``, of what has to start afresh since
        the part that is copied is without it.

    Raises:
        ValueError: the weights have nothing of either part.
    """
    ours, result, afresh = flatten(here), dict(flatten(there)), []
    for to, source in pairs:
        target, model = tuple(to.split("/")), tuple(source.split("/"))
        if any(path[1 : 1 + len(target)] == target for path in result):
            continue
        if not any(path[1 : 1 + len(model)] == model for path in result):
            raise ValueError(f"{to} is to start as a copy of {source}, and there is neither of them among the weights")
        # The first word of a path is the collection.
        for path in (path for path in ours if path[1 : 1 + len(target)] == target):
            origin = (path[0], *model, *path[1 + len(target) :])
            if origin in result:
                result[path] = result[origin]
            else:
                afresh.append("/".join(path))
    return unflatten(result), tuple(afresh)
