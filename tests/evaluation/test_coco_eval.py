import contextlib
import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from rich.console import Console

from jaxdet.evaluation import (
    STATISTICS,
    check_results,
    check_truth,
    image_results,
    per_class_table,
    read_results,
    score,
    summary_table,
    write_results,
)
from jaxdet.evaluation.score import Judges, Scores
from jaxdet.experiment import Run
from jaxdet.structures import Detections, Masks

FAKE = Path(__file__).parents[3] / "shared" / "data" / "coco_eval_fakesegm100"
# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def square(x: int, y: int, side: int, hw: tuple[int, int] = (100, 120)) -> dict[str, Any]:
    mask = np.zeros(hw, np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(hw), "counts": rle["counts"].decode()}


def truth_of(*squares: tuple[int, int, int, int, int]) -> dict[str, Any]:
    """Images 7 and 9, categories 3 and 90; squares are (image, category, x, y, side)."""
    return {
        "images": [{"id": i, "height": 100, "width": 120, "file_name": f"{i}.png"} for i in (9, 7)],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, side, side],
                "area": side * side,
                "iscrowd": 0,
                "segmentation": square(x, y, side),
            }
            for n, (image, category, x, y, side) in enumerate(squares)
        ],
    }


def found(image: int, category: int, x: int, y: int, side: int, confidence: float = 0.9) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, side, side],
        "score": confidence,
        "segmentation": square(x, y, side),
    }


class _Missing(Exception):
    pass


def score_together(count: int, truth: Any, results: Any, **settings: Any) -> list[Scores]:
    """What each of some processes has as scores; they are run one after the other, as far as they know enough."""
    said: dict[tuple[int, int], str] = {}  # number of the call and of the process -> what it gave

    def gather(index: int) -> Any:
        calls = iter(range(99))

        def of_all(work: Any) -> list[Any]:
            call = next(calls)
            said[call, index] = json.dumps(work())
            if not all((call, each) in said for each in range(count)):
                raise _Missing
            return [json.loads(said[call, each]) for each in range(count)]

        return of_all

    while True:
        done = []
        for index in range(count):
            with contextlib.suppress(_Missing):
                done.append(score(truth, results, judges=Judges(index, count, gather(index)), **settings))
        if len(done) == count:
            return done


class TestTogether:
    """Several processes judge the images of which each has a share: the numbers of one, bit for bit."""

    def data(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Six images: objects found well, badly, twice, not at all; one with a crowd, one with nothing, one empty."""
        noise = np.random.default_rng(0)
        places = [
            (image, (3, 90)[n % 2], *noise.integers(0, 60, 2), 20 + 3 * n) for image in range(4) for n in range(5)
        ]
        truth = truth_of(*[tuple(map(int, place)) for place in places])  # type: ignore[arg-type]
        truth["images"] = [{"id": n, "height": 100, "width": 120, "file_name": "a"} for n in (3, 5, 1, 0, 4, 2)]
        truth["annotations"][0]["iscrowd"] = 1
        moved = [(i, c, int(x) + int(noise.integers(0, 9)), int(y), side) for i, c, x, y, side in places[2:]]
        results = [found(*place, float(noise.choice([0.3, 0.5, 0.7]))) for place in moved + moved[::3]]
        return truth, [*results, found(4, 3, 5, 5, 9, 0.5)]

    @pytest.mark.parametrize("fast", [False, True])
    @pytest.mark.parametrize("count", [2, 3, 8])
    def test_the_numbers_are_those_of_one(self, count: int, fast: bool) -> None:
        truth, results = self.data()
        alone = score(truth, results, fast=fast, max_detections=110)
        assert 0 < alone.metrics["segm/AP"] < 1
        assert score_together(count, truth, results, fast=fast, max_detections=110) == [alone] * count

    def test_nothing_found(self) -> None:
        truth, _ = self.data()
        assert score_together(2, truth, []) == [score(truth, [])] * 2
        empty = truth | {"images": [], "annotations": []}
        assert score_together(2, empty, []) == [score(empty, [])] * 2


class TestScore:
    def test_truth_against_itself_is_perfect(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (9, 90, 5, 5, 20), (9, 90, 60, 60, 20))
        results = [found(7, 3, 10, 10, 40), found(9, 90, 5, 5, 20), found(9, 90, 60, 60, 20)]
        metrics = score(truth, results).metrics
        assert list(metrics) == [f"{kind}/{name}" for kind in ("bbox", "segm") for name in STATISTICS]
        assert metrics["bbox/AP"] == pytest.approx(1)
        assert metrics["segm/AP"] == pytest.approx(1)
        assert metrics["segm/AP_s"] == pytest.approx(1)
        assert metrics["segm/AP_l"] == -1  # no object of 96 x 96 or more
        assert metrics["bbox/AR1"] == pytest.approx(0.75)  # the dog, and one of two cats

    def test_image_without_detections_counts(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (9, 3, 10, 10, 40))
        metrics = score(truth, [found(7, 3, 10, 10, 40)]).metrics
        # recall 1/2 at precision 1: 51 of the 101 recall points 0, 0.01, ..., 1
        assert metrics["bbox/AP"] == pytest.approx(51 / 101)
        assert metrics["bbox/AR100"] == pytest.approx(0.5)

    def test_half_overlap_counts_at_the_lower_thresholds_only(self) -> None:
        truth = truth_of((7, 3, 0, 0, 40))
        shifted = found(7, 3, 0, 0, 40)
        shifted["bbox"] = [0, 0, 40, 28]  # IoU 0.7: thresholds .50 to .70, 5 of 10
        metrics = score(truth, [shifted]).metrics
        assert metrics["bbox/AP"] == pytest.approx(0.5)
        assert metrics["bbox/AP75"] == 0
        assert metrics["segm/AP"] == pytest.approx(1)

    def test_masks_are_ranked_by_their_own_score(self) -> None:
        truth = truth_of((7, 3, 0, 0, 40))
        good, bad = found(7, 3, 0, 0, 40, 0.4), found(7, 3, 70, 50, 40, 0.6)
        assert score(truth, [good, bad]).metrics["segm/AP"] == pytest.approx(0.5)
        good["mask_score"], bad["mask_score"] = 0.9, 0.1
        metrics = score(truth, [good, bad]).metrics
        assert metrics["segm/AP"] == pytest.approx(1)
        assert metrics["bbox/AP"] == pytest.approx(0.5)

    def test_size_class_of_a_mask_is_its_own_area(self) -> None:
        # a small wrong mask in a large box: a false positive among small masks, none among large ones
        truth = truth_of((7, 3, 0, 0, 20), (7, 3, 0, 0, 98))
        wrong = found(7, 3, 90, 90, 8, 0.99) | {"bbox": [10, 10, 99, 80]}
        right = [found(7, 3, 0, 0, 20, 0.5), found(7, 3, 0, 0, 98, 0.5)]
        metrics = score(truth, [wrong, *right]).metrics
        assert metrics["segm/AP_l"] == pytest.approx(1)
        assert metrics["segm/AP_s"] == pytest.approx(0.5)

    @pytest.mark.parametrize("fast", [False, True])
    def test_nothing_found_is_zero(self, fast: bool) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        scores = score(truth, [], fast=fast)
        assert scores.metrics["bbox/AP"] == 0
        assert scores.metrics["segm/AP"] == 0
        assert scores.metrics["segm/AR100"] == 0
        assert scores.metrics["segm/AP_s"] == -1

    def test_nothing_to_find_is_minus_one(self) -> None:
        truth = truth_of()
        assert set(score(truth, [found(7, 3, 0, 0, 9)]).metrics.values()) == {-1}
        assert set(score(truth, []).metrics.values()) == {-1}

    def test_boxes_without_masks(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        result = found(7, 3, 10, 10, 40)
        del result["segmentation"]
        assert {key.split("/")[0] for key in score(truth, [result]).metrics} == {"bbox"}
        with pytest.raises(ValueError, match="image 7 has none"):
            score(truth, [result, found(7, 3, 10, 10, 40)])

    @pytest.mark.parametrize("results", [[], [found(7, 3, 10, 10, 40)]])
    def test_where_masks_do_not_count_broken_ones_do_no_harm(self, results: list[Any]) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        truth["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
        metrics = score(truth, results, masks=False).metrics
        assert {key.split("/")[0] for key in metrics} == {"bbox"}
        assert metrics["bbox/AP"] == pytest.approx(len(results))
        with pytest.raises(ValueError, match=r"ground truth: annotations\[0\]"):
            score(truth, results)

    def test_inputs_are_left_alone_and_nothing_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        truth, results = truth_of((7, 3, 10, 10, 40)), [found(7, 3, 10, 10, 40)]
        before = copy.deepcopy((truth, results))
        score(truth, results)
        score(truth, results, fast=True)
        assert (truth, results) == before
        assert capsys.readouterr() == ("", "")

    def test_sparse_annotations_are_completed(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (9, 3, 10, 10, 40))
        whole = score(truth, [found(7, 3, 10, 10, 40)]).metrics
        for annotation in truth["annotations"]:
            del annotation["area"], annotation["iscrowd"]
        truth["annotations"][1]["segmentation"] = [[10, 10, 50, 10, 50, 50, 10, 50]]
        assert score(truth, [found(7, 3, 10, 10, 40)]).metrics == whole

    @pytest.mark.parametrize("fast", [False, True])
    def test_instance_without_a_mask_is_one_that_no_mask_matches(self, fast: bool) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (9, 3, 10, 10, 40))
        truth["annotations"][1]["segmentation"] = []
        metrics = score(truth, [found(7, 3, 10, 10, 40), found(9, 3, 10, 10, 40)], fast=fast).metrics
        assert metrics["bbox/AP"] == pytest.approx(1)
        assert metrics["segm/AR100"] == pytest.approx(0.5)

    @pytest.mark.parametrize("fast", [False, True])
    @pytest.mark.parametrize("key", ["annotation", "image", "category"])
    @pytest.mark.parametrize("first", [0, -1, -(2**40), 2**40])
    def test_ids_are_names(self, first: int, key: str, fast: bool) -> None:
        """Also 0, which pycocotools writes for a detection without a match."""
        truth = truth_of((7, 3, 10, 10, 40), (7, 90, 60, 60, 20), (9, 3, 5, 5, 20))
        results = [found(7, 3, 10, 10, 40), found(7, 90, 60, 60, 20), found(9, 3, 5, 5, 20)]
        for number, annotation in enumerate(truth["annotations"]):
            annotation["id"] = first + number if key == "annotation" else annotation["id"]
        if key != "annotation":
            old = {"image": 7, "category": 3}[key]
            for entry in truth["images"] if key == "image" else truth["categories"]:
                entry["id"] = first if entry["id"] == old else entry["id"]
            for entry in truth["annotations"] + results:
                entry[f"{key}_id"] = first if entry[f"{key}_id"] == old else entry[f"{key}_id"]
        scores = score(truth, results, fast=fast)
        for kind in ("bbox", "segm"):
            assert scores.metrics[f"{kind}/AP"] == pytest.approx(1)
            assert scores.metrics[f"{kind}/AR1"] == pytest.approx(1)
            assert [row[f"{kind}/AP"] for row in scores.per_class.values()] == pytest.approx([1, 1])

    @pytest.mark.parametrize(
        ("table", "change", "message"),
        [
            ("annotations", {"category_id": 4}, r"annotations\[1\] \(id 2\): category_id: expected one that .*, got 4"),
            ("annotations", {"image_id": 8}, r"annotations\[1\] \(id 2\): image_id: expected one that .*, got 8"),
            ("annotations", {"id": 1}, "annotation ids that differ, got an id twice: 1"),
            ("annotations", {"ignore": "yes"}, "ignore: expected 0 or 1"),
            ("categories", {"id": 90}, "category ids that differ, got an id twice: 90"),
            ("categories", {"name": 3}, "name: expected a string"),
            ("images", {"height": None}, r"images\[1\] \(id 7\): expected width and height; write those"),
            ("images", {"id": 9}, "image ids that differ, got an id twice: 9"),
        ],
    )
    @pytest.mark.parametrize("results", [[], [found(7, 90, 10, 10, 40)]])
    def test_truth_is_held_to_the_rules_of_training(
        self, table: str, change: dict[str, Any], message: str, results: list[Any]
    ) -> None:
        truth = truth_of((7, 90, 10, 10, 40), (7, 90, 60, 60, 20))
        truth[table][1] |= change
        with pytest.raises(ValueError, match=f"ground truth: .*{message}"):
            score(truth, results)
        with pytest.raises(ValueError, match=f"ground truth: .*{message}"):
            check_truth(truth, masks=False)

    @pytest.mark.parametrize("fast", [False, True])
    @pytest.mark.parametrize("nothing", [None, [], {}, [[]]])
    def test_a_truth_of_boxes_is_scored_by_boxes(self, nothing: Any, fast: bool) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (9, 90, 5, 5, 20))
        for annotation in truth["annotations"]:
            del annotation["area"]
            annotation["segmentation"] = nothing
        boxes = [found(7, 3, 10, 10, 40), found(9, 90, 5, 5, 20)]
        for results in (boxes, [{k: v for k, v in result.items() if k != "segmentation"} for result in boxes]):
            metrics = score(truth, results, fast=fast).metrics
            assert {key.split("/")[0] for key in metrics} == {"bbox"}
            # sizes are those of the boxes: 1600 and 400 pixels
            assert (metrics["bbox/AP"], metrics["bbox/AP_s"], metrics["bbox/AP_m"]) == pytest.approx((1, 1, 1))
        nothing_found = score(truth, [], fast=fast).metrics
        assert nothing_found["bbox/AP"] == 0
        assert len(nothing_found) == 12
        check_truth(truth)

    def test_where_nobody_looks_at_masks_areas_are_those_of_boxes(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        del truth["annotations"][0]["area"]
        for broken in ([[1, 2, 3, 4]], square(0, 0, 5, (50, 50)), "x"):
            truth["annotations"][0]["segmentation"] = broken
            metrics = score(truth, [found(7, 3, 10, 10, 40)], masks=False).metrics
            assert metrics["bbox/AP_m"] == pytest.approx(1)
            check_truth(truth, masks=False)
            with pytest.raises(ValueError, match="segmentation"):
                check_truth(truth)

    def test_masks_of_results_that_the_truth_has_not_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        truth["annotations"][0]["segmentation"] = []
        score(truth, [found(7, 3, 10, 10, 40)])
        assert "no masks: boxes alone are scored" in caplog.text

    @pytest.mark.parametrize("fast", [False, True])
    def test_results_some_of_which_have_boxes(self, fast: bool) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (9, 90, 5, 5, 20))
        results = [found(7, 3, 10, 10, 40), found(9, 90, 5, 5, 20)]
        del results[1]["bbox"]
        for order in (results, results[::-1]):
            metrics = score(truth, order, fast=fast).metrics
            assert (metrics["bbox/AP"], metrics["segm/AP"]) == pytest.approx((1, 1))

    def test_a_truth_without_annotations_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        truth = truth_of()
        for results in ([], [found(7, 3, 0, 0, 9)]):
            caplog.clear()
            assert set(score(truth, results).metrics.values()) == {-1}
            assert "no annotations: there is nothing to score by" in caplog.text

    def test_annotation_of_no_image_is_named(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40), (8, 3, 10, 10, 40))
        with pytest.raises(ValueError, match=r"annotations\[1\] \(id 2\)"):
            score(truth, [])

    def test_per_class(self) -> None:
        truth = truth_of((7, 90, 10, 10, 40))
        scores = score(truth, [found(7, 90, 10, 10, 40)])
        assert list(scores.per_class) == ["dog", "cat"]  # by id
        assert scores.per_class["cat"]["segm/AP"] == pytest.approx(1)
        assert scores.per_class["dog"]["segm/AP"] == -1
        text = io.StringIO()
        console = Console(file=text, width=120)
        console.print(per_class_table(scores))
        console.print(summary_table(scores.metrics))
        assert "cat" in text.getvalue()
        assert "1.000" in text.getvalue()
        assert "AR_l" in text.getvalue()

    def test_categories_of_one_name_stay_apart(self) -> None:
        truth = truth_of((7, 90, 10, 10, 40))
        for category in truth["categories"]:
            category["name"] = "thing"
        assert list(score(truth, []).per_class) == ["thing", "thing (90)"]

    def test_without_the_fast_judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
        with pytest.raises(ValueError, match="fast-eval"):
            score(truth_of(), [], fast=True)


@pytest.mark.parametrize("fast", [False, True])
class TestLimit:
    """COCO's numbers count a hundred detections of a class in an image."""

    def crowded(self, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Boxes of a class side by side, and detections of all of them."""
        truth, boxes = truth_of(), [[5 * (n % 24), 5 * (n // 24), 4, 4] for n in range(count)]
        common = {"image_id": 7, "category_id": 3}
        truth["annotations"] = [
            {**common, "id": n, "bbox": box, "area": 16, "iscrowd": 0, "segmentation": []}
            for n, box in enumerate(boxes)
        ]
        return truth, [{**common, "bbox": box, "score": 0.5} for box in boxes]

    def test_numbers_under_both(self, fast: bool, caplog: pytest.LogCaptureFixture) -> None:
        truth, results = self.crowded(250)
        metrics = score(truth, results, fast=fast).metrics
        # recall 100 / 250 at precision 1: 41 of the 101 recall points 0, 0.01, ..., 1
        coco = {"bbox/AP": 41 / 101, "bbox/AR100": 0.4, "bbox/AR10": 0.04, "bbox/AP_s": 41 / 101, "bbox/AP_m": -1}
        assert {name: metrics[name] for name in coco} == pytest.approx(coco)
        assert "1 times an image has more than 100 instances of a class (up to 250)" in caplog.text
        assert "run.eval_detections=250" in caplog.text
        caplog.clear()
        scores = score(truth, results, fast=fast, max_detections=250)
        assert {name: scores.metrics[name] for name in metrics} == metrics
        more = {name: value for name, value in scores.metrics.items() if name not in metrics}
        assert more == pytest.approx({"bbox/AP@250": 1, "bbox/AP50@250": 1, "bbox/AP75@250": 1, "bbox/AR250": 1})
        assert scores.per_class["dog"]["bbox/AP@250"] == pytest.approx(1)
        assert scores.per_class["dog"]["bbox/AR100"] == pytest.approx(0.4)
        assert not caplog.text
        text = io.StringIO()
        Console(file=text, width=120).print(per_class_table(scores), summary_table(scores.metrics))
        assert text.getvalue().count("AP@250") == 2

    def test_a_limit_between(self, fast: bool) -> None:
        truth, results = self.crowded(200)
        metrics = score(truth, results, fast=fast, max_detections=150).metrics
        assert (metrics["bbox/AR100"], metrics["bbox/AR150"]) == pytest.approx((0.5, 0.75))

    def test_a_hundred_are_not_told_and_crowd_does_not_count(
        self, fast: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        truth, results = self.crowded(120)
        for annotation in truth["annotations"][100:]:
            annotation["iscrowd"] = 1
        score(truth, results, fast=fast)
        assert not caplog.text

    def test_less_than_cocos(self, fast: bool) -> None:
        with pytest.raises(ValueError, match=r"max_detections: expected at least 100.* got 99"):
            score(truth_of(), [], fast=fast, max_detections=99)
        with pytest.raises(ValueError, match=r"Run\.eval_detections: expected a number from 100 to"):
            Run(eval_detections=99)


class TestChecks:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_id": 8}, r"image_id.*unknown: 8"),
            ({"category_id": 1}, r"category_id.*unknown: 1"),
            ({"score": float("nan")}, "detection 1 .*score: expected a finite number"),
            ({"score": None}, "score"),
            ({"score": "high"}, "score"),
            ({"bbox": [1, 2, 3]}, "bbox: expected 4 finite numbers"),
            ({"bbox": [1, 2, 3, float("inf")]}, "bbox"),
            ({"bbox": None, "segmentation": None}, "neither"),
            ({"segmentation": square(0, 0, 5, (50, 50))}, r"size \(100, 120\), got \[50, 50\]"),
            ({"segmentation": {"size": [100, 120], "counts": "~~~"}}, "run-length"),
            ({"mask_score": float("inf")}, "mask_score"),
        ],
    )
    def test_faults_are_named(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        results = [found(7, 3, 0, 0, 9), found(7, 3, 0, 0, 9) | change]
        (tmp_path / "results.json").write_text(json.dumps(results))
        with pytest.raises(ValueError, match=message):
            read_results(tmp_path / "results.json", truth_of())

    def test_missing_ids(self) -> None:
        with pytest.raises(ValueError, match="image_id in every detection, detection 0"):
            check_results([{"category_id": 3}], truth_of())

    def test_a_fault_of_the_truth_is_told_as_such(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        del truth["images"][0]["width"]
        with pytest.raises(ValueError, match=r"ground truth: images\[0\] \(id 9\): expected width and height"):
            check_results([], truth)

    @pytest.mark.parametrize("text", ["{}", "[1]", "[", ""])
    def test_other_files(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results.json: expected"):
            read_results(tmp_path / "results.json", truth_of())

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected a readable file"):
            read_results(tmp_path / "none.json", truth_of())

    def test_polygons_and_plain_run_lengths_are_taken(self) -> None:
        truth = truth_of((7, 3, 10, 10, 40))
        polygon = found(7, 3, 10, 10, 40) | {"segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]]}
        assert score(truth, check_results([polygon], truth)).metrics["segm/AP"] == pytest.approx(1)
        runs = [10 * 100 + 10, *[40, 60] * 39, 40, 70 * 100 + 50]
        plain = found(7, 3, 10, 10, 40) | {"segmentation": {"size": [100, 120], "counts": runs}}
        assert score(truth, check_results([plain], truth)).metrics["segm/AP"] == pytest.approx(1)


def detections(boxes: Any, scores: Any, labels: Any, **more: Any) -> Detections:
    """Of one image, on the host."""
    number = len(boxes)
    numbers, valid = np.asarray(labels, np.int32), np.ones(number, bool)
    return Detections(np.float32(boxes), np.float32(scores), numbers, valid, np.zeros(number, np.int32), **more)


class TestImageResults:
    SETTINGS = {"image_id": 7, "category_ids": [3, 90], "scale": np.asarray([2, 1.5], np.float32), "hw": (100, 120)}  # noqa: RUF012
    """Stored 100 x 120, resized to 200 x 180: scale 2 along y, 1.5 along x."""

    def test_back_to_the_stored_image(self, tmp_path: Path) -> None:
        boxes = [[15, 20, 75, 100], [0, 0, 9, 8]]
        masks = Masks(np.ones((2, 28, 28), np.float32), np.float32(boxes))
        mask_scores = np.asarray([0.75, 0.25], np.float32)
        found = detections(boxes, [0.75, 0.5], [1, 0], masks=masks, mask_scores=mask_scores)
        results = image_results(found, **self.SETTINGS)
        assert [result["category_id"] for result in results] == [90, 3]
        assert results[0]["bbox"] == [10, 10, 40, 40]
        assert results[0]["score"] == 0.75
        assert "mask_score" not in results[0]
        assert results[1]["mask_score"] == 0.25
        assert coco_mask.area(results[1]["segmentation"]) == 6 * 4
        mask = coco_mask.decode(results[0]["segmentation"])
        assert mask.shape == (100, 120)
        assert mask[10:50, 10:50].mean() > 0.99
        assert mask.sum() == mask[10:50, 10:50].sum()
        write_results(tmp_path / "new" / "results.json", results)
        truth = truth_of((7, 90, 10, 10, 40))
        read = read_results(tmp_path / "new" / "results.json", truth)
        assert score(truth, read).metrics["bbox/AP"] == pytest.approx(1)

    def test_a_mask_stays_in_its_frame_when_the_box_has_moved_on(self) -> None:
        masks = Masks(np.ones((1, 28, 28), np.float32), np.float32([[15, 20, 75, 100]]))
        results = image_results(detections([[90, 20, 150, 100]], [0.9], [0], masks=masks), **self.SETTINGS)
        assert results[0]["bbox"] == [60, 10, 40, 40]
        assert "mask_score" not in results[0], "without scores of masks, those of the boxes"
        mask = coco_mask.decode(results[0]["segmentation"])
        assert mask[10:50, 10:50].mean() > 0.99
        assert mask.sum() == mask[10:50, 10:50].sum()

    @pytest.mark.parametrize("dtype", [np.float32, np.uint8])
    def test_masks_of_the_canvas_are_cut_by_their_boxes(self, dtype: Any) -> None:
        """A canvas of 208 x 192 at a stride of 4; everything but its right half is inside by the model's threshold."""
        values = np.full((1, 52, 48), 0.4, np.float32)
        values[:, :, 24:] = 0.3
        values = values if dtype == np.float32 else np.round(255 * values).astype(np.uint8)
        frame, crop = np.float32([[0, 0, 192, 208]]), np.float32([[15, 20, 120, 100]])
        masks = Masks(values, frame, crop, threshold=0.35)
        results = image_results(detections(crop, [0.9], [0], masks=masks), **self.SETTINGS)
        mask = coco_mask.decode(results[0]["segmentation"]).astype(bool)
        # crop: columns 10 to 80, rows 10 to 50; the canvas' half is at column 64, where .35 is met
        assert mask[10:50, 10:64].all()
        assert mask.sum() == 40 * 54

    def test_numbers_that_are_none_are_left_out(self) -> None:
        boxes = [[0, 0, 5, 5], [np.nan, 0, 5, 5], [0, 0, 5, 5], [0, 0, 5, 5]]
        settings = {"image_id": 1, "category_ids": [1], "scale": np.ones(2, np.float32), "hw": (9, 9)}
        mask_scores = np.asarray([1, 1, 1, np.nan], np.float32)
        found = detections(boxes, [np.nan, 1, 1, 1], [0] * 4, mask_scores=mask_scores)
        results = image_results(found, **settings)
        assert len(results) == 1
        assert "segmentation" not in results[0]

    def test_boxes_without_area_are_left_out(self) -> None:
        boxes = [[3, 3, 3, 9], [0, 9, 9, 9], [0, 0, 9, 9], [9, 9, 0, 0], [1e-45, 0, 2e-45, 9]]
        results = image_results(detections(boxes, [0.9] * 5, [0] * 5), **self.SETTINGS)
        assert [result["bbox"] for result in results] == [[0, 0, 6, 4.5]]

    @pytest.mark.parametrize("label", [-1, 2])
    def test_label_without_category(self, label: int) -> None:
        with pytest.raises(ValueError, match="num_classes"):
            image_results(detections([[0, 0, 0, 0]], [0], [label]), **self.SETTINGS)


@pytest.mark.parametrize("fast", [False, True])
class TestPublishedNumbers:
    def test_of_the_coco_api(self, fast: bool) -> None:
        if not FAKE.exists():
            pytest.skip(f"detections with known AP are not here: {FAKE}")
        truth = json.loads((FAKE / "annotations" / "instances_val2014_100.json").read_text())
        expected = json.loads((FAKE / "expected.json").read_text())
        for what in ("bbox", "segm"):
            results = read_results(FAKE / "results" / f"instances_val2014_fake{what}100_results.json", truth)
            metrics = score(truth, results, fast=fast).metrics
            for kind in ("bbox", "segm") if what == "segm" else ("bbox",):
                numbers = expected["pycocotools"][f"fake{what}100 results, iouType={kind}"]
                ours = [metrics[f"{kind}/{name}"] for name in STATISTICS]
                assert ours == pytest.approx([numbers[name] for name in expected["stat_names"]], abs=1e-12)
