"""Two phases in one run: the first is trained, or given; the second begins with copies of its heads."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.copies import with_copies
from jaxdet.checkpoints.files.weights import write_safetensors
from jaxdet.checkpoints.names.mmdet import from_mmdet, to_mmdet
from jaxdet.checkpoints.reading import load
from jaxdet.config import from_data, override, to_data
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment, Phase, Run
from jaxdet.training import train
from jaxdet.training.phases import first_phase, named, start_of
from jaxdet.training.state import init_variables
from jaxdet.training.weights import with_weights
from tests.training import tiny
from tests.training.test_run import Terminate

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phases")


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    """Six steps of a tiny Mask R-CNN, and two with a refining step."""
    both = refined(tiny.get_config)
    run = dataclasses.replace(both.run, log_every=2, checkpoint_every=3, eval_every=0)
    experiment = dataclasses.replace(both, run=run, optimizer=tiny.get_config().optimizer)
    changes = ["data.val=none", f"data.train.directory={folder / 'scenes'}"]
    changes += ["optimizer.schedule.length=2", "optimizer.schedule.drops=1"]
    return override(experiment, changes)


@pytest.fixture(scope="module")
def variables(experiment: Experiment) -> Any:
    return init_variables(experiment.model, KEY)


@pytest.fixture(scope="module")
def base(experiment: Experiment) -> Any:
    """Variables of the model of the first phase, other ones."""
    assert experiment.before is not None
    return init_variables(experiment.before.model, jax.random.key(7))


def heads(variables: Any) -> tuple[Any, Any, Any, Any]:
    """Box and mask head, and those that refine."""
    params = variables["params"]
    masks = params["masks"]
    return params["heads_0"], masks["heads_0"], masks["refine_box"], masks["refine_mask"]


def assert_equal(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_run_that_was_stopped_in_its_first_phase_goes_on_to_the_end_of_the_second(
    folder: Path, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxdet")
    run, logger, handler = folder / "run", logging.getLogger("jaxdet"), Terminate("step 2/6")
    logger.addHandler(handler)
    try:
        with pytest.raises(SystemExit):
            train(experiment, run)
    finally:
        logger.removeHandler(handler)
    assert not list((run / "checkpoints").glob("[0-9]*"))
    assert 2 <= load(run / "before")[1]["step"] <= 3

    train(experiment, run)
    assert "continuing after step" in caplog.text
    weights, metadata = load(run / "before")
    assert (metadata["step"], set(weights["params"]["masks"])) == (6, {"heads_0"})
    assert from_data(metadata["config"]).before is None
    weights, metadata = load(run)
    assert (metadata["step"], from_data(metadata["config"])) == (2, experiment)
    assert "refine_box" in weights["params"]["masks"]
    assert f"weights from {run / 'before'}" in caplog.text

    # What it began with is not needed any more.
    shutil.rmtree(run / "before")
    train(experiment, run)
    assert not (run / "before").exists()


def test_refining_heads_start_as_copies_and_the_link_afresh(
    folder: Path, experiment: Experiment, variables: Any, base: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """From the names of mmdetection, as a published Mask R-CNN has them."""
    caplog.set_level(logging.INFO, "jaxdet")
    write_safetensors(folder / "mask_rcnn.safetensors", to_mmdet(base))
    run = dataclasses.replace(experiment.run, init_from=str(folder / "mask_rcnn.safetensors"))
    started, _ = with_weights(experiment.model, variables, run)
    box, mask, refine_box, refine_mask = heads(started)
    assert_equal((box, mask), heads_of_base(base))
    assert_equal(refine_box, box)
    link = refine_mask["head"].pop("link")
    assert_equal(refine_mask, mask)
    assert_equal(link, heads(variables)[3]["head"]["link"])
    assert "kept its own value: params/masks/refine_mask/head/link/kernel" in caplog.text


def test_weights_that_have_the_refining_heads_are_taken_as_they_are(
    folder: Path, experiment: Experiment, variables: Any
) -> None:
    other = init_variables(experiment.model, jax.random.key(3))
    write_safetensors(folder / "mr_rcnn.safetensors", to_mmdet(other))
    run = dataclasses.replace(experiment.run, init_from=str(folder / "mr_rcnn.safetensors"))
    started, _ = with_weights(experiment.model, variables, run)
    assert_equal(started["params"], other["params"])


def test_the_base_of_a_refined_model_is_a_model(
    folder: Path, experiment: Experiment, variables: Any, base: Any
) -> None:
    assert experiment.before is not None
    write_safetensors(folder / "refined.safetensors", to_mmdet(variables))
    run = Run(init_from=str(folder / "refined.safetensors"), init_skip=(r"^unmapped/roi_head\.refine_",))
    started, _ = with_weights(experiment.before.model, base, run)
    assert_equal(heads_of_base(started), heads_of_base(variables))


def heads_of_base(variables: Any) -> Any:
    return variables["params"]["heads_0"], variables["params"]["masks"]["heads_0"]


def test_names_in_mmdetection(variables: Any) -> None:
    state = to_mmdet(variables)
    assert_equal(from_mmdet(state, variables)["params"], variables["params"])
    assert {name for name in state if "refine" in name and "bias" in name} == {
        "roi_head.refine_bbox_head.shared_fcs.0.bias",
        "roi_head.refine_bbox_head.shared_fcs.1.bias",
        "roi_head.refine_bbox_head.fc_cls.bias",
        "roi_head.refine_bbox_head.fc_reg.bias",
        "roi_head.refine_mask_head.convs.0.conv.bias",
        "roi_head.refine_mask_head.upsample.bias",
        "roi_head.refine_mask_head.conv_logits.bias",
        "roi_head.refine_mask_head.conv_res.conv.bias",
    }


def test_copies_by_hand() -> None:
    here = {"params": {"new": {"a": 0, "own": 1}, "old": {"a": 2}}, "batch_stats": {"new": {"mean": 3}}}
    there = {"params": {"old": {"a": 4, "b": 5}}, "batch_stats": {"old": {"mean": 6}}}
    copied, afresh = with_copies(here, there, (("new", "old"),))
    assert copied == {
        "params": {"new": {"a": 4}, "old": {"a": 4, "b": 5}},
        "batch_stats": {"new": {"mean": 6}, "old": {"mean": 6}},
    }
    assert afresh == ("params/new/own",)
    # Of what the weights have nothing is copied, and "newer" is not below "new".
    assert with_copies(here, {"params": {"new": {"a": 7}}}, (("new", "old"),)) == ({"params": {"new": {"a": 7}}}, ())
    with pytest.raises(ValueError, match="new is to start as a copy of old, and there is neither"):
        with_copies(here, {"params": {"newer": {"a": 7}, "older": {"a": 8}}}, (("new", "old"),))


def test_the_first_phase_has_the_data_and_the_run_of_both(experiment: Experiment) -> None:
    first = first_phase(override(experiment, ["before.init_from=backbone.pth", "run.seed=4"]))
    assert first is not None
    assert experiment.before is not None
    assert (first.model, first.optimizer) == (experiment.before.model, experiment.before.optimizer)
    assert (first.data, first.before) == (experiment.data, None)
    assert (first.run.seed, first.run.init_from, first.run.init_copy) == (4, "backbone.pth", ())
    assert first_phase(override(experiment, ["run.init_from=mask_rcnn"])) is None
    assert first_phase(override(experiment, ["before=none"])) is None
    assert from_data(to_data(experiment)) == experiment


def test_both_phases_have_the_same_classes(experiment: Experiment) -> None:
    with pytest.raises(ValueError, match=r"before.model.num_classes: expected 3, .* got 8; set before.model.num_cl"):
        first_phase(override(experiment, ["model.num_classes=3"]))
    both = first_phase(override(experiment, ["*model.num_classes=3"]))
    assert both is not None
    assert both.model.num_classes == 3


def test_what_a_run_starts_from(folder: Path, experiment: Experiment) -> None:
    seen: list[Any] = []

    def trained(first: Experiment, folder: Path) -> None:
        seen.append((first, folder))

    run = start_of(experiment, folder, begun=False, train=trained)
    assert run == dataclasses.replace(experiment.run, init_from=str(folder / "before"))
    assert seen == [(first_phase(experiment), folder / "before")]
    # A run that has begun is past its first phase.
    assert start_of(experiment, folder, begun=True, train=trained) == run
    given = override(experiment, ["run.init_from=mask_rcnn"])
    assert start_of(given, folder, begun=False, train=trained) == given.run
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("before.init_from=no.pth", r"^the first of two phases, .* before.init_from: .*no.pth does not exist"),
        ("run.init_from=no.pth", r"^the weights to start from \(run.init_from\): no.pth does not exist"),
    ],
)
def test_weights_that_are_missing(folder: Path, experiment: Experiment, change: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        train(override(experiment, [change]), folder / change.replace("/", "_"))


def test_weights_of_a_backbone_are_for_the_first_phase(
    folder: Path, experiment: Experiment, variables: Any, base: Any
) -> None:
    backbone = {name: value for name, value in to_mmdet(base).items() if name.startswith("backbone.")}
    write_safetensors(folder / "backbone.safetensors", backbone)
    run = dataclasses.replace(experiment.run, init_from=str(folder / "backbone.safetensors"))
    with pytest.raises(ValueError, match=r"run.init_copy: masks/refine_box .* as before.init_from, where the config"):
        with_weights(experiment.model, variables, run)


def test_other_errors_keep_their_text() -> None:
    with pytest.raises(ValueError, match=r"^as it is$"), named("a phase"):
        raise ValueError("as it is")
    assert Phase(tiny.get_config().model).init_from is None
