"""Two runs do not write into one folder."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxdet.runtime import locks
from jaxdet.training import workdir
from jaxdet.training.workdir import locked


def test_the_second_is_refused_and_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir, "_PATIENCE", 0.1)
    with locked(tmp_path):
        with pytest.raises(ValueError, match=r"expected no other run in this folder.*\n?.*--workdir of its own"):
            locked(tmp_path).__enter__()
        with locked(tmp_path.parent):
            pass
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_waits_for_one_that_is_about_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = locked(tmp_path)
    other.__enter__()
    threading.Timer(0.7, lambda: other.__exit__(None, None, None)).start()
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        assert caplog.text.count("waiting for it to end") == 1


def test_a_killed_process_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import sys, time
from pathlib import Path
from jaxdet.training.workdir import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    monkeypatch.setattr(workdir, "_PATIENCE", 0.1)
    with pytest.raises(ValueError, match="expected no other run"):
        locked(tmp_path).__enter__()
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_lets_all_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with locked(tmp_path), locked(tmp_path):
        pass
