"""A run that goes on with other batches or other data: where it is in its schedule, and what labels mean."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxdet.config import load_config, override
from jaxdet.experiment import Experiment, Optimizer, Schedule
from jaxdet.structures import Batch
from jaxdet.training import run, train
from jaxdet.training.loop import AfterStep, Meter, PendingMetrics
from jaxdet.training.optimizer import learning_rate
from jaxdet.training.position import Position, check_data
from jaxdet.training.state import TrainState
from jaxdet.training.writers.jsonl import read_log
from tests.training.stub import finite

EPOCHS = Schedule(length=4, drops=(3,), warmup_steps=0)


@pytest.mark.parametrize(
    ("before", "step", "epoch", "total", "drop"),
    [
        # 3 of 4 epochs of 6 steps: one of 3 is left, with the lower rate from its first step on.
        (Position(6), 18, 3, 21, 18),
        # 2 of 4 epochs of 3 steps: two of 6 are left.
        (Position(3), 6, 6, 18, 12),
        # 1 1/3 epochs: of the second one a step of two is done, so that 5 are left.
        (Position(3), 4, 2, 10, 8),
        (Position(6), 24, 3, 24, 21),  # finished, and stays so
        (Position(3, -9), 21, 6, 21, 15),
        (Position(5), 7, 5, 20, 15),
    ],
)
def test_a_schedule_in_epochs_goes_on_after_as_many_of_them(
    before: Position, step: int, epoch: int, total: int, drop: int
) -> None:
    now = Position.continued(EPOCHS, epoch, step, before.saved())
    assert now.total(EPOCHS) == total
    rate = learning_rate(Optimizer(lr=1.0, base_batch=None, schedule=EPOCHS), 4, epoch, now.shift)
    assert [round(float(rate(jnp.int32(s))), 6) for s in (drop - 1, drop)] == [1.0, 0.1]


def test_a_schedule_in_steps_keeps_its_steps() -> None:
    schedule = Schedule(length=100, drops=(), unit="steps")
    assert Position.continued(schedule, 3, 18, Position(6, -2).saved()) == Position(3)
    assert Position(3).total(schedule) == 100


def test_a_new_run_begins_at_the_beginning() -> None:
    assert Position.continued(EPOCHS, 7, 0, {}) == Position(7)


METADATA = {
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}],
    "data": {"images": 12, "image ids": "a0", "categories": ["1 cat", "2 dog", "3 cow"]},
}


def changed(images: int = 12, names: str = "cat dog cow", first: int = 1) -> dict[str, Any]:
    categories = [{"id": i, "name": name} for i, name in enumerate(names.split(), first)]
    listed = [f"{category['id']} {category['name']}" for category in categories]
    return {"categories": categories, "data": {"images": images, "image ids": "a0", "categories": listed}}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (changed(images=10), r"data\.train\.images: 12 -> 10"),
        (changed(names="cat dog horse"), r"data\.train\.categories\.2: '3 cow' -> '3 horse'"),
        (changed(first=5), r"data\.train\.categories\.0: '1 cat' -> '5 cat'"),
    ],
)
def test_other_data_is_refused_or_accepted(now: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=rf"(?s)trained on other data.*\n  {message}\n.*--accept-changes"):
        check_data(Path("runs/x"), METADATA, now, accept_changes=False)
    with caplog.at_level(logging.WARNING):
        check_data(Path("runs/x"), METADATA, now, accept_changes=True)
    assert "going on with other data" in caplog.text


@pytest.mark.parametrize("accept", [False, True])
def test_labels_that_mean_other_categories_are_refused_in_any_case(accept: bool) -> None:
    with pytest.raises(ValueError, match=r"dog was 1 and is 0, cow was 2 and is 1: .*run\.init_from=runs/x"):
        check_data(Path("runs/x"), METADATA, changed(names="dog cow horse"), accept_changes=accept)


def test_the_same_data_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    check_data(Path("runs/x"), METADATA, changed(), accept_changes=False)
    check_data(Path("runs/x"), {}, changed(), accept_changes=False)
    assert not caplog.records


def without_training(seen: Counter[int]) -> Any:
    """In place of `run_steps`: counts the images of the batches and does all that is done between steps."""

    def run_steps(
        _: Any, state: TrainState, batches: Iterator[Batch], total: int, *, meter: Meter, after: AfterStep, **__: Any
    ) -> TrainState:
        pending = PendingMetrics(meter, finite)
        for step in range(int(state.step) + 1, total + 1):
            batch = next(batches)
            seen.update(batch.index[batch.valid].tolist())
            state = state.replace(step=state.step + 1)
            pending.push(step, {"loss": jnp.ones(()), "lr": jnp.ones(())}, batch)
            after(step, state, pending)
        return state

    return run_steps


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    config = load_config(Path(__file__).parent / "tiny.py")
    changes = [f"data.train.directory={tmp_path / 'scenes'}", "data.val=none", "run.log_every=1"]
    return override(config, [*changes, "optimizer.schedule.unit=epochs", "optimizer.schedule.drops=()"])


def test_every_image_is_seen_once_an_epoch_although_the_batch_has_changed(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counter[int]()
    monkeypatch.setattr(run, "run_steps", without_training(seen))
    train(override(experiment, ["optimizer.schedule.length=2"]), tmp_path / "run")
    assert set(seen.values()) == {2}
    longer = override(experiment, ["optimizer.schedule.length=4", "data.batch_size=2", "run.checkpoint_every=1"])
    train(longer, tmp_path / "run", accept_changes=True)
    assert len(seen) == 12
    assert set(seen.values()) == {4}
    assert [entry["step"] for entry in read_log(tmp_path / "run")] == list(range(1, 6 + 12 + 1))
    # A checkpoint at the end of each epoch, of which the newest two stay; then the run is finished.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["12", "18"]
    train(longer, tmp_path / "run")
    assert set(seen.values()) == {4}


def test_a_data_set_that_has_changed_is_noticed(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_steps", without_training(Counter()))
    once = override(experiment, ["optimizer.schedule.length=1"])
    train(once, tmp_path / "run")
    monkeypatch.setattr(run, "fingerprint", lambda source: {"images": 11})
    with pytest.raises(ValueError, match=r"data\.train\.images: 12 -> 11"):
        train(once, tmp_path / "run")
