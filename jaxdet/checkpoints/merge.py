"""Weights from elsewhere into a model's own variables.

Every leaf on both sides must be accounted for, so that no layer keeps its random weights unnoticed.  One error lists
everything that does not fit.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from jaxdet.checkpoints.tree import Variables, flatten, unflatten

#: The leaves whose shape or meaning depends on the list of classes.
_CLASS_DEPENDENT = (
    r"/(heads_\d+|refine_box|refine_mask)/head/(logits|deltas)/",
    r"/mask_scores/head/iou/",
    r"/dense/head/logits/",
    r"/pixel_classes/logits/",
)

#: The first level above the backbone's last, whose shape says which map it is made from.
_FIRST_OF_TOP = re.compile(r"/neck/top/conv6/kernel$")

#: The first convolution of a block in the third stage of a ResNet.
_THIRD_STAGE = re.compile(r"/backbone/layer3_(\d+)/conv1/")

#: Depths of ResNets by the blocks of the third stage, and whether these are bottlenecks.
_RESNETS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}

#: Settings that give a model the normalisations of some weights, by what is in the names of these.
_NORMS = {"/neck/lateral3_norm/": "model.neck.norm=batch", "/dense/head/class_norm1/": "model.dense.head.groups=32"}


class Misfit(ValueError):
    """Weights and model do not fit each other; the message lists everything that does not."""

    def __init__(self, message: str, lacking: Iterable[str] = ()) -> None:
        super().__init__(message)
        #: a pattern for ``run.init_skip``: of the part that the weights lack if that is all that is wrong
        self.pattern = _part(lacking) or "^params/neck/"


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, in names such as ``params/backbone/conv1/kernel``."""

    loaded: tuple[str, ...]  #: took the new value
    kept: tuple[str, ...]  #: skipped by a pattern, kept the model's own value
    dropped: tuple[str, ...]  #: skipped by a pattern, and the model has no such name
    outside: tuple[str, ...] = ()  #: outside the part of the model to fill, kept the model's own value

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
    matched: Collection[str] = (),
    within: str = "",
) -> tuple[Variables, MergeReport]:
    """Put the values of ``there`` into the variables ``here``.

    Args:
        here: the model's variables, or their shapes if no value of them is to be kept.
        there: the weights to load.
        skip: regular expressions searched in names such as ``params/neck/lateral2/bias``; what one matches is
            neither loaded nor missed.
        new_classes: skip the leaves that depend on the classes too, for fine-tuning on other classes.
        matched: names of such leaves that are loaded all the same, since their classes are those of the model.
        within: the part of the model that ``there`` must fill, such as ``backbone``; the rest keeps its values.
            Empty: the whole model.

    Returns:
        The merged variables, of which loaded leaves are float32 NumPy arrays and kept leaves are as they were, and a
        report, whose text is for whoever asked for the merge.

    Raises:
        Misfit: there are names on one side only, wrong shapes or types, or patterns that match nothing.
    """
    ours, theirs = _named(here), _named(there)
    skipped = {
        name
        for name in {*ours, *theirs}
        if is_skipped(name, skip) or (new_classes and depends_on_classes(name) and name not in matched)
    }
    outside = {name for name in ours if not _is_within(name, within)}
    loaded = [name for name in ours if name in theirs and name not in skipped | outside]
    misfits = {name: text for name in loaded if (text := _misfit(name, ours[name], theirs[name]))}
    lacking = set(ours) - set(theirs) - skipped - outside
    problems = [
        *_listed("only here (no value for them)", lacking),
        *_listed("only there (no place for them)", set(theirs) - set(ours) - skipped),
        *_listed(f"there, but outside {within!r}", set(theirs) & outside - skipped),
        *_listed("do not fit", misfits.values()),
        *_listed("patterns that match nothing", (p for p in skip if not any(re.search(p, n) for n in skipped))),
    ]
    if problems:
        raise Misfit(
            "the weights do not fit the model\n" + "\n".join(problems) + _advice(misfits, ours, theirs),
            () if len(problems) > 1 + len(lacking) else lacking,
        )
    if skip and not loaded:
        raise Misfit(f"the patterns to skip ({', '.join(skip)}) leave nothing of the weights to load")
    merged = {name: np.asarray(theirs[name], dtype=np.float32) for name in loaded}
    kept = tuple(name for name in ours if name not in merged and name not in outside)
    dropped = tuple(sorted(name for name in skipped if name not in ours))
    tree = unflatten({tuple(name.split("/")): merged.get(name, value) for name, value in ours.items()})
    return tree, MergeReport(tuple(loaded), kept, dropped, tuple(name for name in ours if name in outside))


def depends_on_classes(name: str) -> bool:
    """Whether shape or meaning of a leaf depends on the list of classes."""
    return any(re.search(pattern, name) for pattern in _CLASS_DEPENDENT)


def is_skipped(name: str, skip: Sequence[str]) -> bool:
    """Whether one of these regular expressions is found in the name of a leaf."""
    return any(re.search(pattern, name) for pattern in skip)


def _named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by names such as ``params/backbone/conv1/kernel``."""
    return {"/".join(path): value for path, value in flatten(variables).items()}


def _part(names: Iterable[str]) -> str | None:
    """A pattern of the part that these names share: of ``params/backbone/layer4_0/..`` ``/backbone/layer4``."""
    paths = sorted(name.partition("/")[2] for name in names)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(paths[0], paths[-1], strict=False)) if paths else ()
    first, _, second = "".join(letter for letter, _ in same).partition("/")
    return f"/{first}/{second.partition('/')[0].rstrip('_')}" if second else None


def _is_within(name: str, part: str) -> bool:
    """Whether a leaf is in the part of the model; the first word of its name is the collection and does not count."""
    return not part or name.partition("/")[2].startswith(part.rstrip("/") + "/")


def _misfit(name: str, ours: Any, theirs: Any) -> str | None:
    """What is wrong with a pair of leaves; None if the one can take the place of the other."""
    if tuple(ours.shape) != tuple(theirs.shape):
        return f"{name}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} there"
    # Kind "V" is that of bfloat16 and other types of ml_dtypes, of which only those that cast to float32 pass.
    if not np.can_cast(theirs.dtype, np.float32, "same_kind") or np.dtype(theirs.dtype).kind not in "fV":
        return f"{name}: {theirs.dtype} there, expected floating point"
    return None


def _listed(title: str, names: Any) -> list[str]:
    """A heading with a count and a line for each name; nothing without names."""
    lines = [f"    {name}" for name in sorted(names)]
    return [f"  {title}: {len(lines)}", *lines] if lines else []


def _advice(misfits: Iterable[str], ours: Collection[str], theirs: Collection[str]) -> str:
    """What mends it, where that is known, from the names of what does not fit and of all arrays on both sides."""
    homeless = set(theirs) - set(ours)
    hints = [hint for name, hint in _NORMS.items() if any(name in path for path in homeless)]
    if hints:
        return f"\nthe weights have normalisations that the model has not: set {' '.join(hints)}"
    here, there = _resnet_depth(ours), _resnet_depth(theirs)
    if here and there and here != there:
        return (
            f"\nthe weights are of a ResNet-{there}, and the model has a ResNet-{here}: take others, or set "
            f"'*backbone.depth={there}'"
        )
    if not any(_FIRST_OF_TOP.search(name) for name in misfits):
        return ""
    return (
        "\nP6 is made from another map there than here: for torchvision's RetinaNet set "
        "model.neck.top.source=pyramid model.neck.top.relu=true, for mmdetection's model.neck.top.source=backbone "
        "model.neck.top.relu=false"
    )


def _resnet_depth(names: Collection[str]) -> int | None:
    """The depth of the ResNet with these arrays, told by the blocks of its third stage; None if it has none."""
    blocks = {match[1] for name in names if (match := _THIRD_STAGE.search(name))}
    bottleneck = any("/backbone/layer3_0/conv3/" in name for name in names)
    return _RESNETS.get((len(blocks), bottleneck))
