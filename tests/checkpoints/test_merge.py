"""The merge takes everything or says everything that is wrong, at once."""

import ml_dtypes
import numpy as np
import pytest

from jaxdet.checkpoints.merge import Misfit, merge


def model(classes=3, value=0.0):
    def array(*shape):
        return np.full(shape, value, np.float32)

    return {
        "params": {
            "backbone": {"conv1": {"kernel": array(3, 3, 3, 4)}, "bn1": {"scale": array(4), "bias": array(4)}},
            "heads_0": {
                "head": {
                    "trunk": {"fc1": {"kernel": array(8, 8)}},
                    "logits": {"kernel": array(8, classes + 1)},
                    "deltas": {"kernel": array(8, 4 * classes)},
                },
            },
            "masks": {"heads_0": {"head": {"logits": {"bias": array(classes)}}}},
        },
        "batch_stats": {"backbone": {"bn1": {"mean": array(4), "var": array(4)}}},
    }


def test_everything_is_taken():
    merged, report = merge(model(value=0), model(value=7))
    np.testing.assert_equal(merged, model(value=7))
    assert (len(report.loaded), report.kept, report.dropped) == (9, (), ())


def test_the_error_lists_every_kind_at_once():
    there = model(classes=2)
    del there["params"]["backbone"]["conv1"]
    there["batch_stats"]["backbone"]["bn1"]["count"] = np.zeros((), np.float32)
    there["unmapped"] = {"semantic_head.weight": np.zeros(2, np.float32)}
    there["params"]["backbone"]["bn1"]["scale"] = np.zeros(4, np.int32)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is looked at
        merge(model(classes=3), there, skip=("nothing_like_this",))
    text = str(caught.value)
    for part in (
        "only here (no value for them): 1\n    params/backbone/conv1/kernel",
        "only there (no place for them): 2\n    batch_stats/backbone/bn1/count\n    unmapped/semantic_head.weight",
        "params/heads_0/head/logits/kernel: shape (8, 4) here, (8, 3) there",
        "params/heads_0/head/deltas/kernel: shape (8, 12) here, (8, 8) there",
        "params/masks/heads_0/head/logits/bias: shape (3,) here, (2,) there",
        "params/backbone/bn1/scale: int32 there, expected floating point",
        "patterns that match nothing: 1\n    nothing_like_this",
    ):
        assert part in text


def test_a_pattern_skips_on_both_sides():
    there = model(classes=2, value=7)
    there["unmapped"] = {"semantic_head.weight": np.zeros(2)}
    merged, report = merge(model(value=1), there, skip=("^params/(heads_0|masks)/", r"^unmapped/semantic_head\."))
    assert (
        merged["params"]["heads_0"]["head"]["trunk"]["fc1"]["kernel"][0, 0] == 1
    )  # would fit, is skipped all the same
    assert merged["params"]["backbone"]["bn1"]["scale"][0] == 7
    assert report.dropped == ("unmapped/semantic_head.weight",)
    assert len(report.kept) == 4
    assert "unmapped" not in merged


def test_patterns_that_skip_all_are_refused():
    """A shell takes the quotes of run.init_skip=["neck"] away, and what is left is a class of single letters."""
    with pytest.raises(ValueError, match=r"patterns to skip \(\[neck\]\) leave nothing of the weights to load"):
        merge(model(), model(), skip=("[neck]",))


def test_the_part_that_weights_lack_is_named_as_a_pattern():
    there = model()
    del there["params"]["backbone"]["bn1"], there["batch_stats"]
    with pytest.raises(Misfit) as caught:
        merge(model(), there)
    assert caught.value.pattern == "/backbone/bn1"
    assert len(merge(model(), there, skip=(caught.value.pattern,))[1].kept) == 4
    # Nothing in common, or something else is wrong as well: no pattern that follows would be right.
    for wrong in ("backbone", "masks"):
        without = model(classes=3 if wrong == "masks" else 2)
        del without["params"]["heads_0"], without["params"][wrong]
        with pytest.raises(Misfit) as caught:
            merge(model(), without)
        assert caught.value.pattern == "^params/neck/"


def test_another_depth_of_the_backbone_is_named():
    def resnet(blocks, bottleneck):
        convs = ("conv1", "conv2", "conv3")[: 3 if bottleneck else 2]
        block = {conv: {"kernel": np.zeros((1, 1, 2, 2), np.float32)} for conv in convs}
        return {"params": {"backbone": {f"layer3_{i}": block for i in range(blocks)}}}

    with pytest.raises(Misfit, match=r"of a ResNet-18, and the model has a ResNet-50: .*'\*backbone\.depth=18'"):
        merge(resnet(6, True), resnet(2, False))
    with pytest.raises(Misfit) as caught:
        merge(resnet(6, True), model())
    assert "ResNet" not in str(caught.value)


def test_new_classes_keep_their_own_output_layers_and_say_so():
    merged, report = merge(model(classes=1, value=1), model(classes=80, value=7), new_classes=True)
    head = merged["params"]["heads_0"]["head"]
    assert (head["trunk"]["fc1"]["kernel"] == 7).all()
    assert head["logits"]["kernel"].shape == (8, 2)
    assert (head["logits"]["kernel"] == 1).all()
    assert str(report).splitlines() == [
        "6 arrays loaded, 3 kept, 0 dropped",
        "  kept its own value: params/heads_0/head/logits/kernel",
        "  kept its own value: params/heads_0/head/deltas/kernel",
        "  kept its own value: params/masks/heads_0/head/logits/bias",
    ]


def test_new_classes_holds_for_a_model_without_masks():
    here = model(classes=1)
    del here["params"]["masks"]
    there = model(classes=2)
    del there["params"]["masks"]
    merge(here, there, new_classes=True)


def test_new_classes_holds_for_all_that_knows_classes():
    """The logits of a one-stage model, the IoUs that mask scoring predicts, masks and boxes of a cascade."""

    def outputs(classes):
        def layer(rows):
            return {"bias": np.zeros(rows, np.float32)}

        boxes = {"head": {"logits": layer(classes + 1), "deltas": layer(4 * classes)}}
        masks = {"head": {"logits": layer(classes)}}
        return {
            "params": {
                "dense": {"head": {"logits": layer(9 * classes), "deltas": layer(36)}},
                "heads_0": boxes,
                "heads_1": boxes,
                "masks": {"heads_0": masks, "heads_1": masks},
                "mask_scores": {"head": {"iou": layer(classes)}},
            }
        }

    _, report = merge(outputs(1), outputs(2), new_classes=True)
    assert report.loaded == ("params/dense/head/deltas/bias",)
    assert len(report.kept) == 8


@pytest.mark.parametrize(("here", "there"), [(16, 8), (8, 16)])
def test_a_top_level_made_from_another_map_is_explained(here, there):
    def neck(channels):
        kernel = np.zeros((3, 3, channels, 8), np.float32)
        return {"params": {"neck": {"lateral2": {"bias": np.zeros(8)}, "top": {"conv6": {"kernel": kernel}}}}}

    with pytest.raises(ValueError, match=r"model\.neck\.top\.source=pyramid model\.neck\.top\.relu=true"):
        merge(neck(here), neck(there))
    merge(neck(here), neck(there), skip=("neck/top/",))


def test_within_is_strict_inside_and_silent_outside():
    there = {key: {"backbone": model(value=7)[key]["backbone"]} for key in ("params", "batch_stats")}
    merged, report = merge(model(value=1), there, within="backbone")
    assert (merged["params"]["backbone"]["conv1"]["kernel"] == 7).all()
    assert (merged["params"]["heads_0"]["head"]["trunk"]["fc1"]["kernel"] == 1).all()
    assert len(report.loaded) == 5
    del there["params"]["backbone"]["bn1"]["bias"]
    with pytest.raises(ValueError, match=r"only here .*: 1\n    params/backbone/bn1/bias"):
        merge(model(), there, within="backbone")
    with pytest.raises(ValueError, match="there, but outside 'backbone': 4"):
        merge(model(), model(), within="backbone")
    with pytest.raises(ValueError, match="there, but outside 'back'"):
        merge(model(), there, within="back")  # the name of a part, not the beginning of one


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(dtype):
    there = {"params": {"w": np.full(3, 0.5, dtype)}}
    merged, _ = merge({"params": {"w": np.zeros(3, np.float32)}}, there)
    assert merged["params"]["w"].dtype == np.float32
    assert merged["params"]["w"].tolist() == [0.5] * 3


def test_nothing_given_is_changed():
    here, there = model(value=1), model(value=7)
    merge(here, there)
    np.testing.assert_equal(here, model(value=1))
    np.testing.assert_equal(there, model(value=7))
