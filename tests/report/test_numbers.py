"""Curves, prices and confusions: cases small enough to count, and sums that must come out."""

from typing import Any

import numpy as np
import pytest

from benchmarks.experiments.report_speed import made
from jaxdet.evaluation.score import prepare, score
from jaxdet.report.curves import best_threshold, precision_at_recalls, reliability
from jaxdet.report.judge import IGNORED, RIGHT, Judged, judge
from jaxdet.report.price import prices
from jaxdet.report.summary import check_scores, confusions, summary
from tests.evaluation.test_coco_eval import truth_of
from tests.report.test_judge import one

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def judged(truth: dict[str, Any], results: list[dict[str, Any]]) -> Judged:
    return judge(prepare(truth, masks=False), results, "bbox", limit=100)


def test_precision_at_recalls() -> None:
    """Right, wrong, right of two objects: precision 1 up to recall 0.5, then 2/3."""
    curve = precision_at_recalls(np.array([0.1, 0.9, 0.5]), np.array([True, True, False]), 2)
    np.testing.assert_allclose(curve, [1.0] * 51 + [2 / 3] * 50)
    assert precision_at_recalls(np.zeros(0), np.zeros(0, bool), 3).tolist() == [0.0] * 101


def test_best_threshold_against_every_threshold() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        scores, right = draw.integers(0, 8, 12) / 8, draw.random(12) < 0.5
        objects = int(right.sum()) + 2
        found = {}
        for threshold in scores:
            shown = scores >= threshold
            found[float(threshold)] = 2 * right[shown].sum() / (shown.sum() + objects)
        best = best_threshold(scores, right, objects)
        assert best is not None
        assert best.f1 == pytest.approx(max(found.values()))
        assert found[best.score] == pytest.approx(best.f1)
        assert 2 * best.precision * best.recall == pytest.approx(best.f1 * (best.precision + best.recall))
    assert best_threshold(np.zeros(0), np.zeros(0, bool), 3) is None


def test_reliability() -> None:
    """Of four at 0.75 three are right; of one at 1 none: 4/5 x 0 + 1/5 x 1."""
    table = reliability(np.array([0.75, 0.75, 0.75, 0.75, 1.0]), np.array([True, True, True, False, False]))
    assert table.count == [0, 0, 0, 0, 0, 0, 0, 4, 0, 1]
    assert (table.score[7], table.precision[7]) == (0.75, 0.75)
    assert table.error == pytest.approx(0.2)
    assert reliability(np.zeros(0), np.zeros(0, bool)).error == 0


OBJECTS = truth_of((7, 3, 0, 0, 40), (7, 3, 60, 40, 40))
FIRST = one((0, 0, 40, 40), confidence=0.9)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (one((60, 40, 40, 40), 90, 0.8), "classification"),
        (one((60, 40, 40, 18), 3, 0.8), "localization"),
        (one((60, 40, 40, 18), 90, 0.95), None),  # both: of a class without objects, which does not count
        (one((100, 0, 9, 9), 3, 0.95), "background"),
        (one((0, 0, 40, 39), 3, 0.95), "duplicate"),
    ],
)
def test_each_error_has_its_price(wrong: dict[str, Any], name: str | None) -> None:
    """One of two objects is found; recall 0.5 at precision 1 is 51 of 101 points, behind a wrong one half of them.

    A second object whose class or box is put right is found at precision 1: 101 points.
    """
    found = prices(judged(OBJECTS, [FIRST, wrong]))
    part = 51 / 101
    expected = dict.fromkeys(("classification", "localization", "both", "duplicate", "background"), 0.0)
    if name in ("classification", "localization"):
        expected[name] = 1 - part
    elif name:
        expected[name] = part / 2 if name == "background" else 0.0
    for key, value in expected.items():
        assert found[key] == pytest.approx(value), key
    # The second object is missed unless the wrong detection is nearly it.
    missed = 0 if name in ("classification", "localization") else (part if name != "background" else 0.5 - part / 2)
    missed = 1 - part if name in (None, "duplicate") else missed
    assert found["missed"] == pytest.approx(missed)


def test_an_object_is_mended_once() -> None:
    """Two of the wrong class are over one object: the better becomes right, the other goes."""
    twice = [FIRST, one((60, 40, 40, 40), 90, 0.8), one((60, 40, 40, 39), 90, 0.7)]
    assert prices(judged(OBJECTS, twice))["classification"] == pytest.approx(50 / 101)
    # Where the object is found too, both go, and as they are of a class without objects nothing is gained.
    assert prices(judged(OBJECTS, [*twice, one((60, 40, 40, 40))]))["classification"] == 0


def test_confusions_sum_to_objects_and_detections() -> None:
    truth, results = made(20, 6, 25, classes=4, masks=False, seed=3)
    all_ = judged(truth, results)
    for threshold in (0.0, 0.3, 1.0):
        table = np.zeros((5, 5), int)
        for row, column, count in confusions(all_, threshold):
            table[row, column] += count
        np.testing.assert_array_equal(table[:4].sum(1), all_.objects)
        shown = (all_.kind != IGNORED) & (all_.score >= threshold)
        np.testing.assert_array_equal(table[:, :4].sum(0), np.bincount(all_.label[shown], minlength=4))
        assert np.trace(table) == (shown & (all_.kind == RIGHT)).sum()
        assert table[4, 4] == 0


def test_confusions_by_hand() -> None:
    """Labels: dog (id 3) is 0, cat (id 90) is 1, nothing is 2."""
    results = [FIRST, one((60, 40, 40, 40), 90, 0.8), one((100, 0, 9, 9), 3, 0.2)]
    assert confusions(judged(OBJECTS, results), 0.5) == [(0, 0, 1), (0, 1, 1)]
    assert confusions(judged(OBJECTS, results), 0.85) == [(0, 0, 1), (0, 2, 1)]
    assert confusions(judged(OBJECTS, results), 0.0) == [(0, 0, 1), (0, 1, 1), (2, 0, 1)]


def test_summary_has_the_classes_with_their_sizes() -> None:
    numbers = summary(judged(OBJECTS, [FIRST]), score(OBJECTS, [FIRST], masks=False), "bbox")
    dog, cat = numbers["classes"]
    assert (dog["name"], dog["objects"], dog["best"]["score"]) == ("dog", 2, 0.9)
    assert dog["AP_m"] == pytest.approx(51 / 101)  # 40 x 40 pixels are medium
    assert dog["AP_s"] == dog["AP_l"] == cat["AP"] == -1
    assert numbers["errors"]["missed"] == 1
    assert np.mean(numbers["precision"]) == pytest.approx(numbers["AP50"], abs=1e-4)


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"every score from 0 to 1, got 3\.5 of detection 1"):
        check_scores([FIRST, one((0, 0, 9, 9), confidence=3.5)])
