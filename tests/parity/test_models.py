"""Full-size models against the reference implementation's numbers.

The bounds leave room for another order of summation and nothing else: float32 against float64 of the reference
differs by 1e-6.  Discrete steps may flip single detections, which is why those are matched and not compared.
"""

from typing import Any

import jax
import numpy as np
import pytest

from tests.parity import judge, refining, runner, weights

WITH_STEPS = ("mask_rcnn_r50", "htc_r50", "r3_naive", "sbr_cnn")


def make_state(model: str, inputs: judge.Arrays, salt: str = "") -> dict[str, np.ndarray]:
    net, batch = runner.load_model(model), runner.make_batch(inputs)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch, method="predict"))
    return weights.state_dict(shapes, salt)


def check(rows: list[judge.Row]) -> None:
    print("\n".join(map(str, rows)))
    broken = [str(row) for row in rows if not row.holds]
    assert not broken, "; ".join(broken)


def canvas(inputs: judge.Arrays) -> tuple[int, int]:
    return int(inputs["ori_shape"][0]), int(inputs["ori_shape"][1])


def test_weights_are_the_ones_of_the_golden_numbers() -> None:
    first = weights.named_weight("backbone.conv1.weight", (64, 3, 7, 7))
    np.testing.assert_allclose(first.reshape(-1)[:3], [0.06733076, -0.14425458, -0.00615378], rtol=1e-6)
    assert first.sum(dtype=np.float64) == pytest.approx(-1.42079, abs=1e-5)


def test_features_and_box_head_of_faster_rcnn() -> None:
    """The one full-size check outside ``make parity``; quick, because nothing is trained."""
    inputs, golden = judge.load_inputs(), judge.load("faster_rcnn_r50")
    ours = runner.run("faster_rcnn_r50", make_state("faster_rcnn_r50", inputs), inputs, {"heads"})
    check(judge.tensors(golden, ours))
    want, have = judge.same_elements(golden, "rpn/proposals", ours["rpn/proposals"])
    # Suppression may flip a box or two, after which all that follow stand one place further.
    scores = np.arange(len(want)) * int(golden["rpn/proposals@meta"][0]) % 5 == 4
    np.testing.assert_allclose(have[scores], want[scores], atol=1e-3)


def refined_rows(model: str, variant: str, tests: tuple[str, ...], groups: set[str]) -> list[judge.Row]:
    """Of a model with a refining step, on a pyramid that is given: how it is trained, and sets of detections."""
    inputs, golden = judge.load_inputs(), judge.load(model)
    given = inputs | refining.pyramid(inputs) | {"variant": variant}
    ours = refining.run_refine(model, make_state(model, inputs), given, groups, tests)
    rows = [judge.detections(golden, ours, prefix, canvas(inputs)) for prefix in tests]
    rows += judge.tensors(golden, ours) if "heads" in groups else []
    return rows + (judge.training(golden, ours, f"train_{variant}".rstrip("_")) if "train" in groups else [])


@pytest.mark.parity
@pytest.mark.parametrize("test", [name for name in refining.TESTS if name != "test_fixedprop"])
def test_refined_at_test(test: str) -> None:
    check(refined_rows("mr_rcnn_r50", "", (test,), {"test"}))


@pytest.mark.parity
@pytest.mark.parametrize("variant", [name for name in refining.TRAININGS if name])
def test_refined_in_training(variant: str) -> None:
    check(refined_rows("mr_rcnn_r50", variant, (), {"train"}))


@pytest.mark.parity
@pytest.mark.parametrize("model", [*runner.CONFIGS, *runner.REFINED])
def test_model(model: str) -> None:
    if model in runner.REFINED:
        check(refined_rows(model, "", ("test_fixedprop",), {"heads", "test", "train"}))
        return
    inputs, golden = judge.load_inputs(model), judge.load(model)
    ours = runner.run(model, make_state(model, inputs), inputs, {"heads", "test", "train"})
    kinds = [prefix for prefix in ("test", "test_fixedprop") if f"{prefix}/boxes" in golden]
    rows = [judge.detections(golden, ours, prefix, canvas(inputs)) for prefix in kinds]
    if "test_rescale0/det_bboxes" in golden:
        rows += judge.resized(golden, ours)
    assert rows
    if "train/grad_names" in golden:  # RDSNet's code does not train its refinement
        rows += judge.training(golden, ours)
    check([*judge.tensors(golden, ours), *rows])


@pytest.mark.parity
@pytest.mark.parametrize("model", WITH_STEPS)
def test_five_steps(model: str) -> None:
    inputs, golden = judge.load_inputs(), judge.load(model)
    check(judge.steps(golden, runner.sgd(model, make_state(model, inputs), inputs)))


def other_inputs(height: int, width: int, boxes: int, seed: int) -> dict[str, Any]:
    """Inputs of another size, with other numbers of everything."""
    rng = np.random.default_rng(seed)

    def random_boxes(number: int) -> np.ndarray:
        corners = np.sort(rng.uniform(0, 1, (number, 2, 2)), axis=1) * [width - 9, height - 5]
        return corners.reshape(number, 4).astype(np.float32)

    image = rng.standard_normal((1, 3, height, width)).astype(np.float32)
    image[:, :, height - 5 :], image[:, :, :, width - 9 :] = 0, 0
    return {
        "image": image,
        "img_shape": np.array([height - 5, width - 9, 3]),
        "pad_shape": np.array([height, width, 3]),
        "ori_shape": np.array([(height - 5) // 2, (width - 9) // 2, 3]),
        "scale_factor": np.full(4, 2.0, np.float32),
        "fixed_rois": random_boxes(boxes + 2),
        "fixed_proposals": random_boxes(boxes + 4),
        "gt_boxes": random_boxes(boxes),
        "gt_labels": rng.integers(0, 80, boxes),
        "gt_masks": rng.integers(0, 2, (boxes, height, width)).astype(np.uint8),
    }


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "height", "width", "boxes"),
    [("mask_rcnn_r50", 64, 96, 1), ("r3_maskiou_orig", 96, 64, 7), ("htc_r50", 64, 64, 0)],
)
def test_runner_takes_other_sizes_and_numbers(model: str, height: int, width: int, boxes: int) -> None:
    inputs = other_inputs(height, width, boxes, seed=boxes)
    state = make_state(model, inputs, salt="other")
    ours = runner.run(model, state, inputs, {"heads", "test", "train"})
    assert ours["backbone/C5"].shape == (1, 2048, height // 32, width // 32)
    assert ours["fpn/P2"].shape == (1, 256, height // 4, width // 4)
    assert ours["loop0/cls"].shape == (boxes + 2, 81)
    assert ours["mask/pred0"].shape == (boxes + 2, 80, 28, 28)
    assert ours["test/masks"].shape == (len(ours["test/boxes"]), (height - 5) // 2, (width - 9) // 2)
    norms = ours.pop("train/grad_norms")
    assert all(np.isfinite(value).all() for value in [*ours.values(), *norms.values()])
    assert norms["backbone.layer2.0.conv1.weight"] > 0


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "height", "width", "boxes", "places", "numbers"),
    [
        (
            "rdsnet_refine_r50",
            128,
            96,
            3,
            {"fixed_anchors": [[0, 15, 11, 8], [2, 1, 2, 0], [4, 0, 0, 3]]},
            ("rep", 576),
        ),
        ("condinst_r50", 64, 96, 0, {"fixed_points": [[0, 7, 11], [3, 0, 0]]}, ("params", 169)),
        ("yolact_r50", 96, 64, 7, {"fixed_anchors": [[1, 5, 3, 2]]}, ("coeff", 96)),
    ],
)
def test_runner_takes_other_sizes_and_numbers_for_one_stage_models(
    model: str, height: int, width: int, boxes: int, places: dict[str, Any], numbers: tuple[str, int]
) -> None:
    inputs = other_inputs(height, width, boxes, seed=boxes) | {k: np.asarray(v) for k, v in places.items()}
    ours = runner.run(model, make_state(model, inputs, salt="other"), inputs, {"heads", "test", "train"})
    assert ours["backbone/C5"].shape == (1, 2048, height // 32, width // 32)
    assert ours[f"head/{numbers[0]}0"].shape == (1, numbers[1], height // 8, width // 8)
    assert len(ours["mask/logits"]) == len(next(iter(places.values())))
    assert ours["test/masks"].shape == (len(ours["test/boxes"]), (height - 5) // 2, (width - 9) // 2)
    norms = ours.pop("train/grad_norms")
    assert all(np.isfinite(value).all() for value in [*ours.values(), *norms.values()])
    assert norms["backbone.layer2.0.conv1.weight"] > 0
    if not boxes:
        assert ours["train/loss_mask"] == 0


def test_the_comparison_can_fail() -> None:
    golden = judge.load("faster_rcnn_r50")
    ours = {key: _stored(golden, key) for key in {k.partition("@")[0] for k in golden if k.startswith("fpn/")}}
    golden_only = {k: v for k, v in golden.items() if k.startswith("fpn/")}
    assert all(row.holds for row in judge.tensors(golden_only, ours))
    ours["fpn/P3"] = ours["fpn/P3"] * 1.01
    assert [row.name for row in judge.tensors(golden_only, ours) if not row.holds] == ["tensor fpn/P3"]


def _stored(golden: judge.Arrays, key: str) -> np.ndarray:
    """A full tensor that holds the stored elements, and zeros elsewhere."""
    if key in golden:
        return golden[key]
    step, *shape = golden[f"{key}@meta"].tolist()
    full = np.zeros(shape, np.float32)
    full.reshape(-1)[::step] = golden[f"{key}@sub"]
    return full
