"""Weights from elsewhere into a model's own variables: everything fits, or the error lists everything that does not."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdet.checkpoints.tree import Variables, flatten, unflatten

CLASS_DEPENDENT = (r"/heads_\d+/head/(logits|deltas)/", r"/mask_scores/head/iou/", r"/dense/head/logits/")
"""The leaves whose shape or meaning depends on the list of classes."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, in names such as ``params/backbone/conv1/kernel``."""

    loaded: tuple[str, ...]  #: taken from there
    kept: tuple[str, ...]  #: skipped by a pattern: the value here stays
    dropped: tuple[str, ...]  #: skipped by a pattern: a value there without a place here
    outside: tuple[str, ...] = ()  #: outside the part of the model that was to be filled: the value here stays

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} arrays loaded, {len(self.kept)} kept, {len(self.dropped)} dropped"]
        if self.outside:
            lines += [f"  {len(self.outside)} arrays lie in parts of the model that these weights do not cover"]
        lines += [f"  kept its own value: {name}" for name in self.kept]
        lines += [f"  not taken: {name}" for name in self.dropped]
        return "\n".join(lines)


def merge(
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    skip: Sequence[str] = (),
    *,
    new_classes: bool = False,
    within: str = "",
) -> tuple[Variables, MergeReport]:
    """The variables ``here`` with the values of ``there``.

    A pattern in ``skip`` is a regular expression searched in names such as ``params/neck/lateral2/bias``; what it
    matches is neither loaded nor missed.  ``new_classes`` skips the leaves that depend on the classes, for
    fine-tuning on others; show ``str(report)`` to whoever asked for that.  ``within``, as ``backbone``, names the
    part of the model that ``there`` must fill; the rest of the model keeps its values.

    Loaded leaves are float32 NumPy arrays; kept leaves stay as they are.  ValueError lists names only here, names
    only there, wrong shapes and types, and patterns of ``skip`` that match nothing.
    """
    ours, theirs = _named(here), _named(there)
    patterns = [re.compile(pattern) for pattern in (*skip, *(CLASS_DEPENDENT if new_classes else ()))]
    skipped = {name for name in {*ours, *theirs} if any(p.search(name) for p in patterns)}
    outside = {name for name in ours if not _is_within(name, within)}
    loaded = [name for name in ours if name in theirs and name not in skipped | outside]
    problems = [
        *_listed("only here (no value for them)", set(ours) - set(theirs) - skipped - outside),
        *_listed("only there (no place for them)", set(theirs) - set(ours) - skipped),
        *_listed(f"there, but outside {within!r}", set(theirs) & outside - skipped),
        *_listed("do not fit", filter(None, (_misfit(name, ours[name], theirs[name]) for name in loaded))),
        *_listed("patterns that match nothing", (p for p in skip if not any(re.search(p, n) for n in skipped))),
    ]
    if problems:
        raise ValueError("the weights do not fit the model\n" + "\n".join(problems) + _advice(new_classes))
    merged = {name: np.asarray(theirs[name], dtype=np.float32) for name in loaded}
    kept = tuple(name for name in ours if name not in merged and name not in outside)
    dropped = tuple(sorted(name for name in skipped if name not in ours))
    tree = unflatten({tuple(name.split("/")): merged.get(name, value) for name, value in ours.items()})
    return tree, MergeReport(tuple(loaded), kept, dropped, tuple(name for name in ours if name in outside))


def _named(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {"/".join(path): value for path, value in flatten(variables).items()}


def _is_within(name: str, part: str) -> bool:
    return not part or name.partition("/")[2].startswith(part.rstrip("/") + "/")


def _misfit(name: str, ours: Any, theirs: Any) -> str | None:
    if tuple(ours.shape) != tuple(theirs.shape):
        return f"{name}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} there"
    if not np.can_cast(theirs.dtype, np.float32, "same_kind") or np.dtype(theirs.dtype).kind not in "fV":
        return f"{name}: {theirs.dtype} there, expected floating point"
    return None


def _listed(title: str, names: Any) -> list[str]:
    lines = [f"    {name}" for name in sorted(names)]
    return [f"  {title}: {len(lines)}", *lines] if lines else []


def _advice(new_classes: bool) -> str:
    fix = "\nIf a part is meant to differ, skip it by a pattern, as skip=('^params/neck/',)"
    return fix if new_classes else fix + "; for other classes, set new_classes=True"
