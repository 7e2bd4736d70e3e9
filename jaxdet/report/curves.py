"""What a ranking of detections is worth: precision over recall, the best threshold, and whether scores are true."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]

BINS = 10  #: of the reliability table, each a tenth wide


def precision_at_recalls(scores: _Floats, right: _Bools, objects: int) -> _Floats:
    """COCO's precision ``[101]`` at recalls 0, 0.01, ... 1: the best that is left at that recall or above.

    Args:
        scores: ``[D]`` of the detections that count; equal ones keep their order.
        right: ``[D]`` whether each finds an object.
        objects: number of objects, at least 1.
    """
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / objects, np.linspace(0, 1, 101))
    return np.append(envelope, 0.0)[np.minimum(at, len(hits))]


@dataclass(frozen=True)
class Threshold:
    """The score from which on detections should count for the best F1, and what they are worth then."""

    score: float
    f1: float
    precision: float
    recall: float


def best_threshold(scores: _Floats, right: _Bools, objects: int) -> Threshold | None:
    """The threshold with the largest F1, the highest of several; None without detections or objects."""
    if not len(scores) or not objects:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(right[order])
    # A threshold cannot separate equal scores: only the last of each counts.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    f1 = 2 * hits[last] / (last + 1 + objects)
    best = int(f1.argmax())
    number, hit = int(last[best]) + 1, int(hits[last[best]])
    return Threshold(float(ranked[last[best]]), float(f1[best]), hit / number, hit / objects)


@dataclass(frozen=True)
class Reliability:
    """How often detections of a score are right: of those with a score of 0.8, eight of ten should be."""

    count: list[int]  #: detections with a score in 0..0.1, 0.1..0.2, ...
    score: list[float]  #: their mean score, 0 where there are none
    precision: list[float]  #: the share of them that find an object, 0 where there are none
    error: float  #: expected calibration error: mean distance of the two, weighted by the counts


def reliability(scores: _Floats, right: _Bools) -> Reliability:
    """Reliability table and expected calibration error (Naeini et al. 2015, equation 3; of detections: Kueppers 2020).

    Args:
        scores: ``[D]``, 0 to 1.  A score on the border of two bins is in the upper one, 1 in the last.
        right: ``[D]``.
    """
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    each = np.maximum(count, 1)
    mean = np.bincount(bins, scores, minlength=BINS) / each
    precision = np.bincount(bins, right, minlength=BINS) / each
    error = float((count * np.abs(mean - precision)).sum() / max(int(count.sum()), 1))
    return Reliability(count.tolist(), mean.tolist(), precision.tolist(), error)
