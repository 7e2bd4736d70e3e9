"""Files are whole or as they were."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.reading import load
from jaxdet.experiment import Experiment
from jaxdet.runtime.files import check_local, replacing, replacing_files, write_json, write_text
from jaxdet.training import train


def test_a_file_is_replaced_at_the_end_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    write_text(path, "old")
    with replacing(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
        assert scratch.suffix == ".png"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["picture.png"]


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": Path()})
    with pytest.raises(UnicodeEncodeError), replacing(path) as scratch:
        scratch.write_text("a half and what no file can hold: \ud800")
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "a.txt", tmp_path / "link"
    link.symlink_to(path)
    for text in ("new", "newer"):
        write_text(link, text)
        assert link.is_symlink()
        assert path.read_text() == text
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"expected a file or nothing there, got a device or a pipe: .*pipe"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


KILLED = """
import os, sys
from jaxdet.runtime.files import replacing
with replacing(sys.argv[1]) as scratch:
    scratch.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_kill_leaves_the_old_file_and_the_next_write_clears_up(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60, check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    write_text(path, "new")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("address", ["gs://bucket/run", Path("gs://bucket/run"), "s3://b/x.npz", "https://x.org/w.pth"])
def test_an_address_is_refused_and_makes_no_folder(
    address: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uses: dict[str, Callable[[], object]] = {
        "--workdir": lambda: train(cast(Experiment, None), address),
        "the checkpoint": lambda: load(address),
        "the weights": lambda: import_weights(address, {}),
        "the file to write": lambda: write_text(address, "x"),
    }
    for what, use in uses.items():
        with pytest.raises(ValueError, match=rf"{what}: expected a path in a file system, got {address}; mount"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["C:/runs/x", "runs/a:b", "/tmp/x", "a:", Path("x:y/z")])
def test_other_names_with_colons_are_paths(path: str | Path) -> None:
    check_local(path, "--workdir")


def test_files_of_a_folder_come_together(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    with pytest.raises(UnicodeEncodeError), replacing_files(out, last="index.html") as scratch:
        (scratch / "index.html").write_text("a half and what no file can hold: \ud800")
    assert os.listdir(tmp_path) == []
    write_text(out / "images" / "mine.png", "mine")
    write_text(out / "index.html", "old")
    with replacing_files(out, last="index.html") as scratch:
        write_text(scratch / "images" / "0.js", "0")
        write_text(scratch / "index.html", "new")
        assert (out / "index.html").read_text() == "old"
    assert (out / "index.html").read_text() == "new"
    assert sorted(os.listdir(out / "images")) == ["0.js", "mine.png"]
    assert sorted(os.listdir(tmp_path / "new")) == ["report"]
    assert sorted(os.listdir(out)) == ["images", "index.html"]
