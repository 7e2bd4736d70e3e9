"""Kinds of errors: each of TIDE's by a case made for it, and a literal loop over its authors' rules."""

from typing import Any

import numpy as np
import pytest

from benchmarks.experiments.report_speed import made
from jaxdet.evaluation.score import Kind, prepare, score
from jaxdet.report.judge import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    IGNORED,
    LOCALIZATION,
    RIGHT,
    judge,
    judge_image,
)
from jaxdet.report.price import ap50
from tests.evaluation.test_coco_eval import found, truth_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def one(box: tuple[float, ...], category: int = 3, confidence: float = 0.9) -> dict[str, Any]:
    return {"image_id": 7, "category_id": category, "bbox": list(box), "score": confidence}


@pytest.mark.parametrize(
    ("result", "kind", "about"),
    [
        (one((0, 0, 40, 20)), RIGHT, 0),  # IoU 0.5 is enough
        (one((0, 0, 40, 19)), LOCALIZATION, 0),
        (one((0, 0, 40, 4)), LOCALIZATION, 0),  # IoU 0.1
        (one((0, 0, 40, 3.9)), BACKGROUND, -1),
        (one((0, 0, 40, 30), 90), CLASSIFICATION, 0),
        (one((0, 0, 40, 10), 90), BOTH, 0),
        (one((100, 80, 10, 10)), BACKGROUND, -1),
        (one((0, 0, 0, 0)), BACKGROUND, -1),
    ],
)
def test_each_kind(result: dict[str, Any], kind: int, about: int) -> None:
    judged = judge(prepare(truth_of((7, 3, 0, 0, 40)), masks=False), [result], "bbox", limit=100)
    assert judged.kind.tolist() == [kind]
    assert judged.object.tolist() == [about]
    assert judged.reached_at.tolist() == [0.9 if kind in (RIGHT, CLASSIFICATION, LOCALIZATION) else -1]
    assert judged.found_at.tolist() == [0.9 if kind == RIGHT else -1]


def test_the_better_of_two_finds_the_object_and_the_other_is_a_duplicate() -> None:
    truth = prepare(truth_of((7, 3, 0, 0, 40)), masks=False)
    results = [one((0, 0, 40, 40), confidence=0.3), one((0, 0, 40, 30), confidence=0.6)]
    assert judge(truth, results, "bbox", limit=100).kind.tolist() == [DUPLICATE, RIGHT]
    # Beyond the limit nothing counts.
    assert judge(truth, results, "bbox", limit=1).kind.tolist() == [IGNORED, RIGHT]


def test_crowd_regions_ask_for_nothing_and_cost_nothing() -> None:
    whole = truth_of((7, 3, 0, 0, 80), (7, 3, 0, 0, 20))
    whole["annotations"][0]["iscrowd"] = 1
    results = [one((40, 40, 20, 20)), one((0, 0, 20, 20)), one((40, 40, 20, 20), 90)]
    judged = judge(prepare(whole, masks=False), results, "bbox", limit=100)
    assert judged.kind.tolist() == [IGNORED, RIGHT, BACKGROUND]
    assert judged.objects.tolist() == [1, 0]


def test_masks_are_judged_by_masks() -> None:
    truth = prepare(truth_of((7, 3, 0, 0, 40)), masks=True)
    result = found(7, 3, 0, 0, 40) | {"segmentation": found(7, 3, 0, 0, 20)["segmentation"]}  # IoU 0.25
    assert judge(truth, [result], "bbox", limit=100).kind.tolist() == [RIGHT]
    assert judge(truth, [result], "segm", limit=100).kind.tolist() == [LOCALIZATION]


def test_nothing_found_and_nothing_there() -> None:
    judged = judge(prepare(truth_of((7, 3, 0, 0, 40)), masks=False), [], "bbox", limit=100)
    assert (judged.kind.size, judged.reached_at.tolist(), ap50(judged)) == (0, [-1], 0)
    judged = judge(prepare(truth_of(), masks=False), [one((0, 0, 9, 9))], "bbox", limit=100)
    assert judged.kind.tolist() == [BACKGROUND]
    assert ap50(judged) == -1


def literal(overlaps: Any, same: Any) -> list[int]:
    """TIDE's code, read aloud: `TIDERun._eval_image` and `TIDEExample._run`, without crowd regions."""
    used: set[int] = set()
    right: dict[int, int] = {}
    for d in range(len(overlaps)):
        best, which = 0.0, -1
        for g in range(len(overlaps[0])):
            if same[d][g] and g not in used and overlaps[d][g] > best:
                best, which = overlaps[d][g], g
        if best >= 0.5:
            used.add(which)
            right[d] = which
    kinds = []
    for d, (row, agree) in enumerate(zip(overlaps, same, strict=True)):
        own = max([o for o, s in zip(row, agree, strict=True) if s], default=0)
        other = max([o for o, s in zip(row, agree, strict=True) if not s], default=0)
        if d in right:
            kinds.append(RIGHT)
        elif 0.1 <= own < 0.5:
            kinds.append(LOCALIZATION)
        elif other >= 0.5:
            kinds.append(CLASSIFICATION)
        elif own >= 0.5:
            kinds.append(DUPLICATE)
        else:
            kinds.append(BACKGROUND if max(own, other) <= 0.1 else BOTH)
    return kinds


def test_against_a_literal_loop() -> None:
    draw = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        shape = draw.integers(1, 9), draw.integers(1, 5)
        overlaps, same = draw.random(shape) ** 1.5, draw.random(shape) < 0.5
        kinds, _ = judge_image(overlaps, same, np.zeros(shape[1], bool))
        assert kinds.tolist() == literal(overlaps.tolist(), same.tolist())
        seen |= set(kinds.tolist())
    assert seen == set(range(6))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_whole_is_what_pycocotools_says(kind: Kind) -> None:
    truth, results = made(25, 6, 30, classes=3, seed=2)
    expected = score(truth, results).metrics[f"{kind}/AP50"]
    assert ap50(judge(prepare(truth, masks=True), results, kind, limit=100)) == pytest.approx(expected, abs=1e-12)


def test_the_order_of_results_and_ids_that_start_anywhere_change_nothing() -> None:
    truth, results = made(6, 5, 12, classes=3, masks=False)
    straight = judge(prepare(truth, masks=False), results, "bbox", limit=100)
    draw = np.random.default_rng(1)
    order = draw.permutation(len(results))
    for item in (*truth["images"], *truth["categories"]):
        item["id"] += 40
    for item in (*truth["annotations"], *results):
        item["image_id"] += 40
        item["category_id"] += 40
    mixed = judge(prepare(truth, masks=False), [results[i] for i in order], "bbox", limit=100)
    same = {int(order[p]): k for p, k in zip(mixed.place, mixed.kind.tolist(), strict=True)}
    assert [same[p] for p in straight.place.tolist()] == straight.kind.tolist()
