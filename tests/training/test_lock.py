"""Two runs do not write into one folder."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxdet.training import lock
from jaxdet.training.lock import alone_in


def test_the_second_is_refused_and_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)
    with alone_in(tmp_path):
        with pytest.raises(ValueError, match=r"expected no other run in this folder.*\n?.*--workdir of its own"):
            alone_in(tmp_path).__enter__()
        with alone_in(tmp_path.parent):
            pass
    with alone_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_waits_for_one_that_is_about_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = alone_in(tmp_path)
    other.__enter__()
    threading.Timer(0.7, lambda: other.__exit__(None, None, None)).start()
    with caplog.at_level(logging.WARNING), alone_in(tmp_path):
        assert caplog.text.count("waiting for it to end") == 1


def test_a_killed_process_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import sys, time
from pathlib import Path
from jaxdet.training.lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)
    with pytest.raises(ValueError, match="expected no other run"):
        alone_in(tmp_path).__enter__()
    process.kill()
    process.communicate()
    with alone_in(tmp_path):
        pass


def test_a_file_system_without_locks_lets_all_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
