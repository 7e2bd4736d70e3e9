"""What becomes of the metrics of steps: log lines, and what is said and kept of those that are not finite."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.training.metrics import FiniteCheck, Meter, not_finite, progress_line
from tests.disk import files_of_at_most
from tests.training.stub import BatchesFrom, batch_of, fresh, run_to

IDS = np.arange(8) * 10 + 100  # of the images at positions 0..7


def test_meter_counts_images_waiting_and_what_is_left() -> None:
    now = [100.0]
    meter = Meter(batch_size=4, clock=lambda: now[0])
    meter.wait(7.0)
    meter.add({"loss": 6.0})
    meter.count({"dropped": 1})  # before start: compiling, no part of the speed
    now[0] += 50
    meter.start()
    for loss in (1.0, 2.0):
        meter.wait(0.5)
        meter.add({"loss": loss})
        meter.count({"dropped": 2})
        now[0] += 2
    assert meter.take(steps_left=10) == {
        "loss": 3.0,
        "dropped": 5,
        "images_per_second": 2.0,
        "data_wait": 0.25,
        "eta_seconds": 20.0,
    }
    assert meter.take(0) == {"dropped": 5}  # of no step there is neither mean nor speed


def test_compiling_is_no_part_of_the_speed_nor_of_the_time_that_is_left() -> None:
    now = [100.0]
    meter = Meter(batch_size=4, clock=lambda: now[0])
    meter.leave_out(30.0)  # before the clock runs there is nothing to take it from
    meter.start()
    for compiling in (0, 40, 0, 0):
        now[0] += 2 + compiling
        meter.leave_out(compiling)
        meter.add({"loss": 1.0})
        meter.count({})
    summary = meter.take(steps_left=10)
    assert (summary["images_per_second"], summary["eta_seconds"]) == (2.0, 20.0)


def test_a_meter_goes_on_where_the_saved_one_was() -> None:
    whole, killed = Meter(4), Meter(4)
    losses = [0.1, 0.2, float("nan"), 1e300]
    for loss in losses:
        whole.add({"loss": loss, "lr": loss / 3})
        whole.count({"dropped": 1})
    for loss in losses[:3]:
        killed.add({"loss": loss, "lr": loss / 3})
        killed.count({"dropped": 1})
    continued = Meter.continued(4, json.loads(json.dumps(killed.saved(), allow_nan=False)))
    continued.add({"loss": losses[3], "lr": losses[3] / 3})
    continued.count({"dropped": 1})
    assert str(continued.take(0)) == str(whole.take(0))
    assert Meter.continued(4, {}) == Meter(4)


def test_progress_line() -> None:
    summary = {"loss": 2.0, "loss/cls": 1.5, "loss/mask": 0.5, "lr": 0.02, "grad_norm": 3.0}
    summary |= {"images_per_second": 12.34, "data_wait": 0.013, "eta_seconds": 3725.0}
    assert progress_line(50, 100, summary) == (
        "step 50/100  loss 2.000 (cls 1.500, mask 0.500)  lr 0.02  12.3 images/s  data 1%  ETA 1:02:05"
    )


def test_only_what_is_wrong_is_named() -> None:
    assert not_finite({"loss/a": 1.0, "grad_norm": 2.0, "other": float("nan")}) == []
    assert not_finite({"loss": np.inf, "loss/a": 1.0, "loss/b": np.inf, "grad_norm": 2.0}) == ["loss/b"]
    assert not_finite({"loss": np.inf, "loss/a": 3e38, "loss/b": 3e38}) == ["loss"]


def test_a_nan_stops_the_run_with_its_terms_its_images_and_its_batch(tmp_path: Path) -> None:
    check, broken = FiniteCheck(tmp_path, IDS, skip=0), BatchesFrom(0, broken=(2,))
    with pytest.raises(FloatingPointError) as stopped:
        run_to(6, fresh(), broken, check=check)
    path = tmp_path / "nonfinite-3.npz"
    message = str(stopped.value)
    assert message.startswith("step 3: grad_norm = nan, loss/fit = nan, loss/noisy = nan. ")
    assert "images 100, 110, 120, 130, 140, 150, 160, 170; " in message
    assert f"numpy.load('{path}')" in message
    with np.load(path) as kept:
        assert kept["step"] == 3
        np.testing.assert_array_equal(kept["ids"], IDS)
        assert np.isnan(kept["image"]).all()
        np.testing.assert_array_equal(kept["scale"], batch_of(2).scale)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_on_a_full_disk_it_says_what_was_not_finite_all_the_same(tmp_path: Path) -> None:
    with (
        files_of_at_most(100),
        pytest.raises(FloatingPointError, match=r"loss/a = nan\. .* 160, 170, which could not be kept: .*too large"),
    ):
        FiniteCheck(tmp_path, IDS, skip=0)(1, {"loss/a": np.nan}, batch_of(0))
    assert list(tmp_path.iterdir()) == []


def test_slots_that_only_fill_the_batch_are_not_named(tmp_path: Path) -> None:
    batch = batch_of(0)
    batch = batch.replace(index=np.append(batch.index[:-1], np.int32(-1)), valid=np.arange(8) < 7)
    with pytest.raises(FloatingPointError, match=r"images 100, 110, 120, 130, 140, 150, 160; "):
        FiniteCheck(tmp_path, IDS, skip=0)(1, {"loss/a": np.nan}, batch)
    with np.load(tmp_path / "nonfinite-1.npz") as kept:
        assert kept["ids"].tolist() == [*IDS[:-1].tolist(), -1]


def test_a_skipped_step_changes_nothing_but_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before: dict[int, object] = {}
    meter = Meter(8)
    check, broken = FiniteCheck(tmp_path, IDS, skip=2), BatchesFrom(0, broken=(2, 4, 5))

    def after(step: int, state: object, pending: object) -> None:
        before[step] = jax.tree.map(np.array, state)  # a copy, as the next step takes the memory

    with caplog.at_level(logging.WARNING):
        run_to(7, fresh(skip_nonfinite=True), broken, check=check, after=after, meter=meter)
    for skipped in (3, 5, 6):
        now, then = before[skipped], before[skipped - 1]
        assert int(now.step) == skipped
        jax.tree.map(np.testing.assert_array_equal, now.replace(step=0), then.replace(step=0))
    assert not np.array_equal(before[7].params["head"]["kernel"], before[6].params["head"]["kernel"])
    summary = meter.take(0)
    assert (summary["skipped_steps"], summary["dropped"]) == (3, 7 * 8)
    assert np.isfinite(summary["loss"])
    assert caplog.text.count("The step is skipped") == 3


def test_without_a_nan_the_setting_changes_no_bit() -> None:
    plain, skipping = run_to(4, fresh()), run_to(4, fresh(skip_nonfinite=True))
    jax.tree.map(np.testing.assert_array_equal, plain, skipping)


def test_too_many_in_a_row_stop_the_run_and_few_batches_are_kept(tmp_path: Path) -> None:
    check, broken = FiniteCheck(tmp_path, IDS, skip=2), BatchesFrom(0, broken=(0, 2, 3, 4))
    with pytest.raises(FloatingPointError, match="step 5: "):
        run_to(9, fresh(skip_nonfinite=True), broken, check=check)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"nonfinite-{step}.npz" for step in (1, 3, 4)]
