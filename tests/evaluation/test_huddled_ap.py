"""AP over huddled objects: cases small enough to count."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments.huddled_ap import huddled, main, of_images, only_huddled, scores
from tests.evaluation.test_coco_eval import found, truth_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
# Squares by image, category, x, y, side: the first two, of two categories, have an IoU of 800 / 2400.
TRUTH = truth_of((7, 3, 10, 10, 40), (7, 90, 30, 10, 40), (7, 3, 90, 60, 20), (9, 3, 10, 10, 40))


def box(x: float, y: float, width: float, height: float, image: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "bbox": [x, y, width, height], "iscrowd": crowd}


def test_who_huddles() -> None:
    assert huddled(TRUTH["annotations"]).tolist() == [True, True, False, False]
    assert huddled(TRUTH["annotations"], 0.34).tolist() == [False] * 4
    pair = [box(0, 0, 6, 1), box(4, 0, 6, 1)]  # 2 of 10
    assert huddled(pair).tolist() == [True, True]
    assert huddled([pair[0], box(4.01, 0, 6, 1)]).tolist() == [False, False]
    assert huddled([pair[0], box(4, 0, 6, 1, image=2)]).tolist() == [False, False]
    assert huddled([pair[0], box(0, 0, 6, 1, crowd=1)]).tolist() == [False, False]
    assert huddled([box(0, 0, 10, 10), box(4, 4, 4, 4), box(2, 2, 6, 6)]).tolist() == [True, True, True]
    assert huddled([]).tolist() == []


def test_what_is_missed_counts_where_it_huddles() -> None:
    """Recall of 2 of 3 and 1 of 1 over all by category, of 1 of 1 and 1 of 1 over the huddled; AP has 101 steps."""
    missed_alone = [found(7, 3, 10, 10, 40), found(7, 90, 30, 10, 40), found(9, 3, 10, 10, 40)]
    numbers = scores(TRUTH, missed_alone)
    for kind in ("bbox", "segm"):
        assert numbers["all"][f"{kind}/AP"] == pytest.approx((67 / 101 + 1) / 2)
        assert numbers["huddled"][f"{kind}/AP"] == pytest.approx(1)
    missed_huddled = [found(7, 3, 10, 10, 40), found(7, 3, 90, 60, 20), found(9, 3, 10, 10, 40)]
    numbers = scores(TRUTH, missed_huddled, masks=False)
    assert [part["bbox/AP"] for part in numbers.values()] == pytest.approx([1 / 2, 1 / 2])
    assert "segm/AP" not in numbers["all"]


def test_what_finds_nothing_counts_and_what_finds_another_object_does_not() -> None:
    others = [found(7, 3, 90, 60, 20, 0.99), found(9, 3, 10, 10, 40, 0.98)]
    right = [found(7, 3, 10, 10, 40, 0.5), found(7, 90, 30, 10, 40, 0.5)]
    assert scores(TRUTH, others + right)["huddled"]["bbox/AP"] == pytest.approx(1)
    # A second detection of an object that does not count finds nothing, and comes before the right one.
    twice = [*others, found(9, 3, 10, 10, 40, 0.97), *right]
    assert scores(TRUTH, twice)["huddled"]["bbox/AP"] == pytest.approx((1 / 2 + 1) / 2)


def test_some_images_alone() -> None:
    truth, results = of_images(TRUTH, [found(7, 3, 10, 10, 40), found(9, 3, 10, 10, 40)], {9})
    assert [image["id"] for image in truth["images"]] == [9]
    assert [a["bbox"] for a in truth["annotations"]] == [[10, 10, 40, 40]]
    assert [result["image_id"] for result in results] == [9]
    assert truth["categories"] == TRUTH["categories"]


def test_the_ground_truth_is_left_as_it_is() -> None:
    before = copy.deepcopy(TRUTH)
    assert [a["area"] for a in only_huddled(TRUTH)["annotations"]] == [1600, 1600, 2e10, 2e10]
    assert before == TRUTH


def test_a_broken_ground_truth_is_named() -> None:
    broken = copy.deepcopy(TRUTH)
    del broken["annotations"][0]["bbox"]
    with pytest.raises(ValueError, match="ground truth: annotations"):
        scores(broken, [])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(TRUTH))
    results.write_text(json.dumps([found(7, 3, 10, 10, 40), found(7, 90, 30, 10, 40)]))
    main([str(truth), str(results)])
    printed = capsys.readouterr().out
    assert "2 of 4 instances are huddled" in printed
    assert "bbox AP, all | bbox AP, huddled | segm AP, all | segm AP, huddled" in printed
