"""The best weights, the end of patience, and a run with every setting of this kind that is stopped and goes on."""

import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.checkpoints.reading import load
from jaxdet.config import load_config, override
from jaxdet.experiment import Experiment, Run
from jaxdet.training import train
from jaxdet.training.best import BEST, Best
from jaxdet.training.state import TrainState
from tools.endurance import differences

HERE = Path(__file__).parent
SETTINGS = (
    "model.parts=()",  # boxes alone, which compiles in half the time
    "data.masks=false",
    "optimizer.accumulate=2",
    "optimizer.ema=0.6",
    "optimizer.schedule.decay=cosine",
    "optimizer.schedule.warmup_share=0.2",
    "run.checkpoint_every=1",
    "run.eval_every=3",
    "run.keep_best=bbox/AP",
)


def state(value: float) -> TrainState:
    params = {"kernel": jnp.full(3, value)}
    return TrainState(jnp.int32(0), {"kernel": jnp.zeros(3)}, {}, (), average=params)


def test_the_best_average_stays_and_patience_counts_evaluations(tmp_path: Path) -> None:
    def see(best: Best, step: int, score: float) -> None:
        best.see(step, state(step), {"segm/AP": score}, {"config": {}, "categories": []})

    with Best(tmp_path, "segm/AP", 2, every=10) as best:
        assert not best.enough(1000)  # nothing has been seen
        for step, score in ((10, 0.2), (20, 0.4), (30, 0.4), (35, 0.3)):
            see(best, step, score)
        assert (best.step, best.score) == (20, 0.4)  # an equal score is not a better one
        assert [best.enough(step) for step in (20, 30, 39, 40, 50)] == [False, False, False, True, True]
    with Best(tmp_path, "segm/AP", 2, every=10) as best:  # what is remembered lies in the folder
        assert (best.step, best.score) == (20, 0.4)
        see(best, 30, 0.4)
        see(best, 50, 0.5)
    assert [entry.name for entry in (tmp_path / BEST / "checkpoints").iterdir()] == ["50"]
    variables, metadata = load(tmp_path / BEST)
    np.testing.assert_array_equal(variables["params"]["kernel"], np.full(3, 50.0))
    assert metadata["score"] == 0.5


def test_what_cannot_be_waited_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.patience: expected run\.keep_best"):
        Run(patience=3)
    with pytest.raises(ValueError, match=r"run\.keep_best: expected a score such as segm/AP"):
        Run(keep_best="mask AP")
    with pytest.raises(ValueError, match=r"run\.eval_every: expected at least 1 with run\.patience=3"):
        Best(tmp_path, "segm/AP", 3, every=0)
    with (
        Best(tmp_path, "segm/APP", None, every=0) as best,
        pytest.raises(ValueError, match=r"keep_best: expected one of segm/AP, got 'segm/APP'"),
    ):
        best.see(1, state(1), {"segm/AP": 0.1}, {})
    tiny = load_config(HERE / "tiny.py")
    with pytest.raises(ValueError, match=r"data\.val: expected a validation set with run\.keep_best=segm/AP"):
        train(override(tiny, ["run.keep_best=segm/AP", "data.val=none"]), tmp_path / "run")
    with pytest.raises(ValueError, match=r"run\.keep_best: expected a score of boxes with data\.masks=False"):
        train(override(tiny, ["run.keep_best=segm/AP", "data.masks=false"]), tmp_path / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("best")


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    scenes = [f"data.{split}.directory={folder / 'scenes'}" for split in ("train", "val")]
    return override(load_config(HERE / "tiny.py"), [*scenes, *SETTINGS])


class Terminate(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("step 2/6"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_goes_on_bit_for_bit(
    folder: Path, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxdet")
    whole = train(experiment, folder / "whole")
    handler = Terminate()
    logging.getLogger("jaxdet").addHandler(handler)
    try:
        with pytest.raises(SystemExit):  # in the middle of a pair of batches, whose gradient is in the state
            train(experiment, folder / "stopped")
    finally:
        logging.getLogger("jaxdet").removeHandler(handler)
    assert 2 <= load(folder / "stopped")[1]["step"] <= 3
    assert train(experiment, folder / "stopped") == whole
    assert differences(folder / "whole", folder / "stopped") == []
    for name in ("", BEST):
        ours, theirs = load(folder / "stopped" / name)[0], load(folder / "whole" / name)[0]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert train(experiment, folder / "whole") == whole  # finished


def test_a_run_without_a_better_score_ends_and_stays_so(
    folder: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def scores(*args: Any, **kwargs: Any) -> dict[str, float]:
        calls.append(1)
        return {"bbox/AP": 0.25}

    monkeypatch.setattr("jaxdet.training.run.validate", scores)
    run = dataclasses.replace(experiment.run, eval_every=1, patience=1)
    patient = dataclasses.replace(experiment, run=run)
    for _ in range(2):  # the second time it is finished
        assert train(patient, folder / "patient")["bbox/AP"] == 0.25
        assert load(folder / "patient")[1]["step"] == 2
        assert len(calls) == 2
    # Killed before its scores were written, it evaluates once more and takes no further step.
    (folder / "patient" / "metrics.json").unlink()
    assert train(patient, folder / "patient")["bbox/AP"] == 0.25
    assert (load(folder / "patient")[1]["step"], len(calls)) == (2, 3)
