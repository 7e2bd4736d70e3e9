"""What each kind of error costs: the AP50 that a model would gain without it (TIDE's dAP, section 2.3 of the paper)."""

import numpy as np
from numpy.typing import NDArray

from jaxdet.report.curves import precision_at_recalls
from jaxdet.report.judge import CLASSIFICATION, ERRORS, IGNORED, LOCALIZATION, RIGHT, Judged


def ap50(judged: Judged) -> float:
    """COCO's AP at an IoU of 0.5, as `evaluation.score` has it; -1 without objects."""
    counts = judged.kind != IGNORED
    return _mean_ap(judged, judged.score[counts], judged.label[counts], judged.kind[counts] == RIGHT, judged.objects)


def prices(judged: Judged) -> dict[str, float]:
    """AP50 gained if one kind of error were put right: TIDE's six kinds, and all wrong detections, all unfound objects.

    A detection with the wrong class or box gets the right one, if it is the best of these of an object that is not
    found otherwise; all others, and the other kinds of wrong detections, are taken away; a missed object no longer
    counts.  The prices do not add up to the whole: errors hide behind one another.
    """
    base = ap50(judged)
    fixed = {name: _without(judged, kind) for name, kind in ERRORS.items()}
    counts, right = judged.kind != IGNORED, judged.kind == RIGHT
    plain = judged.score[counts], judged.label[counts], right[counts]
    missed = ~judged.crowd & (judged.reached_at < 0)
    lost = np.bincount(judged.object_label[missed], minlength=judged.classes)
    fixed["missed"] = _mean_ap(judged, *plain, judged.objects - lost)
    fixed["false positives"] = _mean_ap(judged, judged.score[right], judged.label[right], right[right], judged.objects)
    hits = np.bincount(judged.label[right], minlength=judged.classes)
    fixed["false negatives"] = _mean_ap(judged, *plain, hits)
    return {name: value - base if base >= 0 else -1.0 for name, value in fixed.items()}


def _without(judged: Judged, kind: int) -> float:
    """AP50 after the errors of a kind are put right."""
    wrong = judged.kind == kind
    keep, right, label = (judged.kind != IGNORED) & ~wrong, judged.kind == RIGHT, judged.label.copy()
    if kind in (CLASSIFICATION, LOCALIZATION):
        rows = np.flatnonzero(np.isin(judged.kind, (CLASSIFICATION, LOCALIZATION)))
        rows = rows[np.argsort(-judged.score[rows], kind="stable")]
        rows = rows[judged.found_at[judged.object[rows]] < 0]
        _, best = np.unique(judged.object[rows], return_index=True)  # the first of each object
        mended = rows[best][judged.kind[rows[best]] == kind]
        keep[mended] = right[mended] = True
        label[mended] = judged.object_label[judged.object[mended]]
    return _mean_ap(judged, judged.score[keep], label[keep], right[keep], judged.objects)


def _mean_ap(
    judged: Judged,
    score: NDArray[np.float64],
    label: NDArray[np.int64],
    right: NDArray[np.bool_],
    objects: NDArray[np.int64],
) -> float:
    """Mean over the classes that have objects; one that has none left counts 0 if it is still detected, as in TIDE."""
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(judged.classes + 1))
    values: list[float] = []
    for k in np.flatnonzero(judged.objects):
        rows = order[ends[k] : ends[k + 1]]
        if objects[k]:
            values.append(precision_at_recalls(score[rows], right[rows], int(objects[k])).mean().item())
        elif len(rows):
            values.append(0.0)
    return float(np.mean(values)) if values else -1.0
