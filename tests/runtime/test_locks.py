"""Locks are POSIX's, and nothing but they needs POSIX: prediction works where there is none."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdet.runtime.locks import hold

ROOT = Path(__file__).parents[2]
POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}

#: What Windows lacks is taken away once the libraries are there, which know how to do without it.
WITHOUT_POSIX = """
import os, signal, sys
import cv2, flax, grain, jax, matplotlib, optax, orbax.checkpoint, PIL.Image, pycocotools.mask, rich, typeguard
sys.modules["fcntl"] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "confstr", "getuid"):
    delattr(os, name)
del signal.pthread_sigmask
import numpy as np
import jaxdet, jaxdet.prediction, predict
from jaxdet.runtime.files import ScratchFolder, write_text
from jaxdet.training.workdir import locked
from pathlib import Path
assert callable(jaxdet.predict)
write_text("a.txt", "\\u00e4")
assert Path("a.txt").read_bytes() == b"\\xc3\\xa4"
one, two = ScratchFolder(), ScratchFolder()
assert one.path.is_dir() and two.path.is_dir()
two.remove()
assert one.path.is_dir() and not two.path.exists()
with locked(Path(".")), locked(Path(".")):
    print("done")
"""


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    descriptor = hold(tmp_path)
    with pytest.raises(BlockingIOError):
        hold(tmp_path)
    os.close(descriptor)
    os.close(hold(tmp_path))


def test_it_works_without_posix(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


def test_no_other_file_imports_what_windows_lacks() -> None:
    wrong = []
    for path in ROOT.glob("jaxdet/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.name}: {name}" for name in names if name in POSIX and path.name != "locks.py"]
    assert not wrong
