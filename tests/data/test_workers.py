"""Worker processes that end before their time, and those whose parent does."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

import jaxdet
from jaxdet.data import Data
from jaxdet.data.pipeline import workers
from jaxdet.data.pipeline.workers import WorkerIterator

ROOT = Path(__file__).parents[2]


class Numbers:
    """Small arrays without end."""

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return {"number": np.full(3, position)}


def drain(prepared: WorkerIterator) -> None:
    """What a worker had sent before its end still arrives."""
    while True:
        next(prepared)


def test_a_killed_worker_is_an_error() -> None:
    prepared = WorkerIterator(Numbers(), Data(workers=1))
    try:
        assert next(prepared)["number"].tolist() == [0, 0, 0]
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGTERM)  # as to all processes of a job: the main one saves first
        for number in range(1, 9):
            assert next(prepared)["number"][0] == number
        os.kill(worker.pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(ChildProcessError, match=r"ended before its time\. .* exit code -9.*fewer data\.workers"):
            drain(prepared)
        assert time.monotonic() - begin < 60
    finally:
        prepared.close()


SCRIPT = """
import os, sys, time
from jaxdet.data import Data
from jaxdet.data.pipeline import workers
from jaxdet.data.pipeline.workers import WorkerIterator

class Numbers:
    def __len__(self):
        return 2**40

    def __getitem__(self, position):
        if position == 3 and sys.argv[1] == "worker ends":
            os._exit(0)
        return {"number": position}

if __name__ == "__main__":
    prepared = WorkerIterator(Numbers(), Data(workers=2))
    print(next(prepared), flush=True)
    if sys.argv[1] == "worker ends":
        workers._POLL_SECONDS = 0.2  # seconds
        try:
            while True:
                next(prepared)
        except ChildProcessError as error:
            print(error)
        prepared.close()
    else:
        print(*(process.pid for process in __import__("multiprocessing").active_children()), flush=True)
        time.sleep(600)
"""


def script(tmp_path: Path, argument: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), argument]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_worker_that_ends_without_a_word_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """grain itself waits for it, then and when it is closed."""
    said, _ = script(tmp_path, "worker ends").communicate(timeout=120)
    assert "has ended before its time. It ended without a word." in said


def alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(") ")[2][0] != "Z"


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    process = script(tmp_path, "parent is killed")
    assert process.stdout is not None
    process.stdout.readline()
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(alive, workers))
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < end, "workers stay behind"
        time.sleep(0.1)
    process.stdout.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="nothing lists shared memory here")
def test_shared_memory_that_a_worker_left_is_freed() -> None:
    left = shared_memory.SharedMemory("jdtest_1", create=True, size=8)
    other = shared_memory.SharedMemory("jdother_1", create=True, size=8)
    workers._free_shared_memory("jdtest_")
    assert not Path("/dev/shm/jdtest_1").exists()
    assert Path("/dev/shm/jdother_1").exists()
    left.close()
    other.close()
    other.unlink()


class Few:
    """Three small arrays, of which the last takes its time."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        if position == 2:
            time.sleep(4)
        return {"number": np.full(3, position)}


def test_a_worker_that_has_given_all_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0.2)  # s: all polls are over long before the other is ready
    prepared = WorkerIterator(Few(), Data(workers=2))
    assert [next(prepared)["number"][0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(prepared)
    prepared.close()


SIGNALLED = """
import os, signal, sys, threading
from jaxdet.data import Data
from jaxdet.data.pipeline.workers import WorkerIterator

class Numbers:
    def __len__(self):
        return 2**40

    def __getitem__(self, position):
        return {"number": position}

if __name__ == "__main__":
    heard = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: heard.append(number))
    prepared = WorkerIterator(Numbers(), Data(workers=2))
    for delay, number in ((0.2, signal.SIGTERM), (0.6, signal.SIGINT), (1.2, signal.SIGTERM)):
        threading.Timer(delay, os.killpg, (0, number)).start()
    numbers = [int(next(prepared)["number"]) for _ in range(4)]
    prepared.close()
    print(numbers, len(heard))
"""


def test_signals_to_all_processes_reach_the_first_alone_while_workers_start(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SIGNALLED)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    said, errors = process.communicate(timeout=120)
    assert said == "[0, 1, 2, 3] 3\n", errors


UNGUARDED = """
from jaxdet.data import Data
from jaxdet.data.pipeline.workers import WorkerIterator

class Numbers:
    def __len__(self):
        return 2**40

    def __getitem__(self, position):
        return {"number": position}

next(WorkerIterator(Numbers(), Data(workers=2)))
"""


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_a_script_without_its_guard_is_told_so(how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    process = subprocess.run(
        [sys.executable, str(tmp_path / "script.py") if how == "file" else "-"],
        input=None if how == "file" else UNGUARDED,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,  # less than the minute that a second run in a folder waits for the first
        check=False,
    )
    error = process.stderr.rpartition("ChildProcessError: ")[2]
    assert error.startswith("the worker processes of the data pipeline have ended before they began")
    assert 'under `if __name__ == "__main__":`, or set data.workers=0' in error
    assert "memory" not in error
    if how == "file":
        assert "\njaxdet: a data worker imports this script" in f"\n{process.stderr}"


@pytest.mark.parametrize("verb", [lambda: jaxdet.train(None, "runs/none"), lambda: jaxdet.evaluate("runs/none")])
def test_work_does_not_begin_again_in_a_worker(
    verb: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit, match="a data worker imports this script"):
        verb()
    assert not list(tmp_path.iterdir())
