"""The flags by which processes find each other."""

import argparse
import importlib
import json
import signal
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxdet.data.scenes.write import write_scenes
from jaxdet.evaluation import check_results, score
from jaxdet.runtime.hosts import add_host_flags, join_hosts
from tests.devices import host_flags, outputs, start, wait

FULL = ["--coordinator", "10.0.0.1:1234", "--num-processes", "4", "--process-id", "3"]


def join(monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[Any]:
    """The calls of ``jax.distributed.initialize`` that the flags lead to."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **named: calls.append(named))
    parser = argparse.ArgumentParser()
    add_host_flags(parser)
    join_hosts(parser.parse_args(flags))
    for named in calls:
        assert named.pop("heartbeat_timeout_seconds") < 60  # a dead process is an error soon
        assert named.pop("shutdown_timeout_seconds") > 3600  # the first one may score for long
    return calls


def test_flags_say_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(monkeypatch) == []
    assert join(monkeypatch, "--distributed") == [{}]
    full = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    assert join(monkeypatch, *FULL) == [full]
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
    process = start(["train.py", "--config", "tests/training/tiny.py", "--distributed"], devices=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--distributed: expected a cluster" in errors
    assert "give --coordinator" in errors


@pytest.mark.parametrize("script", ["train", "eval"])
def test_both_entry_points_say_it_in_a_line(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"train": ["--config", "tests/training/tiny.py"], "eval": ["--checkpoint", "nothing"]}[script]
    monkeypatch.setattr("sys.argv", [f"{script}.py", *given, *FULL[:4]])
    assert importlib.import_module(script).main() == 1
    assert "--process-id missing" in capsys.readouterr().err


FAILING = """
import argparse, sys
from jaxdet.runtime.hosts import add_host_flags, explained, join_hosts, run_main

def main():
    parser = argparse.ArgumentParser()
    add_host_flags(parser)
    options = parser.parse_args(sys.argv[2:])
    join_hosts(options)
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather
    process_allgather(np.int32(1))
    if options.process_id == int(sys.argv[1]):
        raise OSError("the disk is full")
    try:
        process_allgather(np.int32(2))  # the other one never comes
    except ValueError as error:
        print(explained(error), file=sys.stderr)
        return 1
    return 0

if __name__ == "__main__":
    run_main(main)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_one_process_that_fails_ends_all(failing: int, tmp_path: Path) -> None:
    """It does not wait at its end for the others, who wait for it."""
    (tmp_path / "failing.py").write_text(FAILING)
    command = [str(tmp_path / "failing.py"), str(failing)]
    processes = [start([*command, *flags], devices=1) for flags in host_flags(2)]
    said = [errors for _, errors in wait(processes, timeout=120)]
    assert "OSError: the disk is full" in said[failing]
    assert "look for what that one says" in said[1 - failing]
    assert [process.returncode for process in processes] == [1, 1]


JUDGING = """
import argparse, json, sys
from jaxdet.data import CocoFolder, open_source
from jaxdet.evaluation.evaluate import score_together
from jaxdet.runtime.hosts import add_host_flags, join_hosts, run_main

def main():
    parser = argparse.ArgumentParser()
    add_host_flags(parser)
    join_hosts(parser.parse_args(sys.argv[2:]))
    folder = sys.argv[1]
    source = open_source(CocoFolder(f"{folder}/images", f"{folder}/instances_val.json"))
    with open(f"{folder}/results.json") as file:
        scores = score_together(source, json.load(file))
    print(json.dumps([scores.metrics, scores.per_class, scores.by_size]))
    return 0

if __name__ == "__main__":
    run_main(main)
"""


def test_processes_judge_together(tmp_path: Path) -> None:
    """Each has the scores of one process, bit for bit."""
    write_scenes(tmp_path, train=1, val=5, size=64, seed=3)
    truth = json.loads((tmp_path / "instances_val.json").read_text())
    results = [
        {key: annotation[key] for key in ("image_id", "category_id", "segmentation")}
        | {"bbox": [side + number % 3 for side in annotation["bbox"]], "score": 1 / (2 + number % 5)}
        for number, annotation in enumerate(truth["annotations"])
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "judging.py").write_text(JUDGING)
    command = [str(tmp_path / "judging.py"), str(tmp_path)]
    alone = score(truth, check_results(results, truth))
    assert 0 < alone.metrics["bbox/AP"] < 1
    for text in outputs([start([*command, *flags], devices=1) for flags in host_flags(2)]):
        # Before it, processes say that they have found each other.
        assert json.loads(text.splitlines()[-1]) == [alone.metrics, alone.per_class, alone.by_size]


TERMINATED = """
import argparse, sys, time
from jaxdet.runtime.hosts import add_host_flags, join_hosts
parser = argparse.ArgumentParser()
add_host_flags(parser)
join_hosts(parser.parse_args())
print("joined", flush=True)
time.sleep(120)
"""


def test_sigterm_ends_a_process_that_does_not_train() -> None:
    processes = [start(["-c", TERMINATED, *flags], devices=1) for flags in host_flags(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert any(line == "joined\n" for line in process.stdout)
            process.terminate()
            assert process.wait(timeout=30) == -signal.SIGTERM
    finally:
        for process in processes:
            process.kill()
            process.communicate()


LEFT = """
import atexit, sys, time
from jaxdet.runtime.compiling import Abandoned, breakable
from jaxdet.runtime.hosts import run_main

def main():
    atexit.register(print, "the end of Python, which could crash in a compilation")
    try:
        breakable(lambda: time.sleep(60), lambda: True)
    except Abandoned:
        print("left", flush=True)
        raise SystemExit(143)

if __name__ == "__main__":
    run_main(main)
"""


def test_a_process_that_leaves_a_compilation_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    process = start([str(tmp_path / "left.py")], devices=1)
    ((said, _),) = wait([process], timeout=60)
    assert said == "left\n"
    assert process.returncode == 143
