"""Temporary folders go with their process, however that ends."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxdet.data.sources.stored import SharedArrays
from jaxdet.runtime import locks
from jaxdet.runtime.files import ScratchFolder

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
import numpy as np
from jaxdet.data.sources.stored import SharedArrays
arrays = SharedArrays({"a": np.arange(3)})
print(arrays._folder, flush=True)
time.sleep(600 if sys.argv[1] == "wait" else 0)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, here and in processes that are started."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start(how: str) -> tuple[subprocess.Popen[str], Path]:
    """A process and its folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, how], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    return process, folder


def test_a_folder_goes_with_its_object_and_at_the_end(home: Path) -> None:
    arrays = SharedArrays({"a": np.arange(3)})
    assert len(list(home.iterdir())) == 1
    del arrays
    assert list(home.iterdir()) == []
    process, folder = start("end")
    process.communicate(timeout=60)
    assert folder.parent == home
    assert not folder.exists()


def test_the_next_one_removes_what_a_killed_process_left(home: Path) -> None:
    process, folder = start("wait")
    (home / "jaxdet-other").mkdir()  # without a lock, so not one of these
    mine = ScratchFolder()
    assert folder.exists(), "its process lives"
    process.kill()
    process.communicate()
    assert folder.exists()
    other = ScratchFolder()
    assert not folder.exists()
    assert mine.path.exists()
    assert other.path.exists()
    assert (home / "jaxdet-other").exists()


def test_a_folder_that_is_swept_while_it_is_made_is_made_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = tempfile.mkdtemp, []

    def make(prefix: str) -> str:
        made.append(real(prefix=prefix))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    assert ScratchFolder().path == Path(made[1])


def test_without_locks_it_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    one = ScratchFolder()
    two = ScratchFolder()
    assert one.path.exists()
    two.remove()
    assert not two.path.exists()


def test_what_others_put_there_is_left_alone(home: Path) -> None:
    (home / "jaxdet-pipe").mkdir()
    os.mkfifo(home / "jaxdet-pipe" / ".lock")  # to open it would wait for ever
    (home / "jaxdet-link").mkdir()
    (home / "jaxdet-link" / ".lock").symlink_to(home / "elsewhere")
    ScratchFolder()
    assert not (home / "elsewhere").exists()
    assert (home / "jaxdet-link").exists()
