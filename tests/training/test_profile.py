"""A trace of some steps: which, of a run that goes on too, and that the file is there."""

import logging
from pathlib import Path
from typing import Any

import pytest

from jaxdet.training.profile import Profile
from tests.training.stub import fresh, run_to


@pytest.mark.parametrize("steps", ["", "5", "0:3", "3:2", "-1:2", "a:b", "1:2:3", "1 : 2", "1:1.5", 5])
def test_what_is_no_range_is_refused(steps: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--profile: expected the first and the last step to trace, .* as in 10:15"):
        Profile(steps, tmp_path, 0, 20)


def test_steps_beyond_the_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--profile: expected steps of 1 to 20, those of the run, got 10:21"):
        Profile("10:21", tmp_path, 0, 20)


@pytest.mark.parametrize(
    ("start", "begins", "said"), [(0, 9, ""), (9, 9, ""), (12, 12, "after it"), (15, None, "nothing")]
)
def test_of_a_run_that_goes_on_the_rest_of_the_range_is_traced(
    start: int, begins: int | None, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jaxdet"):
        profile = Profile("10:15", tmp_path, start, 20)
    assert [step for step in range(start, 20) if profile.begins_after(step)] == ([] if begins is None else [begins])
    assert [step for step in range(start, 20) if profile.ends_after(step)] == ([] if begins is None else [15])
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_a_trace_is_written_and_the_last_line_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    traced = []

    class Counted(Profile):
        def begin(self) -> None:
            traced.append("begin")
            super().begin()

        def end(self) -> None:
            traced.append("end")
            super().end()

    with caplog.at_level(logging.INFO, "jaxdet"), Counted("2:3", tmp_path, 0, 4) as profile:

        def after(step: int, state: Any, pending: Any) -> None:
            traced.append(step)
            if profile.ends_after(step):
                pending.settle()
                profile.end()
            if profile.begins_after(step):
                pending.settle()
                profile.begin()

        run_to(4, fresh(), after=after)
    assert traced == [1, "begin", 2, 3, "end", 4, "end"]
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert trace.stat().st_size > 1000
    assert f"steps 2 to 3 are traced: open {trace} at https://ui.perfetto.dev" in caplog.text
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_that_ends_within_the_range_leaves_its_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Profile("1:9", tmp_path, 0, 10) as profile:
        profile.begin()
    assert "the run ends before step 9" in caplog.text
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_only_the_first_process_traces(tmp_path: Path) -> None:
    with Profile("1:2", tmp_path, 0, 4, writes=False) as profile:
        profile.begin()
    assert not list(tmp_path.iterdir())
