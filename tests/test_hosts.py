"""The flags by which processes find each other."""

import argparse
import importlib
from typing import Any

import jax
import pytest

from jaxdet.hosts import add_host_flags, join_hosts
from tests.devices import start

FULL = ["--coordinator", "10.0.0.1:1234", "--num-processes", "4", "--process-id", "3"]


def join(monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[Any]:
    """The calls of ``jax.distributed.initialize`` that the flags lead to."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **named: calls.append((args, named)))
    parser = argparse.ArgumentParser()
    add_host_flags(parser)
    join_hosts(parser.parse_args(flags))
    assert all(named.pop("heartbeat_timeout_seconds") < 60 for _, named in calls)  # a dead process is an error soon
    return calls


def test_flags_say_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(monkeypatch) == []
    assert join(monkeypatch, "--distributed") == [((), {})]
    assert join(monkeypatch, *FULL) == [(("10.0.0.1:1234",), {"num_processes": 4, "process_id": 3})]
    assert join(monkeypatch, "--distributed", *FULL) == join(monkeypatch, *FULL)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (FULL[:2], r"together, --num-processes and --process-id missing"),
        (FULL[2:], r"together, --coordinator missing"),
        ([*FULL[:-1], "4"], r"--process-id: expected 0 to 3 \(--num-processes 4\), got 4"),
        ([*FULL[:-1], "-1"], r"--process-id: expected 0 to 3"),
        ([*FULL[:3], "0", *FULL[4:]], r"--num-processes: expected at least 1, got 0"),
        (["--coordinator", "10.0.0.1", *FULL[2:]], r"expected HOST:PORT, as in 10.0.0.1:1234, got '10.0.0.1'"),
        (["--coordinator", ":1234", *FULL[2:]], r"expected HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join(monkeypatch, *flags)


def test_without_a_cluster_the_error_says_what_to_give() -> None:
    """JAX itself says so: nothing around the process tells it where others are."""
    process = start(["train.py", "--config", "tests/train/tiny.py", "--distributed"], devices=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--distributed: expected a cluster" in errors
    assert "give --coordinator" in errors


@pytest.mark.parametrize("script", ["train", "eval"])
def test_both_entry_points_say_it_in_a_line(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"train": ["--config", "tests/train/tiny.py"], "eval": ["--checkpoint", "nothing"]}[script]
    monkeypatch.setattr("sys.argv", [f"{script}.py", *given, *FULL[:4]])
    assert importlib.import_module(script).main() == 1
    assert "--process-id missing" in capsys.readouterr().err
