"""A run that is killed: a short form of what ``tools/endurance.py`` does."""

from pathlib import Path

from tools.endurance import endure, show


def test_a_run_that_is_killed_equals_one_left_in_peace(tmp_path: Path) -> None:
    outcome = endure(tmp_path, ["evaluation", "save"], seed=1)
    show(outcome)
    assert outcome.differences == ()
    assert [kill.damage for kill in outcome.kills] == ["", ""]
    assert all(kill.happened for kill in outcome.kills)
    assert 0 < outcome.kills[0].resumed <= outcome.kills[0].reached
