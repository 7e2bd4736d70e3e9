"""The worker notices what it is there for, and goes on afterwards."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import worker
from tests.fuzz.worker import Outcome, Worker


def do_as_told(folder: Path) -> str:
    """A judge that misbehaves as the file in the folder says."""
    what = (folder / "what").read_text()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "hang":
        time.sleep(1000)
    elif what == "memory":
        np.ones(1 << 26)
    elif what == "write":
        (folder / "more").write_text("x")
    elif what == "write where it is run":
        Path("canary").mkdir()
    elif what == "raise":
        raise KeyError("x")
    return "no" if what == "refuse" else ""


@pytest.fixture(scope="module")
def misbehaving():
    process = Worker(do_as_told)
    yield process
    process.close()


@pytest.mark.parametrize(("what", "told"), [
    ("crash", "ended with exit code -11"), ("hang", "no answer within"), ("memory", "took 5"), ("raise", "KeyError"),
    ("write", "something was written"), ("write where it is run", "something was written"),
])  # fmt: skip
def test_harm_is_noticed(misbehaving, monkeypatch, what, told):
    assert misbehaving.judge({"what": b"refuse"}) == Outcome("refused", "no")
    monkeypatch.setattr(worker, "SECONDS", 2 if what == "hang" else worker.SECONDS)
    outcome = misbehaving.judge({"what": what.encode()})
    assert outcome.kind == "WRONG"
    assert told in outcome.text
    monkeypatch.undo()
    assert misbehaving.judge({"what": b"take"}) == Outcome("taken", "")
