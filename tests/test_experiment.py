"""Settings of a run, and which models an experiment takes."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import pytest

from jaxdet.config import check, from_data, load_config, override, to_data
from jaxdet.data import Data
from jaxdet.experiment import Experiment, Run, Schedule
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.structures import Batch, Detections
from jaxdet.trained import load
from jaxdet.training import train

CONFIG = "configs/mask_rcnn_r50_fpn.py"


@pytest.mark.parametrize(
    ("length", "unit", "amount", "steps"),
    [
        (12, "epochs", None, 50),  # each epoch, as in the reference
        (24, "epochs", None, 100),
        (5, "epochs", None, 50),
        (9000, "steps", None, 900),
        (7, "steps", None, 1),
        (12, "epochs", 3, 150),
        (9000, "steps", 3, 3),
        (9000, "steps", 0, 0),
    ],
)
def test_intervals_are_a_tenth_of_the_schedule_unless_they_are_set(
    length: int, unit: Any, amount: int | None, steps: int
) -> None:
    schedule = Schedule(length=length, drops=(), unit=unit)
    assert schedule.interval(amount, steps_per_epoch=50) == steps


def test_a_schedule_in_steps_needs_no_other_setting() -> None:
    changes = ["optimizer.schedule.unit=steps", "optimizer.schedule.length=9000", "optimizer.schedule.drops=6000,8000"]
    experiment = override(load_config(CONFIG), changes)
    every = {experiment.run.checkpoint_every, experiment.run.eval_every}
    assert {experiment.optimizer.schedule.interval(each, 7000) for each in every} == {900}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("log_every", 0), ("checkpoint_every", 0), ("keep_checkpoints", 0), ("eval_every", -1), ("seed", -1)],
)
def test_run_settings_out_of_range_are_refused(name: str, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"Run\.{name}: expected .*, got {wrong}"):
        Run(**{name: wrong})
    assert getattr(Run(**{name: wrong + 1}), name) == wrong + 1


class OneStage(nn.Module):
    """Another kind of model, with what the libraries ask for and nothing else."""

    num_classes: int = 3

    def losses(self, batch: Batch, key: jax.Array) -> Any:
        raise NotImplementedError

    def predict(self, batch: Batch) -> Detections:
        raise NotImplementedError

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        return False


def test_any_detector_is_a_model() -> None:
    experiment = Experiment(OneStage(), Data())
    assert override(experiment, ["model.num_classes=5"]).model.num_classes == 5


@pytest.mark.parametrize("config", [None, Data()])
def test_what_is_no_experiment_is_refused_wherever_a_config_comes_in(config: Any, tmp_path: Path) -> None:
    expected = f"config: expected an Experiment, got {type(config).__name__}"
    with pytest.raises(ValueError, match=expected):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if config is not None:  # None: that of the checkpoint
        with pytest.raises(ValueError, match=expected):
            load(tmp_path, config=config)


def test_what_is_no_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="model: expected Detector, got ResNet"):
        check(Experiment(ResNet(depth=18), Data()))
    data = to_data(load_config(CONFIG))
    with pytest.raises(ValueError, match="model: expected Detector"):
        from_data(data | {"model": data["model"]["backbone"]})
    assert from_data(data) == load_config(CONFIG)
