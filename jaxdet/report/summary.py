"""All numbers of a run, as a dictionary for JSON and for the page."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdet.evaluation.results import Result
from jaxdet.evaluation.score import Kind, Prepared, Scores
from jaxdet.report.curves import best_threshold, precision_at_recalls, reliability
from jaxdet.report.judge import CLASSIFICATION, ERRORS, IGNORED, RIGHT, Judged
from jaxdet.report.price import ap50, prices


def summary(judged: Judged, scores: Scores, kind: Kind) -> dict[str, Any]:
    """The numbers of one kind, boxes or masks.

    Returns:
        ``AP50``; ``prices`` (`price.prices`); ``errors``, how many there are of each kind; ``best``, the threshold of
        the best F1 over all classes; ``confusions`` at this threshold (`confusions`); ``reliability``; ``precision``
        at 101 recalls, mean over the classes; ``classes``, for each its numbers and its own curve.
    """
    counts = judged.kind != IGNORED
    score, right = judged.score[counts], judged.kind[counts] == RIGHT
    best = best_threshold(score, right, int(judged.objects.sum()))
    rows = _classes(judged, scores, kind)
    curves = [row["precision"] for row in rows if row["precision"]]
    missed = int((~judged.crowd & (judged.reached_at < 0)).sum())
    return {
        "AP50": ap50(judged),
        "prices": prices(judged),
        "errors": {name: int((judged.kind == error).sum()) for name, error in ERRORS.items()} | {"missed": missed},
        "best": dataclasses.asdict(best) if best else None,
        "confusions": confusions(judged, best.score if best else 0.0),
        "reliability": dataclasses.asdict(reliability(score, right)),
        "precision": np.mean(curves, axis=0).round(4).tolist() if curves else [],
        "classes": rows,
    }


def _classes(judged: Judged, scores: Scores, kind: Kind) -> list[dict[str, Any]]:
    rows = []
    counts = judged.kind != IGNORED
    order = np.argsort(judged.label, kind="stable")
    ends = np.searchsorted(judged.label[order], np.arange(judged.classes + 1))
    for k, (name, objects) in enumerate(zip(scores.per_class, judged.objects.tolist(), strict=True)):
        mine = order[ends[k] : ends[k + 1]]
        mine = mine[counts[mine]]
        score, right = judged.score[mine], judged.kind[mine] == RIGHT
        best = best_threshold(score, right, objects)
        curve = precision_at_recalls(score, right, objects).round(4).tolist() if objects else []
        numbers = scores.per_class[name] | scores.by_size[name]
        row = {key.removeprefix(f"{kind}/"): value for key, value in numbers.items() if key.startswith(f"{kind}/")}
        rows.append({"name": name, "objects": objects, **row, "best": dataclasses.asdict(best) if best else None,
                     "precision": curve})  # fmt: skip
    return rows


def confusions(judged: Judged, threshold: float) -> list[tuple[int, int, int]]:
    """Which classes are taken for which, as the entries of a matrix that are not 0: (truth, prediction, count).

    A truth of K are detections without an object of their own, a prediction of K are objects that nothing found.  An
    object that is found counts for its class; one that is not, for the class of the best detection that fits it but for
    its class; so that rows sum to the objects, and columns to the detections, of each class.

    Args:
        judged: K classes.
        threshold: least score of detections that count.
    """
    nothing = judged.classes
    taken = np.full(len(judged.object_label), nothing)
    used = np.zeros(len(judged.kind), bool)
    shown = (judged.kind != IGNORED) & (judged.score >= threshold)
    ranked = np.argsort(-judged.score, kind="stable")
    for kind in (RIGHT, CLASSIFICATION):
        rows = ranked[(judged.kind == kind)[ranked] & shown[ranked]]
        rows = rows[taken[judged.object[rows]] == nothing]
        objects, first = np.unique(judged.object[rows], return_index=True)  # the best of each object
        taken[objects] = judged.label[rows[first]]
        used[rows[first]] = True
    pairs = Counter(zip(judged.object_label[~judged.crowd].tolist(), taken[~judged.crowd].tolist(), strict=True))
    pairs.update((nothing, label) for label in judged.label[shown & ~used].tolist())
    return [(truth, found, count) for (truth, found), count in sorted(pairs.items())]


def check_scores(results: Sequence[Result]) -> None:
    """Raise a ValueError if a score is no probability, which calibration and the page's threshold need."""
    for number, result in enumerate(results):
        if not 0 <= result["score"] <= 1:
            raise ValueError(f"results: expected every score from 0 to 1, got {result['score']} of detection {number}")


def counts_of(truth: Prepared) -> dict[str, int]:
    """Number of images and of objects without crowd regions."""
    annotations = truth.json["annotations"]
    return {"images": len(truth.images), "objects": sum(not each["iscrowd"] for each in annotations)}
