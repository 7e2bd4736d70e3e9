"""Which detection finds which object, and what is wrong with those that find none.

The kinds of errors are TIDE's (Bolya et al. 2020, section 2.2, https://arxiv.org/abs/2008.08115), in the order in which
its authors' code asks for them.  A detection finds an object at an IoU of 0.5, by the rules of pycocotools.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.evaluation.results import Result
from jaxdet.evaluation.score import Kind, Prepared, of_kind

RIGHT, CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
"""What a detection is.  Those over crowd regions, and those beyond the limit of detections, are ignored."""

ERRORS = {
    "classification": CLASSIFICATION,
    "localization": LOCALIZATION,
    "both": BOTH,
    "duplicate": DUPLICATE,
    "background": BACKGROUND,
}
"""Names of the errors that detections make; the sixth kind, ``missed``, is made by none."""

FOUND = 0.5  #: IoU from which on an object is found
NEAR = 0.1  #: IoU above which a detection means an object, and not the background

_Bools = NDArray[np.bool_]
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """All detections ``[D]`` and objects ``[G]`` of a data set, sorted by image, for boxes or for masks.

    Images are positions in ascending order of their ids, labels those of the categories.
    """

    classes: int  #: K
    place: _Ints  #: ``[D]`` position among the results
    image: _Ints  #: ``[D]``
    label: _Ints  #: ``[D]`` 0..K-1
    score: _Floats  #: ``[D]``
    kind: _Ints  #: ``[D]`` `RIGHT` ... `IGNORED`
    object: _Ints  #: ``[D]`` the object that it finds, or that its error is about; -1: none
    object_image: _Ints  #: ``[G]``
    object_label: _Ints  #: ``[G]``
    crowd: _Bools  #: ``[G]`` a crowd region, which does not count

    @property
    def found_at(self) -> _Floats:
        """``[G]`` score of the detection that finds each object, -1 for none."""
        return self._best(self.kind == RIGHT)

    @property
    def reached_at(self) -> _Floats:
        """``[G]`` best score of a detection that finds the object or would, with another class or box; -1 for none.

        An object is missed where this is -1: TIDE's missed objects are those that no other error accounts for.
        """
        return self._best(np.isin(self.kind, (RIGHT, CLASSIFICATION, LOCALIZATION)))

    @property
    def objects(self) -> _Ints:
        """``[K]`` number of objects of each class."""
        return np.bincount(self.object_label[~self.crowd], minlength=self.classes)

    def _best(self, which: _Bools) -> _Floats:
        best = np.full(len(self.object_label), -1.0)
        np.maximum.at(best, self.object[which], self.score[which])
        return best


def judge(truth: Prepared, results: Sequence[Result], kind: Kind, *, limit: int) -> Judged:
    """Judge the detections of a data set.

    Args:
        truth: as `evaluation.score.prepare` returns it.
        results: COCO results of these images and categories.
        kind: whether IoUs are those of boxes or of masks.
        limit: detections of a class in an image that count.
    """
    counted = of_kind(kind, results, truth)
    annotations = sorted(truth.json["annotations"], key=lambda each: int(each["image_id"]))
    image = _column(counted, "image_id")
    place = np.argsort(image, kind="stable")
    image, label = image[place], _column(counted, "category_id")[place]
    score = np.array([result["score"] for result in counted], np.float64)[place]
    object_image, object_label = _column(annotations, "image_id"), _column(annotations, "category_id")
    crowd = np.array([each["iscrowd"] for each in annotations], bool)
    kinds, objects = np.full(len(place), IGNORED), np.full(len(place), -1)
    starts = np.searchsorted(object_image, np.arange(len(truth.images) + 1))
    for number, (first, last) in enumerate(_runs(image, len(truth.images))):
        if first == last:
            continue
        begin, end = int(starts[number]), int(starts[number + 1])
        # Best first; equal scores stay in their order, as in pycocotools.
        rows = first + np.argsort(-score[first:last], kind="stable")
        rows = rows[_ranks(label[rows]) < limit]
        overlaps = _overlaps([counted[place[row]] for row in rows], annotations[begin:end], kind)
        same = label[rows][:, None] == object_label[None, begin:end]
        kinds[rows], about = judge_image(overlaps, same, crowd[begin:end])
        objects[rows] = np.where(about < 0, -1, about + begin)
    return Judged(len(truth.categories), place, image, label, score, kinds, objects, object_image, object_label, crowd)


def judge_image(overlaps: _Floats, same: _Bools, crowd: _Bools) -> tuple[_Ints, _Ints]:
    """Judge the detections of one image.

    Args:
        overlaps: ``[D, G]`` IoU of each detection, the best first, with each object; with a crowd region the share of
            the detection that lies in it.
        same: ``[D, G]`` whether the classes agree.
        crowd: ``[G]`` which are crowd regions.

    Returns:
        ``[D]`` what each detection is, and ``[D]`` the object that it is about, -1 for none.
    """
    number, objects = overlaps.shape
    if not objects:
        return np.full(number, BACKGROUND), np.full(number, -1)
    about, ignored = _matched(overlaps, same, crowd)
    own = np.where(same & ~crowd, overlaps, 0.0)
    other = np.where(~same & ~crowd, overlaps, 0.0)
    best_own, best_other = own.max(1), other.max(1)
    best = np.maximum(best_own, best_other)
    cases = [
        (ignored, IGNORED, np.full(number, -1)),
        (about >= 0, RIGHT, about),
        ((best_own >= NEAR) & (best_own < FOUND), LOCALIZATION, own.argmax(1)),
        (best_other >= FOUND, CLASSIFICATION, other.argmax(1)),
        # Near enough to an object of its class, and yet it did not find it: a better detection had done so.
        (best_own >= FOUND, DUPLICATE, own.argmax(1)),
        (best > NEAR, BOTH, other.argmax(1)),
    ]
    conditions = [condition for condition, _, _ in cases]
    kinds = np.select(conditions, [kind for _, kind, _ in cases], BACKGROUND)
    return kinds, np.select(conditions, [which for _, _, which in cases], -1)


def _matched(overlaps: _Floats, same: _Bools, crowd: _Bools) -> tuple[_Ints, _Bools]:
    """The object that each detection finds, ``[D]``, -1 for none; and whether it lies in a crowd region instead."""
    close = same & (overlaps >= FOUND)
    found, taken = np.full(len(overlaps), -1), crowd.copy()
    for row in np.flatnonzero((close & ~crowd).any(1)):
        free = np.flatnonzero(close[row] & ~taken)
        if free.size:
            # Of equally good ones pycocotools takes the last.
            found[row] = free[::-1][overlaps[row, free[::-1]].argmax()]
            taken[found[row]] = True
    return found, (found < 0) & (close & crowd).any(1)


def _overlaps(found: Sequence[Result], objects: Sequence[Mapping[str, Any]], kind: Kind) -> _Floats:
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    crowd = [each["iscrowd"] for each in objects]
    key = "bbox" if kind == "bbox" else "segmentation"
    shapes = [[each[key] for each in some] for some in (found, objects)]
    if kind == "segm":
        # What stands for "no mask" in a prepared ground truth is an uncompressed run.
        shapes = [[_compressed(shape) for shape in some] for some in shapes]
    else:
        shapes = [np.array(some, np.float64) for some in shapes]  # type: ignore[misc]
    return np.asarray(coco_mask.iou(*shapes, crowd), np.float64).reshape(len(found), len(objects))


def _compressed(mask: dict[str, Any]) -> dict[str, Any]:
    if isinstance(mask["counts"], list):
        packed: dict[str, Any] = coco_mask.frPyObjects(mask, *mask["size"])
        return packed
    return mask


def _column(entries: Sequence[Mapping[str, Any]], key: str) -> _Ints:
    """Numbers from 1 on, as positions from 0 on."""
    return np.array([each[key] for each in entries], np.int64) - 1


def _runs(image: _Ints, count: int) -> list[tuple[int, int]]:
    ends = np.searchsorted(image, np.arange(count + 1))
    return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))


def _ranks(labels: _Ints) -> _Ints:
    """How many of the same label stand before each."""
    order = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[order], labels[order])
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - firsts
    return ranks
